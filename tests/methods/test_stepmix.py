from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from policyopt.learners.tabular import Counts, Hoeffding, Model, Safeguard, TabularPolicy
from policyopt.methods import stepmix, ucbvi
from policyopt.methods.stepmix import (
    EpisodeMixture,
    KnownBaseline,
    LoggedBaseline,
    StepMixture,
    certified_weight,
    cloned_policy,
    switching_policies,
)
from policyopt.problems.decision.tabular import random_mdp
from policyopt.training import loop
from policyopt.types import Budget

CONSERVATIVE = [stepmix.method, stepmix.epsmix, stepmix.all_or_nothing]


def random_policies(problem, count, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(problem.actions), size=(count, *problem.rewards.shape[:2]))


def with_lower_bounds(*lower):
    """A stand-in for a model, whose certificates are given."""
    return SimpleNamespace(bounds=lambda policies: (None, np.array(lower)))


def well_known_model(problem, visits=2e4):
    """The true model under a Hoeffding bonus too small for any bound to reach its cap."""
    return Model(
        transitions=problem.transitions,
        rewards=0.5 + 0.4 * problem.rewards,
        visits=np.full(problem.rewards.shape, visits),
        bonus=Hoeffding(),
        log_term=8.0,
    )


def exact_value(problem, policy):
    return float(policy.weights @ problem.value(policy.probabilities))


def run(method, problem, episodes, seed=0):
    """The learner, and before every episode the policy that it follows."""
    learner, played = method.learner(problem, seed=seed), []
    for _ in range(episodes):
        played.append(learner.policy)
        learner.step()
    return learner, played


def first_mixture(method, problem, found, episodes=3000):
    """The learner at the first episode whose policy ``found`` accepts."""
    learner = method.learner(problem, seed=0)
    for _ in range(episodes):
        if found(learner.policy):
            return learner
        learner.step()
    raise AssertionError("no mixture was ever played")


