"""Caches of experts in fast memory, simulated on a model's routing: what share of its accesses would hit.

A cache holds C experts; every expert that a token uses has to be loaded, and where the cache is full the one with the
lowest priority leaves. The priorities make the policy: LRU, LFU, Belady's, or a look ahead by one segment (SCH, arXiv
2505.16056). Samples, layers and cache sizes are simulated side by side; only time is a loop.

Axes: L layers, N samples (of one layer, or of all), T tokens, K active experts, E experts, C cache sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from policyopt.models.mixture_of_experts import Routing


class CachePolicy(Protocol):
    """Yields the priorities of all experts [N, E] at every access, token by token; a full cache evicts the lowest."""

    def __call__(self, experts: Tensor, valid: Tensor, number: int) -> Iterator[Tensor]: ...


def least_recently_used(experts: Tensor, valid: Tensor, number: int) -> Iterator[Tensor]:
    """Evict what was used longest ago."""
    last = torch.zeros(len(experts), number, dtype=torch.int64)
    for time, expert in enumerate(experts.flatten(1).unbind(1)):
        yield last
        last.scatter_(1, expert[:, None], time + 1)


def least_frequently_used(experts: Tensor, valid: Tensor, number: int) -> Iterator[Tensor]:
    """Evict what was used least often so far, then what was used longest ago."""
    accesses = experts.flatten(1)
    often = torch.zeros(len(experts), number, dtype=torch.int64)
    for expert, last in zip(accesses.unbind(1), least_recently_used(experts, valid, number), strict=True):
        yield often * (accesses.shape[1] + 1) + last
        often.scatter_add_(1, expert[:, None], torch.ones_like(expert)[:, None])


def belady(experts: Tensor, valid: Tensor, number: int) -> Iterator[Tensor]:
    """Evict what is used again last: the best possible where tokens have one expert."""
    accesses = experts.flatten(1)
    order = accesses.argsort(dim=1, stable=True)
    ordered = accesses.gather(1, order)
    repeats = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (0, 1))
    following = torch.where(repeats, order.roll(-1, 1), accesses.shape[1])
    next_use = torch.empty_like(accesses).scatter_(1, order, following)
    priority = torch.zeros(len(experts), number, dtype=torch.int64)
    for expert, upcoming in zip(accesses.unbind(1), next_use.unbind(1), strict=True):
        yield priority
        priority.scatter_(1, expert[:, None], -upcoming[:, None])


@dataclass(frozen=True, kw_only=True)
class LookAhead:
    """Evict what is used least often in the ``segment`` tokens from the current one on, then what was used longest ago.

    Neither padding nor the uses that the current token has already made count. With a segment of one token this is the
    least-recently-used rule.
    """

    segment: int

    def __call__(self, experts: Tensor, valid: Tensor, number: int) -> Iterator[Tensor]:
        length, active = experts.shape[1:]
        counted = valid.long()[..., None].expand_as(experts)
        coming = torch.zeros(len(experts), number, dtype=torch.int64)
        coming.scatter_add_(1, experts[:, : self.segment].flatten(1), counted[:, : self.segment].flatten(1))
        recency = least_recently_used(experts, valid, number)
        for token in range(length):
            for slot in range(active):
                yield coming * (length * active + 1) + next(recency)
                coming.scatter_add_(1, experts[:, token, slot, None], -counted[:, token, slot, None])
            if token + self.segment < length:
                coming.scatter_add_(1, experts[:, token + self.segment], counted[:, token + self.segment])


def cache_hits(routing: Routing, sizes: Sequence[int], policy: CachePolicy) -> Tensor:
    """Hits of each token's experts in an initially empty cache of each of ``sizes`` experts: [L, N, T, C], 0 to K each.

    A token's experts are looked up before any of them is loaded, then loaded in their order in ``routing``; the first
    uses that fill the cache count as hits. Every layer has a cache of its own: for one cache of all layers give
    ``routing.one_cache()``.
    """
    if min(sizes) < 1:
        raise ValueError(f"a cache holds at least one expert, got sizes={list(sizes)}")
    layers, samples, length, _ = routing.experts.shape
    experts = routing.experts.flatten(0, 1)
    valid = routing.valid.expand(layers, -1, -1).flatten(0, 1)
    size = torch.tensor(sizes)[:, None]
    cached = torch.zeros(len(experts), len(sizes), routing.number, dtype=torch.bool)
    hits = torch.zeros(len(experts), length, len(sizes), dtype=torch.int64)
    priorities = policy(experts, valid, routing.number)
    for token in range(length):
        wanted = experts[:, token, None].expand(-1, len(sizes), -1)
        missing = ~cached.gather(2, wanted)
        filling = cached.sum(2, keepdim=True) + missing.cumsum(2) <= size
        hits[:, token] = (~missing | filling).sum(2)
        for expert in wanted.unbind(2):
            _load(cached, expert[..., None], size, next(priorities))
    return (hits * valid[..., None]).view(layers, samples, length, len(sizes))


def _load(cached: Tensor, expert: Tensor, size: Tensor, priority: Tensor) -> None:
    """Bring ``expert`` [N, C, 1] into each of the caches [N, C, E], in the place of the lowest priority where full."""
    evict = ~cached.gather(2, expert) & (cached.sum(2, keepdim=True) >= size)
    lowest = priority[:, None].where(cached, torch.iinfo(torch.int64).max).argmin(2, keepdim=True)
    cached.scatter_(2, lowest, cached.gather(2, lowest) & ~evict)
    cached.scatter_(2, expert, True)


def hit_rates(routing: Routing, sizes: Sequence[int], policy: CachePolicy) -> Tensor:
    """The share of accesses that hit, per layer and sample: [L, N, C]. SCH of cache ratio ρ is that of ``LookAhead``,
    for caches of ρK experts."""
    accesses = routing.valid.sum(1)[:, None] * routing.experts.shape[-1]
    return cache_hits(routing, sizes, policy).sum(2) / accesses
