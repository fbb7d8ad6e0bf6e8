"""N-PG-IGT and N-HARPG: schedules, directions on exact gradients, estimates against the Hessian, and the learner."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch.func import functional_call, hessian

from policyopt import registry
from policyopt.credit.reward_to_go import Coefficients, LinearBaseline, RewardToGo, weight_from_start
from policyopt.learners.update import NonFinite
from policyopt.methods import n_pg_igt
from policyopt.methods.n_pg_igt import Decay, HessianCorrected, Iterate, Momentum, Transported
from policyopt.models.categorical import CategoricalPolicy
from policyopt.models.control import MLP
from policyopt.models.linear import Linear
from policyopt.problems.control.chain import Chain
from policyopt.problems.control.lqr import LQR
from policyopt.rollouts.episodes import Episodes
from policyopt.types import Clock, Rollouts, generator

CURVATURE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


@dataclass
class Quadratic:
    """J(θ) = -½ θ·C θ without noise; ``asked`` is where gradients were asked for."""

    curvature: torch.Tensor = field(default_factory=lambda: CURVATURE)
    asked: list[torch.Tensor] = field(default_factory=list)

    def gradient(self, point):
        self.asked.append(point)
        return -self.curvature @ point

    def product(self, point, vector):
        return -self.curvature @ vector

    def uniform(self):
        return 0.3


def test_schedules_by_hand():
    share, step = Decay(power=4 / 5), Decay(power=1.0)
    assert [share(0), step(0)] == [1.0, 1.0]
    for t, eta, look_ahead, size in (
        (1, 0.722981, 0.383162, 0.666667),
        (2, 0.574349, 0.741101, 0.5),
        (6, 0.329877, 2.031433, 0.25),
    ):
        assert share(t) == pytest.approx(eta, abs=1e-6) and step(t) == pytest.approx(size, abs=1e-6)
        assert (1 - share(t)) / share(t) == pytest.approx(look_ahead, abs=1e-6)
    assert n_pg_igt.n_harpg().direction.share(2) == pytest.approx(0.5)
    assert n_pg_igt.harpg().step_size(2) == pytest.approx(0.707107, abs=1e-6)
    assert n_pg_igt.pg().step_size(1) == pytest.approx(0.763143, abs=1e-6)
    assert n_pg_igt.nsgdm().direction.share(1) == pytest.approx(0.763143, abs=1e-6)


def test_a_transported_step_by_hand():
    class One(Quadratic):
        def gradient(self, point):
            self.asked.append(point)
            return torch.ones(1)

    oracle, at = One(), Iterate(torch.tensor([0.9]), torch.tensor([1.0]), torch.tensor([2.0]))
    direction = Transported()(oracle, at, 1)
    assert float(oracle.asked[0]) == pytest.approx(0.861684, abs=1e-6)
    assert float(direction) == pytest.approx(1.277019, abs=1e-6)


def ascend(direction, oracle, steps=12, size=0.1):
    """(iterates, directions) of normalized steps."""
    at, seen = Iterate(torch.tensor([1.0, -2.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64), None), []
    for t in range(steps):
        d = direction(oracle, at, t)
        seen.append((at.current, d))
        at = Iterate(at.current + size * d / d.norm(), at.current, d)
    return seen


@pytest.mark.parametrize("direction", [Transported(), HessianCorrected()])
def test_without_noise_the_direction_is_the_exact_gradient_of_a_quadratic(direction):
    for point, d in ascend(direction, Quadratic()):
        assert torch.allclose(d, -CURVATURE @ point, atol=1e-12)


def test_plain_momentum_is_not():
    point, d = ascend(Momentum(), Quadratic())[-1]
    assert (d + CURVATURE @ point).norm() > 0.05


class Constant(Decay):
    def __call__(self, step):
        return self.initial


@pytest.mark.parametrize("kind", [Momentum, Transported, HessianCorrected])
def test_with_a_share_of_one_it_is_the_plain_gradient(kind):
    plain = ascend(n_pg_igt.Direction(), Quadratic())
    for (a, d), (b, e) in zip(ascend(kind(share=Constant()), Quadratic()), plain, strict=True):
        assert torch.equal(a, b) and torch.equal(d, e)


# Estimates, on a bandit of three arms whose policy is the softmax of its parameters

THETA, REWARD = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64), torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
HESSIAN = torch.tensor(
    [[-0.017791, 0.111820, -0.094030], [0.111820, -0.145280, 0.033459], [-0.094030, 0.033459, 0.060570]]
)


def expected_reward(theta):
    return theta.softmax(0) @ REWARD


def bandit(theta=THETA):
    policy = CategoricalPolicy(1, 3, (), generator(0, "bandit")).double()
    policy.network[0].register_parameter("bias", None)
    with torch.no_grad():
        policy.network[0].weight.copy_(theta[:, None])
    return policy, list(policy.parameters())


def pulls(actions):
    rows = len(actions)
    return Rollouts(
        actions=torch.tensor(actions)[:, None],
        mask=torch.ones(rows, 1, dtype=torch.bool),
        observations=torch.ones(rows, 1, 1, dtype=torch.float64),
        advantage=REWARD[actions][:, None],
        batch_size=[rows],
    )


def product_matrix(actions, theta=THETA):
    policy, parameters = bandit(theta)
    unit = torch.eye(3, dtype=torch.float64)
    return torch.stack([n_pg_igt.hessian_product(policy, pulls(actions), parameters, v) for v in unit], 1)


def test_gradient_and_hessian_of_the_bandit():
    policy, parameters = bandit()
    pi = THETA.softmax(0)
    assert pi.tolist() == pytest.approx([0.337585, 0.250089, 0.412327], abs=1e-6)
    g = sum(p * n_pg_igt.gradient_estimate(policy, pulls([a]), parameters) for a, p in enumerate(pi))
    assert g.tolist() == pytest.approx([-0.054769, -0.290663, 0.345432], abs=1e-6)
    mean = sum(p * product_matrix([a]) for a, p in enumerate(pi))
    assert torch.allclose(mean.float(), HESSIAN, atol=2e-6)
    assert torch.allclose(mean, hessian(expected_reward)(THETA), atol=1e-12)


def test_the_product_of_one_pull():
    expected = [[-0.219316, 0.337704, -0.118389], [0.337704, -0.25, -0.087704], [-0.118389, -0.087704, 0.206093]]
    assert torch.allclose(product_matrix([2]).float(), torch.tensor(expected), atol=1e-6)


def test_a_batch_has_the_mean_product():
    each = torch.stack([product_matrix([a]) for a in (0, 2, 2, 1)])
    assert torch.allclose(product_matrix([0, 2, 2, 1]), each.mean(0), atol=1e-12)


def test_products_along_a_segment_add_up_to_the_difference_of_gradients():
    moved = torch.tensor([0.3, 0.0, -0.5], dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for x, w in zip(*np.polynomial.legendre.leggauss(8), strict=True):
        theta = THETA + (x + 1) / 2 * moved
        total += w / 2 * sum(p * product_matrix([a], theta) for a, p in enumerate(theta.softmax(0))) @ moved
    first = torch.func.grad(expected_reward)
    assert torch.allclose(total, first(THETA + moved) - first(THETA), atol=1e-12)
    assert total.tolist() == pytest.approx([0.054769, 0.029028, -0.083797], abs=1e-6)


def test_the_product_of_a_trajectory_against_formed_matrices():
    """B of five steps of a Gaussian network, from ∇Φ (∇ log p)ᵀ + ∇²Φ with both matrices formed."""
    policy = MLP(hidden=(3,), standardize=False).build(LQR(), 0)
    batch = RewardToGo()(Episodes()(policy, LQR(horizon=5), Clock(seed=3)).batches["rollouts"])
    policy = policy.double()
    policy.network = torch.nn.Sequential(*policy.network)  # plain layers, which torch.func can differentiate
    batch = batch.replace(observations=batch.observations.double(), actions=batch.actions.double())
    named = dict(policy.named_parameters())

    def total(flat, weight):
        pieces = flat.split([p.numel() for p in named.values()])
        given = {name: piece.view_as(named[name]) for name, piece in zip(named, pieces, strict=True)}
        deviation = given["log_deviation"].exp()
        standard = (batch.actions - functional_call(policy, given, (batch.observations,))) / deviation
        return (weight * -(0.5 * standard.square() + deviation.log()).sum(-1)).sum()

    parameters, one = list(named.values()), torch.ones(1, dtype=torch.float64)
    flat = torch.cat([p.detach().flatten() for p in parameters])
    slope, score = (torch.func.grad(total)(flat, weight) for weight in (batch.advantage, one))
    matrix = torch.outer(slope, score) + hessian(total)(flat, batch.advantage)
    vector = torch.randn(len(flat), generator=generator(0, "v"), dtype=torch.float64)
    found = n_pg_igt.hessian_product(policy, batch, parameters, vector)
    assert torch.allclose(found, matrix @ vector, rtol=1e-9)


# Credit and trajectories


def test_reward_to_go_by_hand():
    rewards, discount = torch.tensor([[1.0, 2.0, 4.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    batch = Rollouts(actions=mask.long(), mask=mask, rewards=rewards, discount=discount, batch_size=[1])
    assert weight_from_start(discount).tolist() == [[1.0, 0.5, 0.25, 0.0]]
    assert RewardToGo()(batch).advantage.tolist() == [[3.0, 2.0, 1.0, 0.0]]
    assert RewardToGo(from_start=False)(batch).advantage.tolist() == [[3.0, 4.0, 4.0, 0.0]]


def test_a_baseline_is_that_of_the_batch_before():
    problem, policy, credit = LQR(), Linear().build(LQR(), 0), LinearBaseline()
    clock, memory = Clock(seed=1), Coefficients()
    first = Episodes(episodes=200, gamma=0.95)(policy, problem, clock).batches["rollouts"]
    second = Episodes(episodes=200, gamma=0.95, stream="other")(policy, problem, clock).batches["rollouts"]
    assert torch.equal(credit(first, memory).advantage, RewardToGo()(first).advantage)
    kept = memory.fitted.clone()
    plain, with_baseline = RewardToGo()(second).advantage, credit(second, memory).advantage
    assert with_baseline.square().mean() < 0.5 * plain.square().mean()
    assert not torch.equal(kept, memory.fitted)


def test_episodes_end_where_they_end():
    problem = registry.problem("gym:CartPole-v1")
    policy = n_pg_igt.PolicyAscent().policy.build(problem, 0)
    collected = Episodes(episodes=5, gamma=0.9)(policy, problem, Clock(seed=0))
    batch = collected.batches["rollouts"]
    length = batch.mask.sum(1)
    assert len(set(length.tolist())) > 1 and batch.mask.shape[1] == int(length.max())
    assert torch.equal(batch.terminated.nonzero()[:, 1], length - 1)
    assert torch.equal(batch.discount > 0, batch.mask & ~batch.terminated)
    assert collected.metrics["cost/env_steps"] == float(length.sum()) == float(batch.rewards.sum())
    cut = Episodes(episodes=5, limit=4)(policy, problem, Clock(seed=0)).batches["rollouts"]
    assert cut.truncated[:, -1].all() and not cut.terminated.any()


def test_steps_behind_an_end_count_for_nothing():
    """A batch's gradient is the mean over its trajectories, each cut to its own length."""
    problem = registry.problem("gym:CartPole-v1")
    policy = n_pg_igt.PolicyAscent().policy.build(problem, 0)
    batch = RewardToGo()(Episodes(episodes=4)(policy, problem, Clock(seed=0)).batches["rollouts"])
    parameters = list(policy.parameters())
    alone = []
    for row in range(4):
        steps = int(batch.mask[row].sum())
        logp = policy(batch.observations[row, :steps]).log_softmax(-1)[range(steps), batch.actions[row, :steps]]
        loss = (batch.advantage[row, :steps] * logp).sum()
        alone.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    found = n_pg_igt.gradient_estimate(policy, batch, parameters)
    assert torch.allclose(found, torch.stack(alone).mean(0), atol=1e-4)


