"""Advantages that need no group: the outcome itself, less the mean of the batch, or one for everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policyopt.credit.groups import Credit, over_steps
from policyopt.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class Outcome(Credit):
    """Advantage = the reward of the whole response, without a baseline (REINFORCE)."""

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(advantage=over_steps(batch.scores["reward"], batch))


@dataclass(frozen=True, kw_only=True)
class Constant(Credit):
    """Advantage = 1 at every step: imitation in the form of a policy gradient."""

    gives: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(advantage=batch.mask.float())


@dataclass(frozen=True, kw_only=True)
class BatchBaseline(Credit):
    """reward - mean reward of the batch."""

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        reward = batch.scores["reward"]
        return batch.replace(advantage=over_steps(reward - reward.mean(), batch))