def test_the_weight_certifies_the_threshold_exactly():
    rho = certified_weight(0.62, 0.40, 0.55)
    assert rho == pytest.approx(0.318182, abs=1e-6)
    assert (1 - rho) * 0.62 + rho * 0.40 == pytest.approx(0.55, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_value_of_a_step_mixture_is_linear_in_the_weight(seed):
    problem = random_mdp(seed=seed)
    baseline, optimistic = random_policies(problem, 2, seed)
    candidates = switching_policies(baseline, optimistic)
    values = problem.value(candidates)
    assert np.ptp(values) > 1e-3
    for rho in (0.25, 0.318182, 0.9):
        mixed = (1 - rho) * candidates[1:] + rho * candidates[:-1]
        assert problem.value(mixed) == pytest.approx((1 - rho) * values[1:] + rho * values[:-1], abs=1e-12)


def test_candidates_run_from_the_optimistic_policy_to_the_baseline():
    problem = random_mdp(seed=0)
    baseline, optimistic = random_policies(problem, 2)
    candidates = switching_policies(baseline, optimistic)
    assert candidates.shape == (problem.horizon + 1, *problem.rewards.shape)
    assert (candidates[0] == optimistic).all()
    assert (candidates[-1] == baseline).all()
    for switch, candidate in enumerate(candidates):
        assert (candidate[:switch] == baseline[:switch]).all()
        assert (candidate[switch:] == optimistic[switch:]).all()


@pytest.mark.parametrize("make", CONSERVATIVE)
def test_with_nothing_to_lose_every_rule_is_ucbvi_episode_for_episode(make):
    problem = random_mdp(seed=1)
    free, free_played = run(ucbvi.method(), problem, 60)
    for requirement in (KnownBaseline(relaxation=1.0), ucbvi.method().requirement):
        bound, bound_played = run(replace(make(), requirement=requirement), problem, 60)
        assert (free.counts.transitions == bound.counts.transitions).all()
        pairs = zip(free_played, bound_played, strict=True)
        assert all((a.probabilities == b.probabilities).all() for a, b in pairs)


@pytest.mark.parametrize("make", CONSERVATIVE)
def test_with_no_margin_only_the_baseline_is_played_and_still_counted(make):
    problem = random_mdp(seed=1)
    learner, played = run(replace(make(), requirement=KnownBaseline(relaxation=0.0)), problem, 200)
    assert all((each.probabilities == problem.baseline).all() and len(each.weights) == 1 for each in played)
    assert learner.counts.visits.sum() == 200 * problem.horizon


def test_the_first_certified_candidate_is_mixed_with_its_uncertified_neighbour():
    problem = random_mdp(seed=2, horizon=4)
    baseline, optimistic = random_policies(problem, 2)
    # certificates need not be monotone: number 2 is the first, number 3 is below the threshold again
    model = with_lower_bounds(0.1, 0.40, 0.62, 0.5, 0.7)
    mixed = StepMixture()(model, optimistic, Safeguard(baseline, 0.55)).probabilities[0]
    before, after = switching_policies(baseline, optimistic)[1:3]
    assert mixed.sum(-1) == pytest.approx(np.ones(mixed.shape[:-1]))
    for h in (0, 2, 3):
        assert (mixed[h] == before[h]).all()
        assert (mixed[h] == after[h]).all()
    assert mixed[1] == pytest.approx((1 - 0.318182) * baseline[1] + 0.318182 * optimistic[1], abs=1e-6)


@pytest.mark.parametrize(
    ("lower", "expected"),
    [((0.55, 0.1, 0.1, 0.1, 0.1), "optimistic"), ((0.1, 0.9, 0.9, 0.9, 0.54), "baseline")],
)
def test_a_certified_optimistic_policy_is_played_and_an_uncertified_baseline_too(lower, expected):
    problem = random_mdp(seed=2, horizon=4)
    baseline, optimistic = random_policies(problem, 2)
    played = StepMixture()(with_lower_bounds(*lower), optimistic, Safeguard(baseline, 0.55)).probabilities
    assert (played == {"optimistic": optimistic, "baseline": baseline}[expected]).all()


def test_uncapped_bounds_with_a_value_free_bonus_are_linear_too():
    problem = random_mdp(seed=3)
    model = well_known_model(problem)
    baseline, optimistic = random_policies(problem, 2)
    candidates = switching_policies(baseline, optimistic)
    if model.bounds(optimistic)[1] > model.bounds(baseline)[1]:
        baseline, optimistic = optimistic, baseline
        candidates = switching_policies(baseline, optimistic)
    lower = model.bounds(candidates)[1]
    threshold = 0.5 * (lower[0] + lower[-1])
    mixed = StepMixture()(model, optimistic, Safeguard(baseline, threshold)).probabilities
    assert model.bounds(mixed)[1] == pytest.approx([threshold], abs=1e-12)
    assert not any(np.allclose(mixed, each) for each in candidates)


def test_the_coin_certifies_the_threshold_in_expectation():
    problem = random_mdp(seed=100)
    method = replace(stepmix.epsmix(), requirement=KnownBaseline(relaxation=0.5))
    learner = first_mixture(method, problem, lambda policy: len(policy.weights) == 2)
    model = Model.estimated(learner.counts, learner.method.bonus, learner.log_term, problem.start)
    _, lower = model.bounds(learner.policy.probabilities)
    assert lower[0] < learner.safeguard.threshold < lower[1]
    assert learner.policy.weights @ lower == pytest.approx(learner.safeguard.threshold, abs=1e-12)
    assert learner.policy.weights.sum() == pytest.approx(1.0)
    assert 0 < learner.policy.weights[0] < 1


def test_the_coins_expectation_is_what_episodes_return():
    problem = random_mdp(seed=1)
    pair = np.stack((random_policies(problem, 1)[0], problem.baseline))
    model = with_lower_bounds(0.2, 0.8)
    policy = EpisodeMixture()(model, pair[0], Safeguard(pair[1], 0.5))
    assert policy.weights == pytest.approx([0.5, 0.5])
    returns = problem.play(policy.act, 20_000, torch.Generator().manual_seed(0)).rewards.sum(-1)
    assert abs(returns.mean() - exact_value(problem, policy)) < 4 * returns.std() / np.sqrt(len(returns))


def test_step_mixtures_are_played_and_stay_above_the_threshold_where_ucbvi_does_not():
    problem = random_mdp(seed=102, actions=5, horizon=3, concentration=1.0, reward_share=1.0)
    learner, played = run(replace(stepmix.method(), requirement=KnownBaseline(relaxation=0.4)), problem, 400)
    threshold = 0.6 * problem.value(problem.baseline)
    assert learner.safeguard.threshold == pytest.approx(threshold)
    shares = [each.probabilities[(each.probabilities != problem.baseline[None])] for each in played]
    assert sum(bool(np.any((each > 0) & (each < 1))) for each in shares) > 50  # neither one's own: mixed
    assert min(exact_value(problem, each) for each in played) >= threshold
    assert min(exact_value(problem, each) for each in run(ucbvi.method(), problem, 100)[1]) < threshold


def test_the_threshold_is_a_share_of_the_exact_value():
    problem = random_mdp(seed=4)
    safeguard = KnownBaseline(relaxation=0.3)(problem, Counts(problem.rewards.shape, problem.states), 0)
    assert (safeguard.policy == problem.baseline).all()
    assert safeguard.threshold == pytest.approx(0.7 * problem.value(problem.baseline))


def test_a_logged_baseline_is_counted_cloned_and_held_to_a_raised_value():
    problem = random_mdp(seed=4)
    counts = Counts(problem.rewards.shape, problem.states)
    safeguard = LoggedBaseline(episodes=400, relaxation=0.2)(problem, counts, 3)
    assert counts.visits.sum() == 400 * problem.horizon
    step, state = np.unravel_index(counts.visits.sum(-1)[1:].argmax(), counts.visits.shape[:2])
    share = counts.visits[step + 1, state] / counts.visits[step + 1, state].sum()
    assert safeguard.policy[step + 1, state] == pytest.approx(share)
    mean = counts.rewards.sum() / 400
    assert 0.8 * mean < safeguard.threshold < 0.8 * (mean + 3 * problem.horizon / np.sqrt(400))
    unraised = LoggedBaseline(episodes=400, relaxation=0.2, standard_errors=0.0)
    again = unraised(problem, Counts(problem.rewards.shape, problem.states), 3)
    assert again.threshold == pytest.approx(0.8 * mean)


def test_a_long_log_gives_the_baseline_itself():
    problem = random_mdp(seed=4)
    counts = Counts(problem.rewards.shape, problem.states)
    safeguard = LoggedBaseline(episodes=100_000)(problem, counts, 0)
    often = counts.visits.sum(-1) > 5000
    assert often.sum() > 10
    assert safeguard.policy[often] == pytest.approx(problem.baseline[often], abs=0.03)
    assert safeguard.threshold == pytest.approx(0.9 * problem.value(problem.baseline), rel=0.02)


def test_a_cloned_policy_is_uniform_where_the_log_is_empty():
    assert (cloned_policy(Counts((2, 3, 4), 3)) == 0.25).all()


@pytest.mark.parametrize("make", [*CONSERVATIVE, stepmix.offline, ucbvi.method])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make):
    problem = random_mdp(seed=100)
    method = make()
    if isinstance(method.requirement, KnownBaseline):  # relaxed enough to mix within a few hundred episodes
        method = replace(method, requirement=replace(method.requirement, relaxation=0.5))
    whole = method.learner(problem, seed=5)
    first = [whole.step() for _ in range(150)]
    state = whole.state_dict()
    rest = [whole.step() for _ in range(150)]
    resumed = method.learner(problem, seed=5)
    resumed.load_state_dict(state)
    assert [resumed.step() for _ in range(150)] == rest
    assert first != rest
    assert (whole.policy.probabilities != whole.safeguard.policy).any() == (make != stepmix.all_or_nothing)
    assert (resumed.policy.probabilities == whole.policy.probabilities).all()
    assert (resumed.policy.weights == whole.policy.weights).all()


