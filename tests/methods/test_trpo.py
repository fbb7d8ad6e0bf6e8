from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from policyopt.learners.constrained import assign
from policyopt.learners.update import NonFinite
from policyopt.methods import trpo
from policyopt.models.control import MLP
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.two_gap import TwoGap
from policyopt.rollouts.vector import Vector

DISCRETE, CONTINUOUS = GymnasiumProblem(id="CartPole-v1"), TwoGap()
SMALL = replace(
    trpo.method(), policy=MLP(hidden=(4,)), collector=Vector(environments=4, steps=32), minibatches=2, iterations=60
)
both = pytest.mark.parametrize("problem", [DISCRETE, CONTINUOUS], ids=["categorical", "gaussian"])


def flat(parameters):
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


def collected(learner):
    batch = learner.method.collector(learner.policy, learner.problem, learner.clock, learner.memories["collector"])
    return learner._credited(batch.batches["rollouts"])


def fisher(policy, observations, discrete):
    """The dense matrix [P, P], in float64, from the Jacobian of the network's outputs."""
    policy = deepcopy(policy).double()
    names, values = zip(*policy.named_parameters(), strict=True)

    def outputs(parameters, observation):
        return functional_call(policy, dict(zip(names, parameters, strict=True)), (observation[None],))[0]

    x = observations.flatten(0, -2).double()
    pieces = vmap(jacrev(outputs), (None, 0))(values, x)
    jacobian = torch.cat([piece.flatten(2) for piece in pieces], 2)
    if discrete:
        p = policy(x).softmax(-1).detach()
        return torch.einsum(
            "nap,nab,nbq->pq", jacobian, torch.diag_embed(p) - p[:, :, None] * p[:, None], jacobian
        ) / len(x)
    precision = (-2.0 * policy.log_deviation.detach()).exp()
    found = torch.einsum("nap,a,naq->pq", jacobian, precision, jacobian) / len(x)
    start = sum(v.numel() for v in values[: names.index("log_deviation")])
    own = torch.arange(start, start + len(precision))
    found[own, own] += 2.0  # of the logarithm of a deviation
    return found


@both
def test_the_step_is_the_natural_gradient_on_the_border_of_the_quadratic_constraint(problem):
    learner = SMALL.learner(problem, seed=0)
    learner.step()
    batch, policy = collected(learner), learner.policy
    step = learner.natural_step(batch).double()
    step = step.detach()
    logp = policy.evaluate(batch).logp
    loss = (batch.advantage * (logp - batch.behaviour_logp).exp()).mean()
    gradient = flat(torch.autograd.grad(loss, list(policy.parameters()))).double()
    matrix = fisher(policy, batch.observations, problem is DISCRETE)
    matrix = matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64)
    natural = torch.linalg.solve(matrix, gradient)
    assert torch.cosine_similarity(step, natural, dim=0) > 0.9999
    assert torch.cosine_similarity(step, gradient, dim=0) < 0.99  # which the plain gradient isn't
    assert (step @ matrix @ step / 2).item() == pytest.approx(0.01, rel=1e-3)


@both
def test_every_step_stays_within_the_radius_and_gains(problem):
    learner = replace(SMALL, radius=0.02, iterations=10).learner(problem, seed=1)
    credited = []
    learner._credited = lambda batch: credited.append(type(learner)._credited(learner, batch)) or credited[-1]
    for _ in range(6):
        before = deepcopy(learner.policy)
        metrics = learner.step()
        batch, policy = credited[-1], learner.policy
        before.standardization.load_state_dict(policy.standardization.state_dict())
        with torch.no_grad():
            one, two = before(batch.observations), policy(batch.observations)
            ratio = (policy.evaluate(batch).logp - before.evaluate(batch).logp).exp()
        if problem is DISCRETE:
            divergence = (one.softmax(-1) * (one.log_softmax(-1) - two.log_softmax(-1))).sum(-1)
        else:
            s, t = before.log_deviation.detach(), policy.log_deviation.detach()
            divergence = (t - s + ((2 * s).exp() + (one - two) ** 2) / (2 * (2 * t).exp()) - 0.5).sum(-1)
        assert metrics["policy/kl_exact"] == pytest.approx(float(divergence.mean()), abs=1e-5)
        assert 0.001 < metrics["policy/kl_exact"] <= 0.02
        assert metrics["loss/policy"] == pytest.approx(float((batch.advantage * (1 - ratio)).mean()), abs=1e-5)
        assert metrics["loss/policy"] < 0.0


