"""Credit for control: running moments, rewards scaled by them, and single steps as the rows of minibatches."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.types import Rollouts


def merge_moments(count: Tensor, mean: Tensor, squares: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean [S] and summed squared deviations [S] with the rows of ``batch`` [B, S] added; float64, exact
    (Chan, Golub and LeVeque's formula)."""
    batch = batch.double()
    added, own = len(batch), batch.mean(0)
    total, difference = count + added, own - mean
    squares = squares + (batch - own).square().sum(0) + difference.square() * (count * added / total)
    return total, mean + difference * (added / total), squares


class ReturnMoments:
    """Each environment's running discounted return, and the moments of all that were seen."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def deviation(self, rewards: Tensor, discount: Tensor, ended: Tensor) -> Tensor:
        """rewards [N, T] or [N, T, K], discount and ended [N, T] → the deviation of returns so far, [] or [K]."""
        if not self.state:
            zero = torch.zeros(rewards.shape[2:], dtype=torch.float64, device=rewards.device)
            self.state = {"running": torch.zeros_like(rewards[:, 0]), "mean": zero, "squares": zero}
            self.state["count"] = torch.zeros((), dtype=torch.float64, device=rewards.device)
        kept = discount * ~ended
        kept = kept[..., None].expand_as(rewards) if rewards.dim() == 3 else kept
        running, seen = self.state["running"], torch.empty_like(rewards)
        for t in range(rewards.shape[1]):
            seen[:, t] = running + rewards[:, t]
            running = kept[:, t] * seen[:, t]
        count, mean, squares = merge_moments(
            self.state["count"], self.state["mean"], self.state["squares"], seen.flatten(0, 1)
        )
        self.state = {"running": running, "count": count, "mean": mean, "squares": squares}
        return (squares / count).sqrt().to(rewards.dtype)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


@dataclass(frozen=True, kw_only=True)
class RewardScaling(Credit):
    """Rewards divided by the running deviation of the discounted return that they accumulate to, each objective by its
    own; the divisor is kept as ``scores["reward_scale"]`` [N] or [N, K]."""

    needs: ClassVar[tuple[str, ...]] = ("rewards", "discount", "terminated", "truncated")
    gives: ClassVar[tuple[str, ...]] = ("rewards", "scores")
    epsilon: float = 1e-8

    def memory(self) -> ReturnMoments:
        return ReturnMoments()

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        assert isinstance(memory, ReturnMoments) and batch.rewards is not None
        ended = batch.terminated | batch.truncated
        scale = memory.deviation(batch.rewards, batch.discount, ended) + self.epsilon
        kept = scale.expand(len(batch), *scale.shape).clone()
        return with_scores(batch.replace(rewards=batch.rewards / scale), reward_scale=kept)


class RewardMoments:
    """Count, mean and summed squared deviations of all rewards seen."""

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.state = {"count": zero, "mean": zero, "squares": zero}

    def add(self, values: Tensor) -> tuple[float, float]:
        """Adds values [N]; → mean and unbiased deviation of all so far (1 for fewer than two)."""
        count, mean, squares = self.state.values()
        moments = merge_moments(count, mean, squares, values.double().cpu())
        self.state = dict(zip(self.state, moments, strict=True))
        seen, centre, spread = map(float, moments)
        return centre, max((spread / (seen - 1)) ** 0.5, 1e-8) if seen > 1 else 1.0

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = {name: state[name] for name in ("count", "mean", "squares")}


@dataclass(frozen=True, kw_only=True)
class RunningReward(Credit):
    """clip((r - mean) / deviation, ±clip) of the responses' rewards, moments of all that were seen, this batch included.

    ``centre`` False leaves the mean in ("reward scaling"); ``clip`` None does not clip.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("scores",)
    centre: bool = True
    clip: float | None = None

    def memory(self) -> RewardMoments:
        return RewardMoments()

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        assert isinstance(memory, RewardMoments)
        reward = batch.scores["reward"]
        mean, deviation = memory.add(reward)
        scaled = (reward - (mean if self.centre else 0.0)) / deviation
        return with_scores(batch, reward=scaled if self.clip is None else scaled.clamp(-self.clip, self.clip))


SPENT = ("rewards", "discount", "terminated", "truncated", "next_observations", "next_value")


@dataclass(frozen=True, kw_only=True)
class SingleSteps(Credit):
    """Rows of T steps → rows of one, so that minibatches mix the steps of all environments: the last part of control's
    credit. What credit alone reads is dropped; numbers per row (groups, scores [N] or [N, K]) are repeated for its steps.
    """

    needs: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        rows, steps = batch.mask.shape
        columns: dict[str, Any] = {}
        for name in (f.name for f in fields(Rollouts) if f.name not in SPENT):
            column = getattr(batch, name)
            if isinstance(column, Tensor):
                per_row = name in ("group", "prompt_id")
                columns[name] = column.repeat_interleave(steps) if per_row else column.flatten(0, 1)[:, None]
        if batch.scores is not None:
            split = {
                k: v.flatten(0, 1) if v.dim() > 2 else v.repeat_interleave(steps, 0) for k, v in batch.scores.items()
            }
            columns["scores"] = TensorDict(split, [rows * steps])
        return Rollouts(**columns, batch_size=[rows * steps])


def with_scores(batch: Rollouts, **scores: Tensor) -> Rollouts:
    """``batch`` with further scores [N, …]; kept as a TensorDict, so that they are indexed with the rows."""
    present = {} if batch.scores is None else dict(batch.scores.items())
    return batch.replace(scores=TensorDict({**present, **scores}, [len(batch)]))
