"""Rollouts that are kept: gathered once, learned from many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import pad

from policyopt.rollouts.language import prompt_ids
from policyopt.types import Clock, Collected, Collector, Rollouts


def joined(batches: Sequence[Rollouts]) -> Rollouts:
    """Language batches as one, padded to the longest; groups stay apart. Columns that not all have are dropped."""
    columns: dict[str, Any] = {}
    for name in (f.name for f in fields(Rollouts)):
        parts = [getattr(batch, name) for batch in batches]
        if all(isinstance(part, Tensor) for part in parts):
            columns[name] = _stacked(parts)
    columns["group"] = _apart([batch.group for batch in batches])
    names = set.intersection(*(set(batch.scores.keys()) for batch in batches))
    count = len(columns["actions"])
    scores = {name: torch.cat([batch.scores[name] for batch in batches]) for name in sorted(names)}
    return Rollouts(**columns, scores=TensorDict(scores, [count]), batch_size=[count])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].dim() < 2:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    padding = [(0, 0) * (part.dim() - 2) + (0, longest - part.shape[1]) for part in parts]
    return torch.cat([pad(part, widths) for part, widths in zip(parts, padding, strict=True)])


def _apart(groups: Sequence[Tensor]) -> Tensor:
    first, numbered = 0, []
    for group in groups:
        _, index = group.unique(return_inverse=True)
        numbered.append(index + first)
        first += int(index.max()) + 1
    return torch.cat(numbered)


def columns_of(batch: Rollouts) -> dict[str, Any]:
    """The batch as nested dictionaries of tensors, to be saved."""
    found = {f.name: getattr(batch, f.name) for f in fields(Rollouts)}
    columns = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return {**columns, "scores": dict(batch.scores.items())}


def from_columns(columns: dict[str, Any]) -> Rollouts:
    """The batch whose ``columns_of`` this is."""
    count = len(columns["actions"])
    return Rollouts(**{**columns, "scores": TensorDict(columns["scores"], [count])}, batch_size=[count])


class _Groups:
    """A batch's groups as something with training prompts, so that they are served in the order of ``prompt_ids``."""

    def __init__(self, count: int) -> None:
        self.count, self.name = count, "kept rollouts"

    def size(self, split: str) -> int:
        return self.count


@dataclass(frozen=True, kw_only=True)
class Kept(Collector):
    """``groups`` groups of kept rollouts a step, each group once an epoch."""

    gives: ClassVar[tuple[str, ...]] = ("scores", "group", "prompt_id", "behaviour_logp", "old_logp", "ref_logp")
    data: Rollouts | None = field(default=None, repr=False)
    groups: int = 32

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        if self.data is None:
            raise ValueError("there are no kept rollouts: put a stage that gathers some before this one")
        _, index = self.data.group.unique(return_inverse=True)
        chosen = prompt_ids(_Groups(int(index.max()) + 1), self.groups, clock)
        rows = torch.cat([(index == group).nonzero().squeeze(1) for group in dict.fromkeys(chosen)])
        batch = self.data[rows]
        longest = int(batch.length.max())
        batch = batch.replace(actions=batch.actions[:, :longest], mask=batch.mask[:, :longest], **_cut(batch, longest))
        return Collected({"rollouts": batch}, {"response/length": batch.length.float().mean()})


def _cut(batch: Rollouts, longest: int) -> dict[str, Tensor]:
    """The other columns [N, T, …] without padding that no row of the batch needs."""
    others = {f.name: getattr(batch, f.name) for f in fields(Rollouts) if f.name not in ("actions", "mask", "prompt")}
    long = batch.mask.shape[1]
    return {
        name: column[:, :longest]
        for name, column in others.items()
        if isinstance(column, Tensor) and column.dim() > 1 and column.shape[1] == long
    }
