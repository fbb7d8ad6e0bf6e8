"""Imitation of given responses beside another objective: the language-model loss on a named batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from policyopt.objectives.policy_gradient import Aggregation, Objective, TokenMean
from policyopt.types import Loss, Outputs, Rollouts


@dataclass(frozen=True, kw_only=True)
class Imitation(Objective):
    """-coefficient · mean log π of the batch's steps."""

    coefficient: float = 1.0
    aggregation: Aggregation = TokenMean()

    def prepare(self, batch: Rollouts) -> Rollouts:
        share = self.aggregation(batch)
        return batch.replace(share=torch.stack([share, share], -1))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        assert outputs.logp is not None
        value = -(batch.share[..., 0] * outputs.logp).sum()
        return Loss(self.coefficient * value, {"loss/imitation": value.detach()})
