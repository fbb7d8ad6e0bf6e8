"""Annotators: columns that need a network over finished rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from policyopt.types import Part, Rollouts


@dataclass(frozen=True, kw_only=True)
class Annotator(Part):
    """``build`` makes the model it runs (None where it needs none), the call adds columns with it."""

    def build(self, policy: Any, seed: int) -> Any:
        return None

    def __call__(self, batch: Any, policy: Any, model: Any, limit: int) -> Any:
        """``limit``: tokens that may go through the model at once."""
        raise NotImplementedError


@torch.no_grad()
def evaluated(model: Any, batch: Rollouts, column: str, limit: int) -> torch.Tensor:
    """The output ``column`` of ``model.evaluate`` over the whole batch [N, T], in micro-batches of ``limit`` tokens."""
    full = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for rows in model.micro_batches(batch, limit):
        full[rows] = getattr(model.evaluate(batch[rows], (column,)), column)
    return full


@dataclass(frozen=True, kw_only=True)
class Reference(Annotator):
    """``ref_logp``: log-probabilities under a frozen copy of the policy as it was when training began."""

    gives: ClassVar[tuple[str, ...]] = ("ref_logp",)

    def build(self, policy: Any, seed: int) -> Any:
        return policy.frozen_copy()

    def __call__(self, batch: Rollouts, policy: Any, model: Any, limit: int) -> Rollouts:
        return batch.replace(ref_logp=evaluated(model, batch, "logp", limit))
