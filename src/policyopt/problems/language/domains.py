"""Eight synthetic domains of text in one vocabulary: a corpus whose sequences each come from one domain.

Some domains share their tokens (arithmetic and sorting use digits; copying and two Markov chains use letters) and some
have tokens of their own (brackets and two further chains), so that a domain and a vocabulary are different things.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from policyopt.types import generator

DIGITS, LETTERS, BRACKETS, GREEK, CYRILLIC = 0, 10, 26, 32, 48
PLUS, MINUS, EQUALS, ARROW, BAR = 64, 65, 66, 67, 68
VOCABULARY = 69
STATES = 16
WORD = 3
OPERANDS = 4


def arithmetic(number: int, length: int, rng: torch.Generator) -> Tensor:
    """Running values modulo 10, changed by less than ``OPERANDS``: ``3+2=5-3=2+…`` → tokens [N, T]."""
    terms = -(-length // 4)
    sign = torch.randint(2, (number, terms), generator=rng)
    digit = torch.randint(OPERANDS, (number, terms), generator=rng)
    change = (digit * (1 - 2 * sign)).cumsum(1).roll(1, 1)
    change[:, 0] = 0
    value = (torch.randint(10, (number, 1), generator=rng) + change) % 10
    text = torch.stack([value, PLUS + sign, digit, torch.full_like(digit, EQUALS)], dim=2)
    return text.flatten(1)[:, :length]


def _words(source: Tensor, result: Tensor, length: int) -> Tensor:
    """``source>result|`` word after word: source, result [N, W, WORD] → tokens [N, T]."""
    mark = torch.zeros_like(source[..., :1])
    return torch.cat([source, mark + ARROW, result, mark + BAR], dim=2).flatten(1)[:, :length]


def copying(number: int, length: int, rng: torch.Generator) -> Tensor:
    """Words of letters, each followed by its copy → tokens [N, T]."""
    words = LETTERS + torch.randint(STATES, (number, length // (2 * WORD) + 1, WORD), generator=rng)
    return _words(words, words, length)


def sorting(number: int, length: int, rng: torch.Generator) -> Tensor:
    """Words of digits, each followed by its digits in order → tokens [N, T]."""
    words = DIGITS + torch.randint(10, (number, length // (2 * WORD) + 1, WORD), generator=rng)
    return _words(words, words.sort(2).values, length)


def brackets(number: int, length: int, rng: torch.Generator, deepest: int = 8) -> Tensor:
    """A language of three nested kinds of brackets, at most ``deepest`` open at once → tokens [N, T]."""
    rows, depth = torch.arange(number), torch.zeros(number, dtype=torch.int64)
    stack = torch.zeros(number, deepest, dtype=torch.int64)
    opens = torch.rand(length, number, generator=rng) < 0.5
    kinds = torch.randint(3, (length, number), generator=rng)
    text = torch.empty(number, length, dtype=torch.int64)
    for step in range(length):
        opening = (opens[step] & (depth < deepest)) | (depth == 0)
        level = depth - (~opening).long()
        stack[rows, level] = torch.where(opening, kinds[step], stack[rows, level])
        text[:, step] = BRACKETS + 2 * stack[rows, level] + (~opening).long()
        depth = level + opening.long()
    return text


@dataclass(frozen=True, kw_only=True)
class MarkovChain:
    """Text of a Markov chain over the 16 tokens from ``first`` on; each has four successors, drawn from ``seed``."""

    first: int
    seed: int

    @cached_property
    def cumulative(self) -> Tensor:
        """Cumulative probabilities of the successors [16, 16]."""
        rng = generator(self.seed, "markov-chain")
        successors = torch.rand(STATES, STATES, generator=rng).topk(4).indices
        weights = torch.rand(STATES, 4, generator=rng) + 0.1
        sums = torch.zeros(STATES, STATES).scatter_(1, successors, weights).cumsum(1)
        return sums / sums[:, -1:]

    def __call__(self, number: int, length: int, rng: torch.Generator) -> Tensor:
        state = torch.randint(STATES, (number,), generator=rng)
        draws = torch.rand(length, number, 1, generator=rng)
        text = torch.empty(number, length, dtype=torch.int64)
        for step in range(length):
            text[:, step] = state
            state = (draws[step] >= self.cumulative[state]).sum(1)
        return self.first + text


@dataclass(frozen=True, kw_only=True)
class Domains:
    """Sequences of ``length`` tokens; row n of a sample is of domain n mod 8. ``seed`` draws the Markov chains."""

    name: ClassVar[str] = "domains"
    vocabulary: ClassVar[int] = VOCABULARY
    length: int = 256
    seed: int = 0
    evaluation_size: int = 128

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"a sequence needs at least 2 tokens, got length={self.length}")

    @property
    def domains(self) -> dict[str, Callable[[int, int, torch.Generator], Tensor]]:
        """The domains by name; each gives tokens [N, T] for (number, length, generator)."""
        return {
            "arithmetic": arithmetic,
            "copying": copying,
            "sorting": sorting,
            "brackets": brackets,
            "chain-letters-1": MarkovChain(first=LETTERS, seed=4 * self.seed),
            "chain-letters-2": MarkovChain(first=LETTERS, seed=4 * self.seed + 1),
            "chain-greek": MarkovChain(first=GREEK, seed=4 * self.seed + 2),
            "chain-cyrillic": MarkovChain(first=CYRILLIC, seed=4 * self.seed + 3),
        }

    def sample(self, number: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """``number`` sequences, the domains in turn → (tokens [N, T], domain [N])."""
        rows = -(-number // len(self.domains))
        texts = [make(rows, self.length, rng) for make in self.domains.values()]
        return torch.stack(texts, 1).flatten(0, 1)[:number], torch.arange(number) % len(self.domains)

    def evaluate(self, act: Callable[[Tensor], Tensor], rng: torch.Generator) -> dict[str, float]:
        """Mean loss in nats a token, over all and for each domain.

        ``act`` gives the log-probability of every token but the first, tokens [N, T] → [N, T - 1].
        """
        tokens, domain = self.sample(self.evaluation_size, rng)
        loss = -act(tokens).mean(1)
        each = {f"eval/loss/{name}": float(loss[domain == i].mean()) for i, name in enumerate(self.domains)}
        return {"eval/loss": float(loss.mean()), **each}
