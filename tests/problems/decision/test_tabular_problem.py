import numpy as np
import pytest
import torch

from policyopt.problems.decision.tabular import TabularMDP, parse, random_mdp


def uniform(problem):
    return np.full(problem.rewards.shape, 1.0 / problem.actions)


def follow(policy):
    def act(observation, memory, rng, greedy):
        rows = torch.from_numpy(policy[observation[:, 0], observation[:, 1]])
        return torch.multinomial(rows, 1, generator=rng)[:, 0].numpy(), {}, None

    return act


def value_by_enumeration(problem, policy, h=0, state=None):
    """Sum over all futures, one at a time."""
    state = problem.start if state is None else state
    if h == problem.horizon:
        return 0.0
    total = 0.0
    for action in range(problem.actions):
        future = sum(
            problem.transitions[h, state, action, after] * value_by_enumeration(problem, policy, h + 1, after)
            for after in range(problem.states)
        )
        total += policy[h, state, action] * (problem.rewards[h, state, action] + future)
    return total


def test_values_equal_the_sum_over_all_futures():
    problem = random_mdp(states=3, actions=2, horizon=3, seed=4)
    policies = np.stack([uniform(problem), problem.baseline])
    assert problem.value(policies) == pytest.approx(
        [value_by_enumeration(problem, each) for each in policies], abs=1e-12
    )


def test_the_optimal_value_is_the_best_of_all_deterministic_policies():
    problem = random_mdp(states=2, actions=2, horizon=2, seed=1)
    choices = np.indices((2,) * 4).reshape(4, -1).T  # an action for each of the 4 pairs (step, state)
    values = problem.value(np.eye(2)[choices].reshape(-1, 2, 2, 2))
    assert problem.optimal_value == pytest.approx(values.max(), abs=1e-12)
    assert values.max() > values.min() + 0.1


def test_the_baseline_is_the_softmax_of_the_optimal_action_values():
    problem = random_mdp(seed=3, inverse_temperature=2.0)
    q = problem.optimal_q[1, 2]
    assert problem.baseline[1, 2] == pytest.approx(np.exp(2 * q) / np.exp(2 * q).sum())


def test_sampled_returns_agree_with_the_exact_value():
    problem = random_mdp(seed=0)
    returns = problem.play(follow(problem.baseline), 20_000, torch.Generator().manual_seed(0)).rewards.sum(-1)
    error = returns.std() / np.sqrt(len(returns))
    assert abs(returns.mean() - problem.value(problem.baseline)) < 4 * error
    assert error < 0.01


def test_sampled_transitions_have_the_right_frequencies():
    problem = random_mdp(seed=0)
    episodes = problem.play(follow(uniform(problem)), 30_000, torch.Generator().manual_seed(1))
    assert (episodes.states[:, 0] == problem.start).all()
    taken = episodes.actions[:, 0] == 1
    after = np.bincount(episodes.states[taken, 1], minlength=problem.states) / taken.sum()
    assert after == pytest.approx(problem.transitions[0, 0, 1], abs=0.02)
    assert episodes.rewards[taken, 0] == pytest.approx(problem.rewards[0, 0, 1])


def test_evaluation_reports_the_return_and_the_regret():
    problem = random_mdp(seed=0)
    found = problem.evaluate(follow(problem.baseline), torch.Generator().manual_seed(0))
    assert found["eval/return"] + found["eval/regret"] == pytest.approx(problem.optimal_value)


def test_the_sparse_and_the_paper_environments():
    sparse, paper = random_mdp(seed=5), random_mdp(seed=5, actions=5, horizon=3, concentration=1.0, reward_share=1.0)
    assert sparse.transitions.shape == (4, 5, 3, 5)
    assert paper.transitions.shape == (3, 5, 5, 5)
    assert 0.2 < (sparse.rewards == 0).mean() < 0.8
    assert (paper.rewards > 0).all()


def test_a_problem_is_the_same_from_the_same_seed_alone():
    assert (random_mdp(seed=2).transitions == random_mdp(seed=2).transitions).all()
    assert (random_mdp(seed=2).transitions != random_mdp(seed=3).transitions).any()


def test_parse_reads_the_options():
    problem = parse("states=4,concentration=0.5,seed=7")
    expected = random_mdp(states=4, concentration=0.5, seed=7)
    assert (problem.transitions == expected.transitions).all()
    assert problem.name == expected.name == "tabular-4x3x4-7"
    assert parse().rewards.shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("state=4", "did you mean 'states'"),
        ("states=four", "cannot read states=four"),
        ("horizon=0", "must be positive"),
    ],
)
def test_parse_says_what_is_wrong(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rewards": np.zeros((4, 5))}, "transitions must be"),
        ({"rewards": np.full((4, 5, 3), 1.5)}, r"rewards must lie in \[0, 1\]"),
        ({"rewards": np.full((4, 5, 3), np.nan)}, r"rewards must lie in \[0, 1\]"),
        ({"start": 5}, "start state must be one of 0..4"),
        ({"transitions": np.full((4, 5, 3, 5), 0.3)}, "transitions: every row"),
        ({"baseline": np.full((4, 5, 2), 0.5)}, "baseline must be"),
        ({"baseline": np.full((4, 5, 3), 0.5)}, "the baseline: every row"),
    ],
)
def test_arrays_that_make_no_problem_are_refused(change, said):
    good = random_mdp()
    with pytest.raises(ValueError, match=said):
        TabularMDP(**({"name": "bad", "transitions": good.transitions, "rewards": good.rewards} | change))
