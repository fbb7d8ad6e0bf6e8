"""Returns and advantages over time: pure functions on [N, T] arrays, and the parts around them.

One estimator serves language (a row is one response) and control (a row is T steps of one environment, possibly several
episodes): ``discount`` [N, T] belongs to the transition after step t and is 0 where the episode terminated there;
``next_value`` is the critic's value of the state after step t, so truncation bootstraps and termination does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.types import Rollouts


def generalized_advantage(
    rewards: Tensor, value: Tensor, next_value: Tensor, discount: Tensor, continues: Tensor, lam: float
) -> Tensor:
    """Generalized advantage estimation (arXiv 1506.02438, Eq. 16).

    δ_t = r_t + discount_t · V(s_{t+1}) - V(s_t);  A_t = δ_t + λ · discount_t · continues_t · A_{t+1}.

    All [N, T]; ``continues`` is False where the next step of the row belongs to another episode (terminated OR
    truncated), so that credit never flows across a cut. λ = 0 gives δ, λ = 1 the return minus the value.
    """
    if not rewards.shape == value.shape == next_value.shape == discount.shape == continues.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, value {tuple(value.shape)}, next_value {tuple(next_value.shape)}, "
            f"discount {tuple(discount.shape)} and continues {tuple(continues.shape)} must have one shape [N, T]"
        )
    delta = rewards + discount * next_value - value
    decay = lam * discount * continues
    advantage, later = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        later = delta[:, t] + decay[:, t] * later
        advantage[:, t] = later
    return advantage


def extended_advantage(
    rewards: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Literal["prev", "next"] = "prev",
) -> Tensor:
    """Extended generalized advantage estimation of responses that may be unfinished (T-PPO, arXiv 2506.15050); all [N, T].

    Behind the end (``terminated``) the value is 0. Behind the last token of an unfinished response (``truncated``) "prev"
    takes the value BEFORE that token, since values change slowly from token to token, so that with γ = 1 the last advantage
    is 0; "next" is ordinary truncated estimation, with the critic's value behind it.
    """
    if bootstrap not in ("prev", "next"):
        raise ValueError(f"bootstrap must be 'prev' or 'next', got {bootstrap!r}")
    behind = torch.where(truncated, value, next_value) if bootstrap == "prev" else next_value
    return generalized_advantage(rewards, value, behind, gamma * ~terminated, ~(terminated | truncated), lam)


def discounted_returns(rewards: Tensor, discount: Tensor) -> Tensor:
    """G_t = r_t + discount_t · G_{t+1} along the last axis, G = 0 behind the end; all [N, T]."""
    returns, later = torch.empty_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        later = rewards[:, t] + discount[:, t] * later
        returns[:, t] = later
    return returns


def whitened(advantage: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(A - mean) / √(variance + ε) over the True positions of ``mask``, unbiased variance; zero elsewhere."""
    chosen = advantage[mask]
    if chosen.numel() < 2:
        return torch.where(mask, advantage, 0.0)
    normalized = (advantage - chosen.mean()) / (chosen.var() + epsilon).sqrt()
    return torch.where(mask, normalized, 0.0)


@dataclass(frozen=True, kw_only=True)
class Whitened(Credit):
    """The advantages of all steps that count (chosen, and of a weight above 0), whitened over the whole batch."""

    needs: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        counted = batch.mask if batch.weight is None else batch.mask & (batch.weight > 0)
        return batch.replace(advantage=whitened(batch.advantage, counted))


def last_step(mask: Tensor) -> Tensor:
    """mask [N, T] → True at each row's last True position."""
    later = mask.flip(1).cumsum(1).flip(1)
    return mask & (later == 1)


@dataclass(frozen=True, kw_only=True)
class GeneralizedAdvantage(Credit):
    """Advantages and returns from a critic's values. ``returns`` = advantage + value is the critic's target."""

    needs: ClassVar[tuple[str, ...]] = ("rewards", "value", "next_value", "discount")
    gives: ClassVar[tuple[str, ...]] = ("advantage", "returns")
    lam: float = 0.95
    whiten: bool = True

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        continues = ~(batch.terminated | batch.truncated)
        advantage = generalized_advantage(
            batch.rewards, batch.value, batch.next_value, batch.discount, continues, self.lam
        )
        returns = advantage + batch.value
        if self.whiten:
            advantage = whitened(advantage, batch.mask)
        return batch.replace(advantage=advantage * batch.mask, returns=returns)


@dataclass(frozen=True, kw_only=True)
class RewardAtEnd(Credit):
    """Per-step rewards [N, T] of a language row: the score of the response at its last chosen step, zero before.

    ``discount`` is γ inside the response; a response is one episode, finished or cut by its length limit alike, so its
    last transition has discount 0.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("rewards", "discount", "terminated", "truncated")
    gamma: float = 1.0

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        end = last_step(batch.mask)
        return batch.replace(
            rewards=end * batch.scores["reward"][:, None],
            discount=self.gamma * (batch.mask & ~end),
            terminated=end,
            truncated=torch.zeros_like(end),
        )


@dataclass(frozen=True, kw_only=True)
class MonteCarloTargets(Credit):
    """The critic's targets are the discounted rewards that followed, whatever λ the advantages have."""

    needs: ClassVar[tuple[str, ...]] = ("rewards", "discount")
    gives: ClassVar[tuple[str, ...]] = ("returns",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(returns=discounted_returns(batch.rewards, batch.discount))


@dataclass(frozen=True, kw_only=True)
class ReferencePenalty(Credit):
    """rewards - coefficient · k1, with k1 = log π_behaviour - log reference: the divergence INSIDE the reward."""

    needs: ClassVar[tuple[str, ...]] = ("rewards", "behaviour_logp", "ref_logp")
    gives: ClassVar[tuple[str, ...]] = ("rewards",)
    coefficient: float = 0.05

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        penalty = (batch.behaviour_logp - batch.ref_logp) * batch.mask
        return batch.replace(rewards=batch.rewards - self.coefficient * penalty)
