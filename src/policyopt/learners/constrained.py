"""Constrained policy optimization: one step in a trust region that improves an objective and keeps others above a bound
(CPO, arXiv 1705.10528, §5 and §6.2; several constraints share one small dual problem)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.update import NonFinite
from policyopt.objectives.policy_gradient import TokenMean, divergences, k3, log_ratio
from policyopt.types import Budget, Rollouts

DUAL_LIMIT = 1e4  # on the scale on which all gradients have length one: then the step is recovery alone


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """x with product(x) = target, for a linear, symmetric and positive ``product``; all [P]."""
    x, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual @ residual
    for _ in range(iterations):
        if square < 1e-20:
            break
        image = product(direction)
        step = square / (direction @ image)
        x, residual = x + step * direction, residual - step * image
        following = residual @ residual
        direction, square = residual + following / square * direction, following
    return x


def dual_variables(
    q: float, r: np.ndarray, s: np.ndarray, slack: np.ndarray, radius: float
) -> tuple[float, np.ndarray]:
    """(λ, ν [M]) of: maximise g·x subject to slack + B x ≥ 0 and ½ x·H x ≤ radius, where q = g·H⁻¹g, r = B H⁻¹g [M] and
    s = B H⁻¹Bᵀ [M, M]. Then x = H⁻¹(g + Bᵀν) / λ.

    ν ≥ 0 minimises √(2 radius (q + 2 r·ν + ν·s ν)) + slack·ν. Where the constraints cannot be met within the radius that
    has no minimum; ν is bounded, so that x becomes the step that mends them.
    """
    unit = np.sqrt(np.maximum(np.diag(s), 1e-30))
    length = max(np.sqrt(q), 1e-15)
    cosine, gram, scaled = r / (unit * length), s / np.outer(unit, unit), slack / unit

    def dual(nu: np.ndarray) -> tuple[float, np.ndarray]:
        square = max(1.0 + 2.0 * cosine @ nu + nu @ gram @ nu, 1e-30)
        root = np.sqrt(2.0 * radius * square)
        return root + scaled @ nu, 2.0 * radius * (cosine + gram @ nu) / root + scaled

    start, bounds = np.zeros(len(r)), [(0.0, DUAL_LIMIT)] * len(r)
    tight = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 200}
    nu = minimize(dual, start, jac=True, bounds=bounds, method="L-BFGS-B", options=tight).x if len(r) else start
    nu = nu * length / unit
    return float(np.sqrt(max(q + 2.0 * r @ nu + nu @ s @ nu, 1e-30) / (2.0 * radius))), nu


def trust_region_step(
    gradient: Tensor,
    constraints: Tensor,
    slack: Tensor,
    product: Callable[[Tensor], Tensor],
    radius: float,
    iterations: int,
) -> Tensor:
    """The step [P] that maximises gradient·x, keeps slack + constraints x ≥ 0 and ½ x·product(x) ≤ radius.

    gradient [P], constraints [M, P] (their gradients), slack [M]; ``product`` multiplies with the Fisher matrix.
    """
    toward = conjugate_gradient(product, gradient, iterations)
    across = [conjugate_gradient(product, row, iterations) for row in constraints]
    mending = torch.stack(across, 1) if across else gradient.new_zeros(len(gradient), 0)
    r, s = (constraints @ toward).double().numpy(), (constraints @ mending).double().numpy()
    q = float(gradient @ toward)
    multiplier, nu = dual_variables(q, r, (s + s.T) / 2, slack.double().numpy(), radius)
    return (toward + mending @ torch.from_numpy(nu).to(mending)) / multiplier


def flat_gradient(value: Tensor, parameters: Sequence[Tensor], create_graph: bool = False) -> Tensor:
    """d value / d parameters, joined [P]."""
    pieces = torch.autograd.grad(value, parameters, create_graph=create_graph, retain_graph=True)
    return torch.cat([piece.flatten() for piece in pieces])


@torch.no_grad()
def assign(parameters: Sequence[Tensor], values: Tensor) -> None:
    """Copies values [P] into the parameters, in their order."""
    for parameter, piece in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(piece.view_as(parameter))


@dataclass(frozen=True, kw_only=True)
class ConstrainedOnPolicy(OnPolicy):
    """Updates the policy once a step: no clipping, no optimizer, no line search. ``epochs`` and ``minibatches`` are the
    critic's.

    Credit has to give ``advantage``, ``scores["gain"]`` (what each constraint gains where the policy becomes likelier,
    [N, T, M] or, for single steps, [N, M]) and ``scores["margin"]`` (how far it is kept, [N, M], the same in all rows).
    """

    radius: float = 0.01
    damping: float = 0.1
    iterations: int = 10

    def learner(
        self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None
    ) -> ConstrainedLearner:
        return ConstrainedLearner(self, problem, policy, seed, budget)


class ConstrainedLearner(OnPolicyLearner):
    """The live method: a trust-region step of the policy, then the critic's updates."""

    method: ConstrainedOnPolicy

    def _improve(self, batches: dict[str, Any]) -> dict[str, Tensor | float]:
        """One step on the whole batch. Raises NonFinite, weights untouched, where it is not finite."""
        batch: Rollouts = batches["rollouts"]
        parameters = list(self.policy.parameters())
        logp = self.policy.evaluate(batch).logp
        change = log_ratio(logp, batch)
        ratio = change.exp()[batch.mask]
        gain = batch.scores["gain"].view(*batch.mask.shape, -1)[batch.mask]
        divergence = flat_gradient(k3(-change[batch.mask]).mean(), parameters, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            return flat_gradient(divergence @ vector, parameters) + self.method.damping * vector

        gradient = flat_gradient((ratio * batch.advantage[batch.mask]).mean(), parameters)
        rows = [flat_gradient((ratio * column).mean(), parameters) for column in gain.unbind(-1)]
        constraints = torch.stack(rows) if rows else gradient.new_zeros(0, len(gradient))
        margin = batch.scores["margin"][0]
        step = trust_region_step(gradient, constraints, margin, product, self.method.radius, self.method.iterations)
        if not bool(torch.isfinite(step).all()):
            raise NonFinite(f"step {self.clock.step}: the trust-region step is not finite; the weights are unchanged")
        assign(parameters, parameters_to_vector(parameters) + step)
        with torch.no_grad():
            moved = divergences(self.policy.evaluate(batch).logp, batch, TokenMean()(batch))
        return {**moved, "gradient/norm": gradient.norm(), "loss/policy": -(gradient @ step)}
