from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from policyopt.credit.returns import GeneralizedAdvantage
from policyopt.credit.weighted import ConstrainedAdvantage, WeightedAdvantage, relaxed
from policyopt.learners.update import Schedule
from policyopt.methods import c_morl
from policyopt.methods.c_morl import InteriorPoint, LeastCrowded, TrustRegion
from policyopt.models.archive import Archive
from policyopt.models.control import MLP
from policyopt.objectives.barrier import Barrier, log_barrier
from policyopt.objectives.pareto import (
    crowding_distance,
    expected_utility,
    hypervolume,
    non_dominated,
    simplex_grid,
    sparsity,
)
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.point_mass import PointMass
from policyopt.rollouts.vector import Vector
from policyopt.studies.c_morl import AtRandom
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, Outputs, Rollouts, generator

MASS = PointMass(horizon=5, episodes=2)
FRONT = np.array([[0.0, 10], [2, 9], [5, 6], [9, 1], [10, 0]])


# -- measures of a front


def test_crowding_distance_by_hand():
    np.testing.assert_allclose(crowding_distance(FRONT), [np.inf, 0.9, 1.5, 1.1, np.inf])
    order = np.array([3, 0, 4, 2, 1])
    np.testing.assert_allclose(crowding_distance(FRONT[order]), np.array([np.inf, 0.9, 1.5, 1.1, np.inf])[order])
    constant = np.column_stack([FRONT, np.ones(5)])  # an objective that is the same for all counts for nothing
    np.testing.assert_allclose(crowding_distance(constant), [np.inf, 0.9, 1.5, 1.1, np.inf])
    assert (crowding_distance(FRONT[:2]) == np.inf).all()


def test_hypervolume_sparsity_and_utility_by_hand():
    assert hypervolume(FRONT, (0, 0)) == pytest.approx(40)
    assert sparsity(FRONT) == pytest.approx(16.5)
    first = np.linspace(0, 1, 11)
    assert expected_utility(FRONT, np.column_stack([first, 1 - first])) == pytest.approx(7.790909, abs=1e-6)
    assert sparsity(FRONT[:1]) == 0.0
    with pytest.raises(ValueError, match="finite array"):
        sparsity(np.array([[1.0, np.nan]]))


def test_preferences_lie_on_the_simplex():
    assert len(simplex_grid(2, 0.2)) == 6
    assert len(simplex_grid(3, 0.5)) == 6
    assert len(simplex_grid(6, 1.0)) == 6
    assert len(simplex_grid(3, 0.25)) == 15
    grid = simplex_grid(4, 0.1)  # 0.1 is no binary number: nothing may be dropped for it
    assert len(np.unique(grid, axis=0)) == len(grid) == 286
    np.testing.assert_allclose(grid.sum(1), 1.0)
    assert (simplex_grid(1, 0.5) == 1).all()
    with pytest.raises(ValueError, match="divide 1"):
        simplex_grid(3, 0.3)


# -- the barrier


def test_barrier_by_hand():
    gain, margin = torch.full((4, 1), 10.0), torch.tensor([1.0])  # G = 10, bound 0.9 · 10
    assert log_barrier(torch.ones(4), gain, margin, t=20.0) == pytest.approx(0.0, abs=1e-6)
    ratio = torch.full((4,), 0.85, requires_grad=True)
    loss = log_barrier(ratio, gain, margin, t=20.0)
    assert float(loss.detach()) == pytest.approx(6.907755 / 20, abs=1e-6)
    assert float(loss.detach()) == pytest.approx(0.345388, abs=1e-6)
    loss.backward()
    assert (ratio.grad == 0).all()  # broken constraints are not mended


def test_barrier_has_the_gradient_of_the_constraint():
    gain, margin = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
    ratio = torch.ones(50, requires_grad=True)
    log_barrier(ratio, gain, margin, t=4.0).backward()
    torch.testing.assert_close(ratio.grad, -(gain / margin).sum(1) / 50 / 4.0)
    assert log_barrier(torch.ones(3), torch.zeros(3, 0), torch.zeros(0), t=1.0) == 0.0  # one objective: no barrier


def test_bounds_of_negative_returns_lie_below_them():
    torch.testing.assert_close(relaxed(torch.tensor([10.0, -10.0]), 0.9), torch.tensor([9.0, -11.0]))


def test_barrier_drops_the_objective_and_needs_whole_minibatches():
    batch = vector_batch()
    part = ConstrainedAdvantage(weights=(0.0, 1.0, 0.0))
    made = part(batch, part.memory())
    assert made.scores["gain"].shape == (4, 6, 2)
    alone = part.vector(batch)[1]
    torch.testing.assert_close(made.scores["gain"], alone[..., [0, 2]] * 6)  # rows of six steps, none ends
    whole = Barrier().prepare(made.replace(behaviour_logp=torch.zeros(4, 6)))
    with pytest.raises(ValueError, match="whole minibatch"):
        Barrier()(Outputs(logp=torch.zeros(2, 6)), whole[:2])


# -- advantages