# The problems


def test_values_of_the_linear_system():
    problem = LQR()
    best = problem.optimal_gain(0.3)
    assert problem.value([0.0, 0.0], 0.3) == pytest.approx(-38.439, abs=1e-3)
    assert best.tolist() == pytest.approx([-1.588, -3.209], abs=1e-3)
    assert problem.value(best, 0.3) == pytest.approx(-14.751, abs=1e-3)


@pytest.mark.parametrize("problem", [LQR(), Chain()])
def test_sampled_returns_agree_with_exact_values(problem):
    policy = Linear(deviation=0.3).build(problem, 0)
    with torch.no_grad():
        policy.network[0].weight.copy_(torch.randn(policy.network[0].weight.shape, generator=generator(0, "w")))
    batch = Episodes(episodes=20_000, gamma=problem.gamma)(policy, problem, Clock(seed=0)).batches["rollouts"]
    returns = RewardToGo()(batch).returns[:, 0].double()
    if isinstance(problem, LQR):
        exact = problem.value(policy.network[0].weight.detach().numpy(), 0.3)
    else:
        exact = problem.value(policy(torch.eye(problem.states)).softmax(-1).detach().double().numpy())
    assert abs(float(returns.mean()) - exact) < 4 * float(returns.std()) / 20_000**0.5


