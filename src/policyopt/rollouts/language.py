"""Collectors for language: groups of responses to prompts. All sampling is ``policy.extend``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.models.engines import padded
from policyopt.models.language import Continuations, LanguagePolicy, Sampling
from policyopt.types import Clock, Collected, Collector, Rollouts, Scores, generator


@lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "prompts", epoch))


def prompt_ids(problem: Any, count: int, clock: Clock, first: int | None = None) -> list[int]:
    """The next ``count`` training prompts: every prompt once an epoch, in an order drawn anew for each epoch.

    A function of the clock alone, so that nothing has to be remembered; where the number differs from step to step,
    ``first`` says how many were served before.
    """
    size = problem.size("train")
    if size < 1:
        raise ValueError(f"{problem.name} has no training prompts")
    position = torch.arange(count) + (clock.step * count if first is None else first)
    return [int(_order(size, clock.seed, int(p) // size)[int(p) % size]) for p in position]


def respond(
    policy: LanguagePolicy,
    problem: Any,
    ids: Sequence[int],
    samples: int,
    sampling: Sampling,
    rng: torch.Generator,
    *,
    keep: bool = False,
) -> Continuations:
    """``samples`` responses to each of the prompts ``ids``, as the problem limits and stops them; ``keep`` for cuts."""
    return policy.extend(
        policy.encode(problem.prompts(ids)),
        samples,
        sampling,
        rng,
        max_new_tokens=sampling.max_new_tokens or problem.max_new_tokens,
        stop=problem.stop,
        keep=keep,
    )


def scored_rollouts(
    policy: LanguagePolicy, problem: Any, ids: Sequence[int], sampled: Continuations, texts: Sequence[str] | None = None
) -> Rollouts:
    """Continuations of the prompts ``ids``, one id a prefix, scored → Rollouts [M].

    A response that was cut by the length limit is scored as it stands (``truncated`` marks its last token). ``texts`` [M]
    are what is scored where a prefix holds a part of the response already.
    """
    repeated = [i for i in ids for _ in range(sampled.samples)]
    scores = problem.score(repeated, policy.decode(sampled.actions, sampled.length) if texts is None else texts)
    check_scores(scores, repeated, problem.name)
    device = sampled.length.device
    kept = {name: value.to(device) for name, value in scores.items()}
    return continued_rows(ids, sampled).replace(scores=TensorDict(kept, [len(repeated)]))  # rows follow an index


def continued_rows(ids: Sequence[int], sampled: Continuations) -> Rollouts:
    """Continuations of the prompts ``ids`` → Rollouts [M] without scores; their prefixes are the rows' prompts."""
    device, count = sampled.length.device, len(sampled.length)
    prompt, prompt_length = padded(sampled.prefixes)
    step = torch.arange(sampled.actions.shape[1], device=device)
    last = step == sampled.length[:, None] - 1
    return Rollouts(
        actions=sampled.actions,
        mask=step < sampled.length[:, None],
        behaviour_logp=sampled.behaviour_logp,
        old_logp=sampled.old_logp,
        entropy=sampled.entropy,
        terminated=last & sampled.finished[:, None],
        truncated=last & ~sampled.finished[:, None],
        group=torch.arange(count, device=device) // sampled.samples,
        prompt_id=torch.tensor(ids, device=device).repeat_interleave(sampled.samples),
        prompt=prompt.repeat_interleave(sampled.samples, 0),
        prompt_length=prompt_length.repeat_interleave(sampled.samples),
        length=sampled.length,
        batch_size=[count],
    )


def check_scores(scores: Scores, ids: Sequence[int], problem: str) -> None:
    """Raises ValueError where a component is not one finite number [N] for each of the prompts ``ids``."""
    for name, value in scores.items():
        if value.shape != (len(ids),):
            raise ValueError(
                f"{problem}: the score {name!r} has shape {tuple(value.shape)}, not ({len(ids)},): one a response"
            )
        if len(bad := (~value.isfinite()).nonzero()):
            row = int(bad[0])
            raise ValueError(
                f"{problem}: the score {name!r} of a response to prompt {ids[row]} is {float(value[row])}; it must be finite"
            )


def response_metrics(batch: Rollouts, sampled: Continuations) -> dict[str, Tensor | float]:
    """What every language collector logs; entropy is a mean over sampled tokens, positions are the decoder's steps."""
    active = batch.mask.sum()
    metrics: dict[str, Tensor | float] = {
        f"reward/{'mean' if name == 'reward' else name}": value.mean() for name, value in batch.scores.items()
    }
    metrics |= {
        "response/length": batch.length.float().mean(),
        "response/truncated": 1.0 - sampled.finished.float().mean(),
        "policy/entropy": (batch.entropy * batch.mask).sum() / active,
        "cost/tokens": sampled.sampled_tokens,
        "cost/forward_tokens": sampled.forward_tokens,
        "cost/positions": sampled.actions.shape[1],
    }
    return metrics


@dataclass(frozen=True, kw_only=True)
class Groups(Collector):
    """``samples`` responses to each of ``prompts`` training prompts a step, scored by the problem."""

    gives: ClassVar[tuple[str, ...]] = (
        "behaviour_logp",
        "old_logp",
        "entropy",
        "scores",
        "group",
        "prompt_id",
        "terminated",
        "truncated",
    )
    prompts: int = 32
    samples: int = 8
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.samples < 1:
            raise ValueError(f"prompts and samples must be positive, got {self.prompts} and {self.samples}")

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        ids = prompt_ids(problem, self.prompts, clock)
        sampled = respond(policy, problem, ids, self.samples, self.sampling, clock.generator("sample", policy.device))
        batch = scored_rollouts(policy, problem, ids, sampled)
        return Collected({"rollouts": batch}, response_metrics(batch, sampled))
