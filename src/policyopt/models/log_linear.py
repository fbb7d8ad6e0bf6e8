"""A log-linear policy of a contextual bandit: π(a | x) ∝ reference(a | x) exp(features(x, a) · u)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.types import Outputs, Rollouts


class LogLinearPolicy(nn.Module):
    """``u`` [d] is trained from zero, where the policy is the reference. Rows are single decisions: ``prompt_id`` [N] is
    the context, ``actions`` [N, 1] what was chosen in it."""

    def __init__(self, problem: Any) -> None:
        super().__init__()
        self.features, self.reference = problem.features, problem.reference
        self.u = nn.Parameter(torch.zeros(problem.features.shape[-1], dtype=problem.features.dtype))

    @property
    def device(self) -> torch.device:
        return self.u.device

    def log_probability(self) -> Tensor:
        """[C, A]."""
        logits: Tensor = self.reference + self.features @ self.u
        return logits.log_softmax(-1)

    def forward(self) -> Tensor:
        """Probabilities [C, A]."""
        return self.log_probability().exp()

    def evaluate(self, batch: Rollouts, want: Sequence[str] = ("logp",)) -> Outputs:
        """logp [N, 1], with gradient."""
        logp = self.log_probability()[batch.prompt_id[:, None], batch.actions]
        return Outputs(logp=logp)

    def micro_batches(self, batch: Rollouts, steps: int, whole: bool = False) -> list[Tensor]:
        """All rows at once: they are single numbers."""
        return [torch.arange(len(batch))]

    def default_micro_batch(self) -> int:
        return 1 << 20

    def copied(self) -> LogLinearPolicy:
        """A policy of its own with the present weights."""
        return deepcopy(self)

    def frozen_copy(self) -> LogLinearPolicy:
        """The same policy with its present weights, never trained."""
        return deepcopy(self).requires_grad_(False)