def test_the_chain_has_a_local_optimum():
    problem, left = Chain(), np.eye(2)[np.zeros(6, int)]
    assert problem.value(left) < problem.optimal_value - 5.0
    assert problem.value(np.full((6, 2), 0.5)) < problem.value(left)


@pytest.mark.parametrize("problem", [LQR(horizon=5), Chain(horizon=5)])
def test_saved_environments_go_on_as_they_were(problem):
    rng = np.random.default_rng(0)
    draw = (lambda: rng.normal(size=(3, 1))) if isinstance(problem, LQR) else (lambda: rng.integers(2, size=3))
    actions = [draw() for _ in range(9)]
    one, other = problem.make(3, 7), problem.make(3, 7)
    for a in actions[:3]:
        one.step(a)
    other.load_state_dict(one.state_dict())
    for a in actions[3:]:
        for x, y in zip(one.step(a), other.step(a), strict=True):
            assert np.array_equal(x, y)


# The learner


def small(method, problem=None):
    return replace(method, policy=Linear(), collector=Episodes(episodes=2, gamma=0.95), credit=RewardToGo())


@pytest.mark.parametrize("name", ["n-pg-igt", "n-pg-igt:n-harpg", "n-pg-igt:nsgdm"])
def test_normalized_steps_are_as_long_as_the_step_size(name):
    learner = small(registry.method(name)).learner(LQR(), seed=0)
    for t in range(4):
        before = learner.at.current
        metrics = learner.step()
        assert float((learner.at.current - before).norm()) == pytest.approx(0.1 * 2 / (t + 2), rel=1e-5)
        assert metrics["cost/env_steps"] == (80.0 if "harpg" in name and t > 0 else 40.0)


