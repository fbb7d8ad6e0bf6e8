"""Arms that studies share: train a method, measure what it learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policyopt import registry
from policyopt.objectives.estimators import SequenceSum
from policyopt.objectives.policy_gradient import Current, PolicyGradient
from policyopt.training.loop import Cadence, Run, run
from policyopt.types import Budget, Outputs, Rollouts

SMOKE_UPDATES = 2


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Train ``method()`` from a fresh copy of the policy under ``budget``; the metrics are the final held-out accuracy,
    the area under its curve and the curve itself, and what ``measure`` adds.

    Functions are module-level ones, so that an arm reaches worker processes.
    """

    method: Callable[[], Any]
    budget: Budget
    problem: Callable[[], Any]
    policy: str = "tiny"
    evaluations: int = 20
    against: str = "spent/tokens"
    measure: Callable[[Run, Any, int], Mapping[str, float]] | None = None

    def __call__(self, seed: int, smoke: bool) -> dict[str, float | list[float]]:
        problem = self.problem()
        result = run(
            self.method(),
            problem,
            registry.policy(self.policy, problem, seed=seed, device="cpu"),
            budget=Budget(updates=SMOKE_UPDATES) if smoke else self.budget,
            seed=seed,
            cadence=Cadence(evaluations=2 if smoke else self.evaluations),
        )
        first, *rest = [row for row in result.rows if "eval/accuracy" in row]
        x = [0.0, *(row[self.against] for row in rest)]
        y = [first["eval/accuracy"], *(row["eval/accuracy"] for row in rest)]
        area = sum((b - a) * (u + v) / 2 for a, b, u, v in zip(x, x[1:], y, y[1:], strict=False)) / x[-1]
        extra = {} if self.measure is None else self.measure(result, problem, seed)
        return {"accuracy": y[-1], "area": area, "curve/x": x, "curve/accuracy": y, **extra}


def score_gradient(policy: Any, batch: Rollouts, advantage: Tensor) -> Tensor:
    """Mean over rows of Σ_t advantage · ∇ log π as one vector [parameters], in micro-batches; the policy is unchanged."""
    objective = PolicyGradient(denominator=Current(), aggregation=SequenceSum())
    prepared = objective.prepare(batch.replace(advantage=advantage))
    total = torch.zeros(sum(p.numel() for p in policy.parameters()))
    for rows in policy.micro_batches(prepared, policy.default_micro_batch()):
        outputs: Outputs = policy.evaluate(prepared[rows])
        gradients = torch.autograd.grad(objective(outputs, prepared[rows]).value, policy.parameters())
        total -= torch.cat([g.flatten() for g in gradients])
    return total


def spread(gradients: list[Tensor]) -> float:
    """Trace of the covariance of a list of gradient vectors, E‖g - ḡ‖², unbiased."""
    return float(torch.stack(gradients).var(0).sum())
