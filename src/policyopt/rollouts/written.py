"""Responses that are given and not sampled: demonstrations, and the rows that written texts become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from policyopt.models.engines import padded
from policyopt.models.language import LanguagePolicy
from policyopt.rollouts.language import prompt_ids
from policyopt.types import Clock, Collected, Collector, Prompt, Rollouts


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Collector):
    """The problem's demonstrations of ``prompts`` training prompts a step, with the end token behind each."""

    gives: ClassVar[tuple[str, ...]] = ("prompt_id",)
    prompts: int = 64

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        ids = prompt_ids(problem, self.prompts, clock)
        batch = demonstrations(policy, problem, ids)
        return Collected({"rollouts": batch}, {"cost/tokens": batch.mask.sum()})


def demonstrations(policy: LanguagePolicy, problem: Any, ids: Sequence[int]) -> Rollouts:
    """The demonstrations of the prompts ``ids`` as rows; cut where they would leave the model's context."""
    texts = problem.demonstrations(ids)
    batch, _ = written_rows(policy, problem.prompts(ids), range(len(texts)), texts, policy.context)
    return batch.replace(prompt_id=torch.tensor(ids, device=policy.device))


def written_rows(
    policy: LanguagePolicy,
    prompts: Sequence[Prompt],
    owner: Sequence[int],
    texts: Sequence[str],
    limit: int,
    prompt_limit: int | None = None,
) -> tuple[Rollouts, float]:
    """Given responses as rows: ``texts[n]`` answers ``prompts[owner[n]]``; and the share of them that was cut.

    The end token stands behind each. A row keeps its first ``limit`` tokens, fewer where the context ends; a prompt its last
    ``prompt_limit`` ones.
    """
    end = policy.end_tokens[:1].tolist()
    encoded = policy.encode(prompts, prompt_limit)
    tokens = [ids + end for ids in policy.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    room = [min(limit, policy.context - len(encoded[i])) for i in owner]
    rows = [torch.tensor(ids[:most], device=policy.device) for ids, most in zip(tokens, room, strict=True)]
    actions, length = padded(rows)
    prompt, prompt_length = padded([encoded[i] for i in owner])
    batch = Rollouts(
        actions=actions,
        mask=torch.arange(actions.shape[1], device=policy.device) < length[:, None],
        prompt=prompt,
        prompt_length=prompt_length,
        length=length,
        batch_size=[len(rows)],
    )
    return batch, sum(len(ids) > most for ids, most in zip(tokens, room, strict=True)) / len(tokens)