def vector_batch(seed=0):
    rng = torch.Generator().manual_seed(seed)
    shape = (4, 6, 3)
    return Rollouts(
        actions=torch.zeros(4, 6),
        mask=torch.ones(4, 6, dtype=torch.bool),
        rewards=torch.rand(shape, generator=rng),
        value=torch.rand(shape, generator=rng),
        next_value=torch.rand(shape, generator=rng),
        discount=torch.full((4, 6), 0.9),
        terminated=torch.zeros(4, 6, dtype=torch.bool),
        truncated=torch.zeros(4, 6, dtype=torch.bool),
        batch_size=[4],
    )


@pytest.mark.parametrize("objective", range(3))
def test_a_unit_weight_is_the_advantage_of_its_objective(objective):
    batch, weights = vector_batch(), tuple(float(i == objective) for i in range(3))
    made = WeightedAdvantage(weights=weights)(batch)
    columns = {name: getattr(batch, name)[..., objective] for name in ("rewards", "value", "next_value")}
    scalar = GeneralizedAdvantage()(batch.replace(**columns))
    torch.testing.assert_close(made.advantage, scalar.advantage)
    torch.testing.assert_close(made.returns[..., objective], scalar.returns)
    part = ConstrainedAdvantage(weights=weights)
    assert torch.equal(part(batch, part.memory()).advantage, made.advantage)


def test_bounds_are_those_of_the_first_batch():
    first, later = vector_batch(0), vector_batch(1)
    first = first.replace(rewards=first.rewards * 2)
    for drifting in (False, True):
        part = ConstrainedAdvantage(weights=(1.0, 0.0, 0.0), drifting=drifting)
        memory = part.memory()
        start = part(first, memory).scores["margin"][0]
        g0, g1 = (b.rewards.sum((0, 1))[1:] / 4 for b in (first, later))
        torch.testing.assert_close(start, 0.1 * g0)
        wanted = g1 - 0.9 * (g1 if drifting else g0)
        torch.testing.assert_close(part(later, memory).scores["margin"][0], wanted)


def test_weights_must_match_the_rewards():
    with pytest.raises(ValueError, match="2 weights need rewards"):
        WeightedAdvantage(weights=(0.5, 0.5))(vector_batch())


# -- the archive


def policy():
    return MLP(hidden=(4,), standardize=False).build(PointMass(), 0)


def test_archive_keeps_what_nothing_dominates():
    archive, rng = Archive(policy(), 3, 200), np.random.default_rng(0)
    volume = 0.0
    for returns in rng.random((150, 3)):
        dominated = (archive.front >= returns).all(1).any()
        before = hypervolume(archive.front, np.zeros(3))
        assert archive.insert(returns, policy(), dict) == (not dominated)
        volume = hypervolume(archive.front, np.zeros(3))
        assert volume == before if dominated else volume > before
        assert non_dominated(archive.front).all()
    assert not archive.insert(archive.front[0], policy(), dict)  # an equal one adds nothing


def test_archive_respects_reference_and_capacity():
    archive = Archive(policy(), 2, 3, reference=(0.0, 0.0))
    assert not archive.insert(np.array([5.0, -1.0]), policy(), dict)
    for returns in FRONT + 1.0:
        archive.insert(returns, policy(), dict)
    assert len(archive.candidates) == 3
    assert [1.0, 11.0] in archive.front.tolist()  # the ends stay
    assert [11.0, 1.0] in archive.front.tolist()
    with pytest.raises(ValueError, match="reference point needs 2"):
        Archive(policy(), 2, 3, reference=(0.0,))


def test_each_row_acts_with_the_best_policy_for_its_preference():
    archive = Archive(policy(), 3, 10)
    members = [policy() for _ in range(3)]
    for i, member in enumerate(members):
        member.network[-1].bias.data += 10.0 * i
        archive.insert(np.eye(3)[i], member, dict)
    preferences = torch.tensor([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0.0, 1.0, 0.0]])
    x = torch.randn(4, 4)
    actions, _, memory = archive.act(x, preferences, torch.Generator(), True)
    wanted = torch.stack([members[i](x[row]) for row, i in enumerate([1, 0, 2, 1])])
    torch.testing.assert_close(actions, wanted)
    assert memory is preferences
    drawn = archive.act(x, None, torch.Generator().manual_seed(0))[2]
    torch.testing.assert_close(drawn.sum(1), torch.ones(4))


# -- the learner


def tiny(**changes):
    method = c_morl.method()
    base = replace(
        method.base,
        policy=MLP(hidden=(8,), standardize=True),
        collector=Vector(environments=4, steps=5, gamma=0.995),
        epochs=2,
        minibatches=2,
    )
    settings = {"spacing": 1.0, "selected": 2, "updates": 2, "episodes": 2, "evaluate_every": 1, **changes}
    return replace(method, base=base, **settings)


def learner(method, seed=0, steps=400):
    return method.learner(MASS, seed=seed, budget=Budget(env_steps=steps))


def weights_of(live):
    return torch.cat([p.detach().flatten() for p in live.policy.parameters()])