def test_the_policy_is_left_at_the_iterate():
    learner = small(n_pg_igt.method()).learner(LQR(), seed=0)
    for _ in range(3):
        learner.step()
        assert torch.equal(learner.policy.network[0].weight.flatten(), learner.at.current)


def test_plain_gradient_is_reinforce():
    learner = small(n_pg_igt.pg()).learner(LQR(), seed=0)
    batch = RewardToGo()(Episodes(episodes=2, gamma=0.95)(learner.policy, LQR(), Clock(seed=0)).batches["rollouts"])
    s, u = batch.observations, batch.actions[..., 0]
    by_hand = ((batch.advantage * u)[..., None] * s / 0.3**2).sum(1).mean(0)  # the gain is zero
    learner.step()
    assert torch.allclose(learner.at.current, 1.0 * by_hand, rtol=1e-4)


def test_the_cut_of_the_unnormalized_variant():
    long, short = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    length = n_pg_igt.harpg().length
    assert torch.allclose(length(long), torch.tensor([6.0, 8.0])) and torch.equal(length(short), short)
    assert torch.equal(n_pg_igt.pg().length(long), long)


@pytest.mark.parametrize("name", ["n-pg-igt", "n-pg-igt:harpg"])
def test_resume_is_bit_identical(name):
    made = replace(small(registry.method(name)), credit=LinearBaseline())
    one = made.learner(LQR(), seed=2)
    for _ in range(3):
        one.step()
    other = made.learner(LQR(), seed=2)
    other.load_state_dict(one.state_dict())
    for _ in range(2):
        assert float(one.step()["gradient/norm"]) == float(other.step()["gradient/norm"])
    assert torch.equal(one.at.current, other.at.current)


def test_a_direction_that_is_not_finite_leaves_the_policy_as_it_was():
    learner = small(n_pg_igt.method()).learner(LQR(), seed=0)
    learner.step()
    before = learner.at.current
    learner.method = replace(learner.method, credit=Broken())
    with pytest.raises(NonFinite, match="step 1"):
        learner.step()
    assert torch.equal(learner.policy.network[0].weight.flatten(), before)


class Broken(RewardToGo):
    def __call__(self, batch, memory=None):
        return batch.replace(advantage=batch.rewards * float("nan"))


def test_it_learns_the_linear_system():
    problem = LQR()
    made = replace(small(n_pg_igt.method()), collector=Episodes(episodes=10, gamma=0.95), step_size=Decay())
    learner = made.learner(problem, seed=100)
    for _ in range(60):
        learner.step()
    assert problem.value(learner.policy.network[0].weight.detach().numpy(), 0.3) > -25.0


def test_bad_input():
    with pytest.raises(ValueError, match="positive"):
        Decay(initial=0.0)
    with pytest.raises(ValueError, match="at most 1"):
        Momentum(share=Decay(initial=2.0))
    with pytest.raises(ValueError, match="gamma"):
        Episodes(gamma=1.5)
    with pytest.raises(ValueError, match="deviation"):
        Linear(deviation=0.0)
    with pytest.raises(ValueError, match="lqr: option 'speed' is not known"):
        registry.problem("lqr:speed=1")
    with pytest.raises(ValueError, match="chain: option 'length' is not known"):
        registry.problem("chain:length=1")
    with pytest.raises(ValueError, match="three states"):
        Chain(states=2)
    with pytest.raises(ValueError, match="no control problem"):
        n_pg_igt.method().learner(registry.problem("tabular"), seed=0)
