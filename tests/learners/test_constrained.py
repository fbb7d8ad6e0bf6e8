from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from policyopt.learners.constrained import conjugate_gradient, flat_gradient, trust_region_step
from policyopt.methods import c_morl
from policyopt.models.control import MLP
from policyopt.objectives.policy_gradient import k3
from policyopt.problems.control.point_mass import PointMass
from policyopt.rollouts.vector import Vector


def positive(size, seed):
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size + 0.5 * torch.eye(size, dtype=torch.float64)


def test_conjugate_gradient_solves():
    matrix, target = positive(8, 0), torch.arange(8.0, dtype=torch.float64)
    solution = conjugate_gradient(lambda v: matrix @ v, target, 8)
    torch.testing.assert_close(matrix @ solution, target)


def problem(seed, constraints):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    return positive(6, seed), draw(6), draw(constraints, 6)


def step_of(matrix, gradient, rows, slack, radius=0.1):
    return trust_region_step(gradient, rows, slack, lambda v: matrix @ v, radius, 30)


def test_without_active_constraints_it_is_the_natural_gradient():
    matrix, gradient, rows = problem(0, 2)
    natural = torch.linalg.solve(matrix, gradient)
    wanted = natural * (0.2 / (gradient @ natural)).sqrt()
    far = torch.full((2,), 100.0, dtype=torch.float64)
    torch.testing.assert_close(step_of(matrix, gradient, rows, far), wanted)
    torch.testing.assert_close(step_of(matrix, gradient, rows[:0], far[:0]), wanted)


@pytest.mark.parametrize("seed", range(6))
def test_it_solves_the_constrained_problem(seed):
    matrix, gradient, rows = problem(seed, 2)
    slack = torch.tensor([0.05, -0.1], dtype=torch.float64)  # the second one is broken, and can be mended
    step = step_of(matrix, gradient, rows, slack).numpy()
    h, g, b, c = (x.numpy() for x in (matrix, gradient, rows, slack))
    peer = minimize(
        lambda x: -g @ x,
        np.zeros(6),
        jac=lambda x: -g,
        constraints=[
            {"type": "ineq", "fun": lambda x: 0.1 - x @ h @ x / 2, "jac": lambda x: -(h @ x)},
            {"type": "ineq", "fun": lambda x: c + b @ x, "jac": lambda x: b},
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert peer.success
    np.testing.assert_allclose(step @ h @ step / 2, 0.1, rtol=1e-5)
    assert (c + b @ step).min() > -1e-5
    assert g @ step == pytest.approx(g @ peer.x, abs=1e-4)


def test_what_cannot_be_met_is_mended_as_far_as_the_radius_allows():
    matrix, gradient, rows = problem(3, 1)
    step = step_of(matrix, gradient, rows, torch.tensor([-100.0], dtype=torch.float64))
    toward = torch.linalg.solve(matrix, rows[0])
    torch.testing.assert_close(step, toward * (0.2 / (rows[0] @ toward)).sqrt(), rtol=1e-3, atol=1e-4)


def test_the_divergence_has_the_fisher_matrix_as_its_curvature():
    policy = MLP(hidden=(3,), standardize=False).build(PointMass(), 0)
    x, parameters = torch.randn(40, 4), list(policy.parameters())
    with torch.no_grad():
        actions, recorded, _ = policy.act(x, None, torch.Generator().manual_seed(0))
    logp = policy.logp_entropy(policy(x), actions)[0]
    first = flat_gradient(k3(recorded["behaviour_logp"] - logp).mean(), parameters, create_graph=True)
    scores = torch.stack([flat_gradient(value, parameters) for value in logp])
    vector = torch.randn(len(first), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        flat_gradient(first @ vector, parameters), scores.T @ (scores @ vector) / 40, rtol=1e-3, atol=1e-4
    )


def test_a_step_stays_near_the_radius_and_keeps_the_others():
    method = c_morl.cpo()
    base = replace(
        method.base,
        policy=MLP(hidden=(8,)),
        collector=Vector(environments=16, steps=50),
        epochs=1,
        minibatches=4,
    )
    live = method.extension.apply(base, (1.0, 0.0, 0.0)).learner(PointMass(), seed=0)
    divergences = [float(live.step()["policy/kl_k3"]) for _ in range(4)]
    assert all(0.001 < d < 0.02 for d in divergences)
