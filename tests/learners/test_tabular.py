from dataclasses import dataclass

import numpy as np
import pytest
import torch

from policyopt.learners.tabular import (
    Bernstein,
    Bonus,
    Counts,
    Hoeffding,
    Model,
    OptimisticPlanning,
    TabularPolicy,
    expected,
    greedy,
    residual_gap,
)
from policyopt.problems.decision.tabular import random_mdp

LOG = 10.0


@dataclass(frozen=True, kw_only=True)
class Constant(Bonus):
    """The same width everywhere."""

    def __call__(self, visits, variance, horizon, log_term):
        return np.full_like(variance, self.scale)


def true_model(problem, bonus, visits=1.0):
    n = np.full(problem.rewards.shape, visits)
    return Model(transitions=problem.transitions, rewards=problem.rewards, visits=n, bonus=bonus, log_term=LOG)


def sampled_counts(problem, episodes, seed=0):
    counts = Counts(problem.rewards.shape, problem.states)
    policy = TabularPolicy.single(np.full(problem.rewards.shape, 1.0 / problem.actions))
    counts.add_episodes(*problem.play(policy.act, episodes, torch.Generator().manual_seed(seed)))
    return counts


def random_policies(problem, count, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(problem.actions), size=(count, *problem.rewards.shape[:2]))


def loop_bounds(model, policy):
    """An independent version: plain loops over steps, states, actions."""
    horizon, states, actions = model.rewards.shape
    upper, lower = np.zeros((horizon + 1, states)), np.zeros((horizon + 1, states))
    for h in range(horizon - 1, -1, -1):
        for s in range(states):
            for a in range(actions):
                p, n = model.transitions[h, s, a], model.visits[h, s, a]
                mean = sum(p * upper[h + 1])
                variance = sum(p * (upper[h + 1] - mean) ** 2)
                if n:
                    width = model.bonus.scale * ((2 * variance * LOG / n) ** 0.5 + horizon * LOG / n)
                    high = min(model.rewards[h, s, a] + mean + width, horizon - h)
                    low = max(model.rewards[h, s, a] + sum(p * lower[h + 1]) - width, 0.0)
                else:
                    high, low = horizon - h, 0.0
                upper[h, s] += policy[h, s, a] * high
                lower[h, s] += policy[h, s, a] * low
    return upper[0, model.start], lower[0, model.start]


def test_counts_add_repeated_pairs_and_keep_their_sums():
    counts = Counts((2, 3), 2)  # stationary: 2 states, 3 actions
    pairs = (np.array([0, 0, 1]), np.array([2, 2, 0]))
    counts.add(pairs, np.array([0.5, 0.25, 1.0]), np.array([1, 1, 0]))
    assert counts.visits.tolist() == [[0, 0, 2], [1, 0, 0]]
    assert counts.transitions[0, 2].tolist() == [0, 2]
    assert counts.rewards[0, 2] == 0.75


def test_episodes_are_counted_at_their_steps():
    problem = random_mdp(seed=1)
    counts = sampled_counts(problem, 50)
    assert counts.visits.sum((1, 2)).tolist() == [50.0] * problem.horizon
    assert counts.visits[0, 1:].sum() == 0  # every episode begins in state 0
    assert (counts.transitions[0].sum((0, 1)) == counts.visits[1].sum(-1)).all()


def test_the_empirical_model_is_a_mean_and_uniform_where_unseen():
    counts = Counts((1, 2, 1), 2)
    counts.add((np.zeros(4, int), np.zeros(4, int), np.zeros(4, int)), np.full(4, 0.3), np.array([0, 1, 1, 1]))
    model = Model.estimated(counts, Bernstein(), LOG, 0)
    assert model.transitions[0, 0, 0].tolist() == [0.25, 0.75]
    assert model.transitions[0, 1, 0].tolist() == [0.5, 0.5]
    assert model.rewards[0, 0, 0] == pytest.approx(0.3)


def test_the_empirical_model_converges():
    problem = random_mdp(seed=2)
    model = Model.estimated(sampled_counts(problem, 40_000), Bernstein(), LOG, 0)
    seen = model.visits > 500
    assert seen.mean() > 0.6  # the first step is always in state 0
    assert np.abs(model.transitions - problem.transitions)[seen].max() < 0.08
    assert model.rewards[seen] == pytest.approx(problem.rewards[seen])


def test_expected_equals_the_sum_for_any_leading_axes():
    rng = np.random.default_rng(0)
    transitions, values = rng.dirichlet(np.ones(4), size=(4, 3)), rng.normal(size=(2, 5, 4))
    assert expected(transitions, values) == pytest.approx(np.einsum("sat,xyt->xysa", transitions, values))


def test_bonuses_at_numbers_worked_by_hand():
    visits, variance = np.array([[4.0, 0.0]]), np.array([[0.5, 0.0]])
    # 0.1 (sqrt(2 * 0.5 * 2 / 4) + 3 * 2 / 4) = 0.220711
    assert Bernstein()(visits, variance, 3, 2.0)[0] == pytest.approx([0.2207107, np.inf])
    # 0.1 * 3 sqrt(2 / 4) = 0.212132
    assert Hoeffding()(visits, variance, 3, 2.0)[0] == pytest.approx([0.2121320, np.inf])
    assert Hoeffding()(visits, np.zeros((5, 1, 2)), 3, 2.0).shape == (5, 1, 2)