@pytest.mark.parametrize("extension", [InteriorPoint(), TrustRegion()])
@pytest.mark.parametrize("stop", [4, 15])
def test_resume_is_bit_identical(extension, stop):
    method = tiny(extension=extension)
    straight, resumed = learner(method), learner(method)
    for _ in range(stop):
        straight.step()
    resumed.load_state_dict(deepcopy(straight.state_dict()))
    assert straight.clock.share == resumed.clock.share
    for _ in range(20 - stop):
        one, two = straight.step(), resumed.step()
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    assert np.array_equal(straight.policy.front, resumed.policy.front)


def test_stages_follow_the_budget_and_every_policy_is_evaluated():
    live = learner(tiny())
    rows = [live.step() for _ in range(20)]
    assert [row["stage"] for row in rows] == [1.0] * 14 + [2.0] * 6  # two thirds of 20 updates, from below
    assert rows[0]["cost/env_steps"] == 20
    assert rows[0]["evaluation/env_steps"] == 10  # two episodes of 5 steps, not part of the budget
    assert live.clock.spent["env_steps"] == 400
    assert len(live.queue) == 2 * 3 - 3  # six extensions of two updates, three of them done
    assert non_dominated(live.policy.front).all()


def test_a_vector_is_never_selected_twice():
    live = learner(tiny(selected=2))
    for i in range(5):
        live.policy.insert(np.array([i, 5.0 - i, 1.0]), policy(), dict)
    picked = [start.returns.tolist() for _ in range(2) for start, objective in live._select() if objective == 0]
    assert len(picked) == 4
    assert len({tuple(p) for p in picked}) == 4
    assert len(live._select()) == 3  # the last one
    assert len(live.selected) == 5
    assert len(live._select()) == 6  # all were selected: from the beginning
    assert len(live.selected) == 2


def test_selection_takes_the_least_crowded():
    rng = generator(0, "selection")
    assert LeastCrowded()(FRONT, rng) == [0, 4, 2, 3, 1]
    assert sorted(AtRandom()(FRONT, rng)) == [0, 1, 2, 3, 4]


def extended(extension, start, objective=1):
    """The weights after one update of the extension."""
    method = tiny(extension=extension)
    live = extension.apply(method.base, tuple(float(i == objective) for i in range(3)))
    made = live.learner(MASS, seed=5)
    c_morl._restore(made, start)
    made.step()
    return weights_of(made)


def test_without_barrier_the_extension_is_ppo_on_its_objective():
    method = tiny()
    member = learner(method).members[0]
    member.step()
    start = c_morl._snapshot(member)
    weights = (0.0, 1.0, 0.0)
    credit = tuple(replace(p, weights=weights) if isinstance(p, WeightedAdvantage) else p for p in method.base.credit)
    plain = replace(
        method.base,
        credit=credit,
        optimizer=replace(method.base.optimizer, schedule=Schedule()),
        critic=replace(method.base.critic, optimizer=replace(method.base.critic.optimizer, schedule=Schedule())),
    ).learner(MASS, seed=5)
    c_morl._restore(plain, start)
    plain.step()
    wanted = weights_of(plain)
    assert torch.equal(extended(InteriorPoint(t=float("inf")), start), wanted)
    assert not torch.equal(extended(InteriorPoint(t=20.0), start), wanted)


def test_an_extension_leaves_its_start_as_it_was():
    live = learner(tiny())
    for _ in range(15):
        live.step()
    start = live.queue[0][0]
    before, alone = deepcopy(start.state), start.policy.frozen_copy()
    live.step()
    torch.testing.assert_close(weights_of(start), weights_of(type("x", (), {"policy": alone})), rtol=0, atol=0)
    for name, tensor in before["policy"].items():
        assert torch.equal(start.state["policy"][name], tensor)
    for moments, kept in zip(before["optimizer"].values(), start.state["optimizer"].values(), strict=True):
        assert torch.equal(moments["exp_avg"], kept["exp_avg"])


def test_it_trains_in_the_loop_and_on_other_environments():
    result = run(tiny(), MASS, budget=Budget(env_steps=200), seed=0, cadence=Cadence(evaluations=2))
    assert result.last("front/expected_utility") > 0
    assert result.last("eval/return") > 0
    tree = GymnasiumProblem(id="fruit-tree-v0", options={"depth": 5}, episodes=1)
    found = run(tiny(reference=(-1.0,) * 6, episodes=1), tree, budget=Budget(env_steps=300), seed=0)
    assert found.last("front/hypervolume") > 1.0


def test_policies_whose_turn_never_came_join_the_archive_too():
    live = learner(tiny(initial_share=0.01))
    for _ in range(4):
        live.step()
    assert live.members == []
    assert live.policy.candidates


def test_bad_input():
    with pytest.raises(ValueError, match="vector reward"):
        c_morl.method().learner(GymnasiumProblem(id="CartPole-v1"), seed=0, budget=Budget(updates=1))
    with pytest.raises(ValueError, match="give one"):
        c_morl.method().learner(PointMass(), seed=0)
    with pytest.raises(ValueError, match="initial_share"):
        tiny(initial_share=0.0)
    starving = learner(tiny(reference=(1e6,) * 3, initial_share=0.01))
    starving.step()
    with pytest.raises(ValueError, match="lower it"):
        starving.step()
