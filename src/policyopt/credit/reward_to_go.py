"""Credit of the plain policy gradient: what an action and all that followed earned, with a baseline fitted to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.credit.returns import discounted_returns
from policyopt.types import Memory, Rollouts


def weight_from_start(discount: Tensor) -> Tensor:
    """Π_{k<t} discount_k [N, T]: what step t counts for in the return of the whole row; 1 at t = 0."""
    return torch.cat([torch.ones_like(discount[:, :1]), discount[:, :-1]], 1).cumprod(1)


def features(observations: Tensor) -> Tensor:
    """(s, s², t, t², t³, 1) [N, T, 2 S + 4] of observations [N, T, S], kept within ±10; t counts in hundreds of steps."""
    rows, steps, _ = observations.shape
    seen = observations.double().clamp(-10.0, 10.0)
    time = (torch.arange(steps, dtype=torch.float64, device=seen.device) / 100.0).expand(rows, steps)
    powers = torch.stack([time, time**2, time**3, torch.ones_like(time)], -1)
    return torch.cat([seen, seen**2, powers], -1)


def ridge(inputs: Tensor, target: Tensor, penalty: float) -> Tensor:
    """The coefficients [F] that fit target [M] by inputs [M, F] with ``penalty`` on their square."""
    gram = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
    return torch.linalg.solve(gram, inputs.T @ target)


@dataclass(frozen=True, kw_only=True)
class RewardToGo(Credit):
    """advantage = Σ_{h≥t} γ^h r_h, discounted from the start of the row: weighted so, Σ_t advantage · ∇ log π is the gradient
    of the discounted return. ``from_start`` False leaves out γ^t, as implementations do: late steps count like early ones.
    """

    needs: ClassVar[tuple[str, ...]] = ("rewards", "discount")
    gives: ClassVar[tuple[str, ...]] = ("advantage", "returns")
    from_start: bool = True

    def __call__(self, batch: Rollouts, memory: Any = None) -> Rollouts:
        return self.weighted(batch, discounted_returns(batch.rewards, batch.discount))

    def weighted(self, batch: Rollouts, returns: Tensor, baseline: Tensor | float = 0.0) -> Rollouts:
        weight = weight_from_start(batch.discount) if self.from_start else 1.0
        return batch.replace(advantage=weight * (returns - baseline) * batch.mask, returns=returns)


class Coefficients:
    """Of the last fit; none before the first batch."""

    def __init__(self) -> None:
        self.fitted: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"fitted": self.fitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fitted = state["fitted"]


@dataclass(frozen=True, kw_only=True)
class LinearBaseline(RewardToGo):
    """``RewardToGo`` less a linear function of state and time (``features``), fitted to the returns of the batch BEFORE, so
    that it is a constant for the present actions; the first batch has none. ``penalty`` is that of the ridge regression.
    """

    needs: ClassVar[tuple[str, ...]] = ("rewards", "discount", "observations")
    penalty: float = 1e-5

    def memory(self) -> Memory:
        return Coefficients()

    def __call__(self, batch: Rollouts, memory: Any = None) -> Rollouts:
        assert isinstance(memory, Coefficients)
        returns, inputs = discounted_returns(batch.rewards, batch.discount), features(batch.observations)
        baseline: Tensor | float = 0.0
        if memory.fitted is not None:
            baseline = (inputs @ memory.fitted.to(inputs.device)).to(returns.dtype)
        memory.fitted = ridge(inputs[batch.mask], returns[batch.mask].double(), self.penalty)
        return self.weighted(batch, returns, baseline)