def test_the_state_is_made_of_tensors_and_numbers_and_is_a_copy():
    learner = stepmix.method().learner(random_mdp(seed=0), seed=0)
    state = learner.state_dict()
    learner.step()
    assert state["clock"]["step"] == 0
    assert all(isinstance(each, torch.Tensor) and each.sum() == 0 for each in state["counts"].values())


class Interrupt:
    """A tracker that stops the run as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def write(self, step, row):
        if step == self.step:
            raise KeyboardInterrupt

    def close(self):
        pass


def test_the_loop_trains_evaluates_and_resumes(tmp_path):
    problem, budget = random_mdp(seed=0), Budget(env_steps=160)
    whole = loop.run(stepmix.method(), problem, budget=budget, seed=1)
    assert whole.learner.clock.step == 160 / problem.horizon
    assert np.isfinite(whole.curve("eval/return")[1]).all()
    with pytest.raises(KeyboardInterrupt):
        loop.run(stepmix.method(), problem, budget=budget, seed=1, out=tmp_path, trackers=[Interrupt(17)])
    resumed = loop.run(stepmix.method(), problem, budget=budget, seed=1, out=tmp_path, resume=True)
    assert (resumed.learner.counts.transitions == whole.learner.counts.transitions).all()
    assert resumed.learner.clock.spent == whole.learner.clock.spent
    assert resumed.last("eval/return") == whole.last("eval/return")


def test_runs_of_one_seed_repeat_and_of_two_differ():
    problem = random_mdp(seed=0)
    a, b, c = (run(stepmix.method(), problem, 20, seed)[0].counts.transitions for seed in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()


def test_compositions_differ_in_their_parts_alone():
    assert replace(stepmix.epsmix(), exploration=StepMixture()) == stepmix.method()
    assert replace(stepmix.offline(), requirement=KnownBaseline()) == stepmix.method()
    assert replace(stepmix.all_or_nothing(), exploration=StepMixture()) == stepmix.method()
    assert stepmix.method().bonus == ucbvi.method().bonus


def test_bad_input_is_refused_before_work_starts():
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        KnownBaseline(relaxation=1.5)
    with pytest.raises(ValueError, match="at least two logged episodes, got 1"):
        LoggedBaseline(episodes=1)
    bare = replace(random_mdp(), baseline=None)
    for make in (stepmix.method, stepmix.offline):
        with pytest.raises(ValueError, match="has no baseline"):
            make().learner(bare, seed=0)


def test_the_policy_is_a_single_one_without_a_coin():
    policy = TabularPolicy.single(random_mdp().baseline)
    assert policy.weights.tolist() == [1.0]
