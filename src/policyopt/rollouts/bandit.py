"""Collectors on contextual bandits: logged comparisons, and comparisons of what the policy samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.models.log_linear import LogLinearPolicy
from policyopt.types import Clock, Collected, Collector, Rollouts


def decisions(context: Tensor, actions: Tensor, reward: Tensor, group: Tensor, logp: Tensor | None = None) -> Rollouts:
    """Single decisions as rows: all arguments [N]."""
    count = len(context)
    made = Rollouts(
        actions=actions[:, None],
        mask=torch.ones(count, 1, dtype=torch.bool),
        prompt_id=context,
        group=group,
        scores=TensorDict({"reward": reward}, [count]),
        batch_size=[count],
    )
    return made if logp is None else made.replace(behaviour_logp=logp[:, None])


def compared(context: Tensor, winner: Tensor, loser: Tensor, logp: Tensor | None = None) -> Rollouts:
    """Comparisons [n] as pairs of rows, the winner first with the score 1."""
    count = len(context)
    return decisions(
        context.repeat_interleave(2),
        torch.stack([winner, loser], 1).flatten(),
        torch.tensor([1.0, 0.0]).repeat(count),
        torch.arange(count).repeat_interleave(2),
        logp,
    )


@dataclass(frozen=True, kw_only=True)
class LoggedPairs(Collector):
    """The problem's logged comparisons: all of them each step, or ``pairs`` drawn with replacement."""

    gives: ClassVar[tuple[str, ...]] = ("scores", "group", "prompt_id")
    pairs: int | None = None

    def __call__(self, policy: LogLinearPolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        data = problem.pairs
        if self.pairs is not None:
            data = data[torch.randint(len(data), (self.pairs,), generator=clock.generator("pairs"))]
        return Collected({"rollouts": compared(*data.unbind(1))})


@dataclass(frozen=True, kw_only=True)
class PlayedPairs(Collector):
    """``pairs`` comparisons of two actions sampled from the policy in random contexts, each decided by one draw."""

    gives: ClassVar[tuple[str, ...]] = ("scores", "group", "prompt_id", "behaviour_logp")
    pairs: int = 1000

    def __call__(self, policy: LogLinearPolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        rng = clock.generator("play")
        context, actions, logp = played(policy, self.pairs, 2, rng)
        first, second = actions.unbind(1)
        wins = problem.compare(context, first, second, rng)
        winner, loser = torch.where(wins, first, second), torch.where(wins, second, first)
        batch = compared(context, winner, loser, torch.where(wins[:, None], logp, logp.flip(1)).flatten())
        return Collected({"rollouts": batch}, {"cost/tokens": 2 * self.pairs})


@dataclass(frozen=True, kw_only=True)
class Played(Collector):
    """``samples`` actions sampled from the policy in each of ``prompts`` random contexts, with their true reward."""

    gives: ClassVar[tuple[str, ...]] = ("scores", "group", "prompt_id", "behaviour_logp")
    prompts: int = 32
    samples: int = 2

    def __call__(self, policy: LogLinearPolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        context, actions, logp = played(policy, self.prompts, self.samples, clock.generator("play"))
        repeated = context.repeat_interleave(self.samples)
        reward = problem.reward[repeated, actions.flatten()].float()
        group = torch.arange(self.prompts).repeat_interleave(self.samples)
        batch = decisions(repeated, actions.flatten(), reward, group, logp.flatten())
        return Collected({"rollouts": batch}, {"reward/mean": reward.mean(), "cost/tokens": len(batch)})


@torch.no_grad()
def played(policy: LogLinearPolicy, prompts: int, samples: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random contexts [n], actions sampled in them [n, samples], their log-probabilities [n, samples]."""
    logp = policy.log_probability()
    context = torch.randint(len(logp), (prompts,), generator=rng)
    actions = torch.multinomial(logp[context].exp(), samples, replacement=True, generator=rng)
    return context, actions, logp[context].gather(1, actions)