def test_the_search_takes_the_first_fraction_that_gains_within_the_radius():
    search = trpo.line_search
    assert search(lambda f: (1.0, 0.01), 0.01, 10) == 1.0
    assert search(lambda f: (1.0, 0.04 * f), 0.01, 10) == 0.25
    assert search(lambda f: (0.3 - f, 0.0), 0.01, 10) == 0.25
    assert search(lambda f: (1.0, 0.04 * f), 0.01, 2) == 0.0
    assert search(lambda f: (0.0, 0.0), 0.01, 10) == 0.0
    for broken in (float("nan"), float("inf")):
        assert search(lambda f, b=broken: (b if f == 1.0 else 1.0, 0.0), 0.01, 10) == 0.5
        assert search(lambda f, b=broken: (1.0, b if f == 1.0 else 0.0), 0.01, 10) == 0.5


@both
def test_where_nothing_gains_the_policy_stays_as_it_is(problem):
    learner = SMALL.learner(problem, seed=0)
    batch, before = collected(learner), flat(learner.policy.parameters())
    step = learner.natural_step(batch)
    learner.natural_step = lambda batch: -step
    metrics = learner._improve({"rollouts": batch})
    assert metrics["policy/step_fraction"] == metrics["policy/kl_exact"] == 0.0
    assert torch.equal(flat(learner.policy.parameters()), before)
    learner.natural_step = lambda batch: step
    assert learner._improve({"rollouts": batch})["policy/step_fraction"] > 0.0
    assert not torch.equal(flat(learner.policy.parameters()), before)


def test_without_advantages_nothing_moves():
    learner = SMALL.learner(CONTINUOUS, seed=0)
    batch, before = collected(learner), flat(learner.policy.parameters())
    learner._improve({"rollouts": batch.replace(advantage=torch.zeros_like(batch.advantage))})
    assert torch.equal(flat(learner.policy.parameters()), before)


def test_a_step_that_is_not_finite_is_an_error_and_touches_nothing():
    learner = SMALL.learner(CONTINUOUS, seed=0)
    batch, before = collected(learner), flat(learner.policy.parameters())
    with pytest.raises(NonFinite, match="step 0: the natural gradient is not finite"):
        learner._improve({"rollouts": batch.replace(advantage=torch.full_like(batch.advantage, torch.nan))})
    assert torch.equal(flat(learner.policy.parameters()), before)


def test_assign_keeps_the_order():
    parameters = [torch.zeros(2, 2), torch.zeros(3)]
    assign(parameters, torch.arange(7.0))
    assert parameters[0].tolist() == [[0.0, 1.0], [2.0, 3.0]] and parameters[1].tolist() == [4.0, 5.0, 6.0]


def test_it_learns_to_balance():
    method = replace(trpo.method(), collector=Vector(environments=8, steps=64), minibatches=4)
    learner = method.learner(DISCRETE, seed=0)
    steps = [learner.step() for _ in range(14)]
    returns = [step["episode/return"] for step in steps if "episode/return" in step]
    assert returns[0] < 40.0 < 80.0 < returns[-1]


def test_a_resumed_learner_goes_on_bit_by_bit():
    first, second = (SMALL.learner(CONTINUOUS, seed=3) for _ in range(2))
    first.step(), first.step()
    second.load_state_dict(deepcopy(first.state_dict()))
    one, two = first.step(), second.step()
    assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    assert torch.equal(flat(first.policy.parameters()), flat(second.policy.parameters()))


def test_settings():
    method = trpo.method()
    assert (method.radius, method.damping, method.iterations, method.attempts) == (0.01, 0.1, 10, 10)
    with pytest.raises(ValueError, match="radius, iterations and attempts must be positive"):
        replace(method, radius=0.0)