def test_bounds_equal_plain_loops_and_do_not_depend_on_the_batch():
    problem = random_mdp(seed=3)
    model = Model.estimated(sampled_counts(problem, 300), Bernstein(), LOG, 0)
    assert (model.visits == 0).any()
    policies = random_policies(problem, 6)
    upper, lower = model.bounds(policies.reshape(2, 3, *policies.shape[1:]))
    expected_bounds = np.array([loop_bounds(model, each) for each in policies])
    assert upper.reshape(-1) == pytest.approx(expected_bounds[:, 0], abs=1e-12)
    assert lower.reshape(-1) == pytest.approx(expected_bounds[:, 1], abs=1e-12)
    assert lower.min() > 0.01


def test_with_the_true_model_bounds_enclose_the_value_and_meet_it():
    problem = random_mdp(seed=4)
    policies = random_policies(problem, 8)
    value = problem.value(policies)
    for bonus in (Bernstein(), Hoeffding(), Constant(scale=0.05)):
        upper, lower = true_model(problem, bonus, visits=50.0).bounds(policies)
        assert (lower < value).all()
        assert (value < upper).all()
    upper, lower = true_model(problem, Bernstein(), visits=1e14).bounds(policies)
    assert upper == pytest.approx(value, abs=1e-5)
    assert lower == pytest.approx(value, abs=1e-5)
    upper, lower = true_model(problem, Constant(scale=0.0)).bounds(policies)
    assert upper == pytest.approx(value, abs=1e-12)
    assert lower == pytest.approx(value, abs=1e-12)


def test_with_an_estimated_model_bounds_hold_when_the_bonus_covers_the_error():
    problem = random_mdp(seed=5, concentration=1.0)
    counts = sampled_counts(problem, 5000)
    estimate = Model.estimated(counts, Bernstein(), LOG, 0).transitions
    # the next value lies in [0, H], so that an L1 error of the row moves its mean by half of it times H at most
    width = np.abs(estimate - problem.transitions).sum(-1).max() / 2 * problem.horizon
    model = Model.estimated(counts, Constant(scale=float(width)), LOG, 0)
    policies = random_policies(problem, 8)
    upper, lower = model.bounds(policies)
    value = problem.value(policies)
    assert (lower <= value).all()
    assert (value <= upper).all()
    assert (model.optimistic_q() >= problem.optimal_q - 1e-12).all()
    assert (Model.estimated(counts, Constant(scale=0.0), LOG, 0).optimistic_q() < problem.optimal_q).any()


def test_without_a_bonus_planning_finds_the_optimal_values():
    problem = random_mdp(seed=6)
    assert true_model(problem, Constant(scale=0.0)).optimistic_q() == pytest.approx(problem.optimal_q, abs=1e-12)


def test_without_data_everything_is_possible():
    problem = random_mdp(seed=7)
    model = Model.estimated(Counts(problem.rewards.shape, problem.states), Bernstein(), LOG, 0)
    caps = np.arange(problem.horizon, 0, -1.0)
    assert (model.optimistic_q() == caps[:, None, None]).all()
    upper, lower = model.bounds(problem.baseline)
    assert (upper, lower) == (pytest.approx(problem.horizon), 0.0)


def test_the_greedy_policy_attains_the_optimistic_value():
    problem = random_mdp(seed=8)
    model = Model.estimated(sampled_counts(problem, 400), Bernstein(), LOG, 0)
    q = model.optimistic_q()
    assert model.bounds(greedy(q))[0] == pytest.approx(q[0, 0].max(), abs=1e-12)


def test_greedy_takes_the_first_of_equals():
    assert greedy(np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_residual_gap_is_the_excess_over_the_best_table():
    targets = np.array([1.0, 1.5, 0.5, 1.0])
    loss = ((1.2 - targets) ** 2).sum()
    least = ((targets.mean() - targets) ** 2).sum()
    assert (loss, least) == (pytest.approx(0.66), pytest.approx(0.50))
    gap = residual_gap(np.array([1.2]), np.array([targets.mean()]), np.array([4.0]))
    assert gap == pytest.approx(0.16) == pytest.approx(loss - least)


def test_a_mixture_follows_one_policy_for_the_whole_episode():
    problem = random_mdp(seed=0, actions=3)
    pure = np.zeros((2, *problem.rewards.shape))
    pure[0, ..., 0] = pure[1, ..., 2] = 1.0
    policy = TabularPolicy(probabilities=pure, weights=np.array([0.25, 0.75]))
    actions = problem.play(policy.act, 4000, torch.Generator().manual_seed(0)).actions
    assert (actions == actions[:, :1]).all()
    assert (actions[:, 0] == 2).mean() == pytest.approx(0.75, abs=0.03)


def test_acting_follows_the_probabilities_or_their_mode():
    policy = TabularPolicy.single(np.array([[[0.2, 0.5, 0.3]]]))
    observation, rng = np.zeros((20_000, 2), int), torch.Generator().manual_seed(0)
    drawn, _, _ = policy.act(observation, None, rng)
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.2, 0.5, 0.3], abs=0.015)
    best, _, _ = policy.act(observation, None, rng, greedy=True)
    assert (best == 1).all()


def test_bad_input_is_refused_before_work_starts():
    with pytest.raises(ValueError, match="scale of a bonus must not be negative, got -1"):
        Bernstein(scale=-1.0)
    with pytest.raises(ValueError, match="episodes=0"):
        OptimisticPlanning(episodes=0)
    with pytest.raises(ValueError, match="needs a finite episodic problem, got str"):
        OptimisticPlanning().learner("tabular", seed=0)
    with pytest.raises(ValueError, match="makes its own policy"):
        OptimisticPlanning().learner(random_mdp(), TabularPolicy.single(random_mdp().baseline), seed=0)
