"""Token sequences to continue, what was sampled behind them, and the record that grows while it is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policyopt.models.attention import KeyValues


@dataclass
class Prefixes:
    """Token sequences to continue, with keys and values of their beginnings where a former ``extend`` kept them.

    ``known`` is valid for the weights with the stamp ``version`` alone; afterwards the tokens are computed anew.
    """

    tokens: list[Tensor]
    known: KeyValues | None = None
    version: int = -1


@dataclass
class Continuations:
    """What ``extend`` sampled: sample i = prefix · samples + j continues prefix i // samples.

    actions, behaviour_logp, old_logp, entropy [M, T] (padded on the right), length [M]; finished [M] is False where the
    limit cut the response. ``forward_tokens`` counts every token that went through the model, recomputed prefixes included;
    ``sampled_tokens`` the sampled ones.
    """

    prefixes: list[Tensor]
    samples: int
    actions: Tensor
    behaviour_logp: Tensor
    old_logp: Tensor
    entropy: Tensor
    length: Tensor
    finished: Tensor
    forward_tokens: int
    version: int
    decoder: Any = None

    @property
    def sampled_tokens(self) -> int:
        return int(self.length.sum())

    def tokens(self, row: int, length: int | None = None) -> Tensor:
        """Prefix and the first ``length`` tokens of a sample (all of them by default)."""
        own = self.actions[row, : int(self.length[row]) if length is None else length]
        return torch.cat([self.prefixes[row // self.samples], own])

    def cut(self, rows: Sequence[int], lengths: Sequence[int], append: Sequence[Tensor] | None = None) -> Prefixes:
        """Prefixes that end after ``lengths[i]`` tokens of sample ``rows[i]``, with ``append[i]`` behind.

        With ``extend(…, keep=True)`` their keys and values are handed on, so that only the last token and what is
        appended are computed again.
        """
        tokens = [self.tokens(r, n) for r, n in zip(rows, lengths, strict=True)]
        known = None
        if self.decoder is not None and len(rows):
            index = torch.tensor(rows, device=self.length.device)
            computed = torch.tensor(lengths, device=index.device).clamp(max=self.length[index] - 1)
            known = self.decoder.memory(index, computed)
        if append is not None:
            tokens = [torch.cat([t, a]) for t, a in zip(tokens, append, strict=True)]
        if known is not None:  # the last token's hidden state is needed again
            total = torch.tensor([len(t) for t in tokens], device=self.length.device)
            known.length = torch.minimum(known.length, total - 1)
        return Prefixes(tokens, known, self.version)


class Record:
    """The columns of M responses while they grow."""

    def __init__(self, count: int, steps: int, device: torch.device) -> None:
        self.shape, self.columns = (count, steps), dict[str, Tensor]()
        self.length = torch.zeros(count, dtype=torch.int64, device=device)
        self.finished = torch.zeros(count, dtype=torch.bool, device=device)

    def add(self, rows: Tensor, step: int, chosen: dict[str, Tensor]) -> None:
        for name, values in chosen.items():
            if step == 0:
                self.columns[name] = values.new_zeros(*self.shape, *values.shape[1:])
            self.columns[name][rows, step] = values
        self.length[rows] = step + 1

    def continuations(
        self, prefixes: list[Tensor], samples: int, forward_tokens: int, version: int, decoder: Any
    ) -> Continuations:
        longest = int(self.length.max())
        return Continuations(
            prefixes=prefixes,
            samples=samples,
            length=self.length,
            finished=self.finished,
            forward_tokens=forward_tokens,
            version=version,
            decoder=decoder,
            **{name: column[:, :longest].contiguous() for name, column in self.columns.items()},
        )
