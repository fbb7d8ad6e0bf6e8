"""Credit for vector rewards: advantages of weighted objectives, and of one objective under constraints on the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.credit.returns import generalized_advantage, whitened
from policyopt.credit.scaling import with_scores
from policyopt.types import Rollouts


def relaxed(returns: Tensor, beta: float) -> Tensor:
    """The bound β G for positive returns G [K], and below G for negative ones too: G - (1 - β) |G|."""
    return returns - (1.0 - beta) * returns.abs()


@dataclass(frozen=True, kw_only=True)
class WeightedAdvantage(Credit):
    """Advantage ω·A, standardized over the batch, from a vector critic's values; ``returns`` [N, T, K] are its targets.

    Rewards may have been scaled (``scores["reward_scale"]``): weights refer to the original ones.
    """

    needs: ClassVar[tuple[str, ...]] = ("rewards", "value", "next_value", "discount", "terminated", "truncated")
    gives: ClassVar[tuple[str, ...]] = ("advantage", "returns")
    weights: tuple[float, ...] = ()
    lam: float = 0.95

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        batch, vector = self.vector(batch)
        weights = torch.tensor(self.weights, dtype=vector.dtype, device=vector.device)
        return batch.replace(advantage=whitened(vector @ weights, batch.mask))

    def vector(self, batch: Rollouts) -> tuple[Rollouts, Tensor]:
        """The batch with ``returns``, and advantages [N, T, K] on the scale of the original rewards."""
        rewards, value = batch.rewards, batch.value
        assert rewards is not None and value is not None and batch.terminated is not None
        if rewards.dim() != 3 or rewards.shape[2] != len(self.weights):
            raise ValueError(
                f"{len(self.weights)} weights need rewards [N, T, {len(self.weights)}], got {rewards.shape}"
            )
        discount, continues = (
            column[..., None].expand_as(rewards) for column in (batch.discount, ~(batch.terminated | batch.truncated))
        )
        advantage = generalized_advantage(rewards, value, batch.next_value, discount, continues, self.lam)
        return batch.replace(returns=advantage + value), advantage * _scale(batch)[:, None]


class FirstReturns:
    """The returns [K] of the first batch."""

    def __init__(self) -> None:
        self.returns: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"returns": self.returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns = state["returns"]


@dataclass(frozen=True, kw_only=True)
class ConstrainedAdvantage(WeightedAdvantage):
    """Advantage of one objective (the weight that is 1); ``scores["gain"]`` [N, T, K-1] and ``scores["margin"]``
    [N, K-1] of the others, which are to keep ``beta`` of what they returned in the first batch (``drifting``: in this)."""

    gives: ClassVar[tuple[str, ...]] = ("advantage", "returns", "scores")
    beta: float = 0.9
    drifting: bool = False

    def memory(self) -> FirstReturns:
        return FirstReturns()

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        assert isinstance(memory, FirstReturns) and batch.terminated is not None and batch.truncated is not None
        made, others = super().__call__(batch, memory), [w == 0.0 for w in self.weights]
        advantage = self.vector(batch)[1][..., others]
        episodes = max(int((batch.terminated | batch.truncated).sum()), len(batch))
        returns = (batch.rewards * _scale(batch)[:, None]).sum((0, 1))[others] / episodes
        memory.returns = returns if memory.returns is None or self.drifting else memory.returns
        margin = returns - relaxed(memory.returns, self.beta)
        gain = advantage * (batch.mask.numel() / episodes)
        return with_scores(made, gain=gain, margin=margin.expand(len(batch), -1).clone())


def _scale(batch: Rollouts) -> Tensor:
    """[N, K]: what rewards were divided by."""
    scaled = batch.scores is not None and "reward_scale" in batch.scores.keys()  # noqa: SIM118 (a TensorDict)
    scale: Tensor = batch.scores["reward_scale"] if scaled else torch.ones_like(batch.rewards[:, 0])
    return scale
