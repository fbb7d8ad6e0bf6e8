"""Chains of operations modulo m with written steps and a verifiable answer; a tiny model learns them in minutes.

The prompt ``3+4*2-5=`` is worked from left to right, modulo 10. A response writes its steps, then ``;`` and the answer:

    wordiness 0    7,4,9;9                          the running values
    wordiness 1    3+4=7,7*2=4,4-5=9;9              each step spelt out
    wordiness 2    3+4=7=7,7*2=14=4,4-5=-1=9;9      each step with its value before and after the reduction
    calculator     <3+4>7,<7*2>4,<4-5>9;9           a call in angle brackets; the environment writes what follows it

``operations=+`` leaves running sums, ``terms=3-30`` draws lengths: ``arithmetic:operations=+,terms=9,noise=0.12`` has eight
steps, each of a demonstration wrong with probability 0.12, and an answer that is right iff the last running sum is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Any, ClassVar, NamedTuple

import torch

from policyopt.problems.language.base import LanguageProblem, read_options
from policyopt.types import Prompt, Ranking, Scores

ALPHABET = "0123456789+-*=,;<>?"
"""Every character that the family's prompts, responses and tool replies use."""

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
STEPS = (
    "{result}",
    "{value}{operation}{operand}={result}",
    "{value}{operation}{operand}={raw}={result}",
)
CALL = "<{value}{operation}{operand}>{result}"

_HELD_OUT = 10  # one expression in ten is held out
_ATTEMPTS = 10_000


class Chain(NamedTuple):
    """An expression and its right running values: ``results[i]`` after operation i, the last one the answer."""

    text: str
    values: tuple[int, ...]
    operations: str
    results: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Arithmetic(LanguageProblem):
    """Chains of operations modulo ``modulus``; scores "accuracy" (the answer is right) and "format" (it can be read).

    terms: numbers in a chain, fixed or (low, high), both included. operations: some of ``+-*``.
    wordiness: of demonstrations, see above; (low, high) draws one for each instance.
    noise: probability that a demonstration's step is wrong. The wrong value is carried on: everything after the slip
        follows from it.
    budget: where given, a score component "within_budget": the response has at most so many characters, which are the
        tokens of a character tokenizer.
    max_new_tokens: 0 stands for twice the longest demonstration.

    Which expressions are held out is decided by a hash of the expression alone, so that an expression seen in training,
    under any seed, is never a held-out one. An expression may occur more than once in its split.
    """

    name: str = "arithmetic"
    max_new_tokens: int = 0
    terms: int | tuple[int, int] = (2, 12)
    modulus: int = 10
    operations: str = "+-*"
    wordiness: int | tuple[int, int] = 0
    noise: float = 0.15
    budget: int | None = None
    seed: int = 0
    train_size: int = 20_000
    test_size: int = 1_000

    def __post_init__(self) -> None:
        _require(2 <= _low(self.terms) <= _high(self.terms), "terms", self.terms, "2 or more, or (low, high)")
        _require(2 <= self.modulus <= 10**6, "modulus", self.modulus, "between 2 and 1000000")
        _require(set(self.operations) in _SUBSETS, "operations", self.operations, "some of + - *, each once")
        _require(
            0 <= _low(self.wordiness) <= _high(self.wordiness) < len(STEPS), "wordiness", self.wordiness, "0, 1 or 2"
        )
        _require(0.0 <= self.noise <= 1.0, "noise", self.noise, "a probability")
        _require(self.budget is None or self.budget > 0, "budget", self.budget, "positive")
        _require(min(self.train_size, self.test_size) > 0, "train_size and test_size", self.test_size, "positive")
        longest = self._longest_demonstration()
        if self.max_new_tokens == 0:
            object.__setattr__(self, "max_new_tokens", 2 * longest)
        _require(
            self.max_new_tokens >= longest,
            "max_new_tokens",
            self.max_new_tokens,
            f"at least {longest}, the longest demonstration with its end, or 0 for twice that",
        )
        self.chains([0], "train")
        self.chains([0], "test")

    def size(self, split: str) -> int:
        self.check((), split)
        return self.train_size if split == "train" else self.test_size

    def chains(self, ids: Sequence[int], split: str = "train") -> list[Chain]:
        """The expressions behind the prompts, with their right running values."""
        terms = (_low(self.terms), _high(self.terms))
        return [_chain(self.seed, split, index, terms, self.modulus, self.operations) for index in ids]

    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        self.check(ids, split)
        return [f"{chain.text}=" for chain in self.chains(ids, split)]

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        self.check(ids, split)
        finals = [response.rpartition(";")[1:] for response in responses]
        answers = [final.strip() if marker else "" for marker, final in finals]
        right = [str(chain.results[-1]) for chain in self.chains(ids, split)]
        scores = {
            "accuracy": torch.tensor([answer == truth for answer, truth in zip(answers, right, strict=True)]).float(),
            "format": torch.tensor([self._readable(answer) for answer in answers]).float(),
        }
        if self.budget is not None:
            scores["within_budget"] = torch.tensor([len(response) <= self.budget for response in responses]).float()
        return scores

    def demonstrations(self, ids: Sequence[int], split: str = "train") -> list[str]:
        """Worked responses, wrong steps among them where ``noise`` is above 0."""
        self.check(ids, split)
        return [self._demonstration(index, split) for index in ids]

    def hints(self, ids: Sequence[int], share: float, split: str = "train") -> list[str]:
        """The first ``share`` of the right steps, rounded to whole steps; all of them end with the ``;``."""
        _require(0.0 <= share <= 1.0, "share", share, "between 0 and 1")
        self.check(ids, split)
        return [_first_steps(self._right(index, split), share) for index in ids]

    def rankings(self, ids: Sequence[int], split: str = "train") -> list[Ranking]:
        """For each prompt a right response and one with a slip in one step and, from it, a wrong answer."""
        self.check(ids, split)
        return [((self._right(index, split), self._wrong(index, split)), (1.0, 0.0)) for index in ids]

    def _templates(self, steps: int, rng: Random) -> list[str]:
        """How each step of a demonstration is written."""
        return [STEPS[_low(self.wordiness) + _below(_high(self.wordiness) - _low(self.wordiness) + 1, rng)]] * steps

    def _demonstration(self, index: int, split: str) -> str:
        (chain,), rng = self.chains([index], split), self._style(index, split)
        templates = self._templates(len(chain.operations), rng)
        shifts = [self._slip(rng) if rng.random() < self.noise else 0 for _ in templates]
        shifts = [0 if template is CALL else shift for template, shift in zip(templates, shifts, strict=True)]
        return _spell(chain, self.modulus, templates, shifts)

    def _right(self, index: int, split: str) -> str:
        (chain,) = self.chains([index], split)
        templates = self._templates(len(chain.operations), self._style(index, split))
        return _spell(chain, self.modulus, templates, [0] * len(templates))

    def _wrong(self, index: int, split: str) -> str:
        (chain,), rng = self.chains([index], split), self._style(index, split)
        templates = self._templates(len(chain.operations), rng)
        last, shift = len(templates) - 1, self._slip(rng)
        by_head = [STEPS[0] if template is CALL else template for template in templates]
        for slip in (_below(len(templates), rng), last):  # a later product may forgive a slip; the last step's stands
            styles = [*templates[:slip], by_head[slip], *templates[slip + 1 :]]
            wrong = _spell(chain, self.modulus, styles, [0] * slip + [shift] + [0] * (last - slip))
            if wrong.rpartition(";")[2] != str(chain.results[-1]):
                break
        return wrong

    def _slip(self, rng: Random) -> int:
        return 1 + _below(self.modulus - 1, rng)

    def _style(self, index: int, split: str) -> Random:
        return Random(f"style {self.seed} {split} {index}")

    def _readable(self, answer: str) -> bool:
        short = len(answer) <= len(str(self.modulus - 1)) and answer.isascii() and answer.isdecimal()
        return short and int(answer) < self.modulus and str(int(answer)) == answer

    def _step_width(self) -> int:
        digits = len(str(self.modulus - 1))
        return (digits, 3 * digits + 2, 5 * digits + 3)[_high(self.wordiness)]

    def _longest_demonstration(self) -> int:
        """Characters of the longest demonstration, and one for its end token."""
        return (_high(self.terms) - 1) * (self._step_width() + 1) + len(str(self.modulus - 1)) + 1


@dataclass(frozen=True, kw_only=True)
class Calculator(Arithmetic):
    """The family with a calculator: ``reply`` answers a call, scores have "calls", the number of calls in a response.

    calls: probability that a demonstration's step calls the calculator. A call is never wrong: ``noise`` is for the
        steps done by head. max_calls: calls after these get no reply.
    """

    name: str = "arithmetic-calculator"
    calls: float = 1.0
    max_calls: int = 16
    call_stop: ClassVar[tuple[str, ...]] = (">",)
    """Texts behind which a reply may be due: where a collector has to ask for one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0.0 <= self.calls <= 1.0, "calls", self.calls, "a probability")

    def reply(self, transcript: str) -> str | None:
        """What the calculator writes behind a call: the result modulo m, ``?`` where it cannot read the call.

        None where no call has just ended, or after ``max_calls`` calls.
        """
        if not transcript.endswith(">") or transcript.count(">") > self.max_calls:
            return None
        call = _CALL.search(transcript[-_CALL_WIDTH:])
        if call is None:
            return "?"
        left, operation, right = call.groups()
        return str(OPERATIONS[operation](int(left), int(right)) % self.modulus)

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        calls = torch.tensor([float(response.count(">")) for response in responses])
        return {**super().components(ids, responses, split), "calls": calls}

    def _templates(self, steps: int, rng: Random) -> list[str]:
        return [CALL if rng.random() < self.calls else by_head for by_head in super()._templates(steps, rng)]

    def _step_width(self) -> int:
        return max(super()._step_width(), 3 * len(str(self.modulus - 1)) + 3)


_SUBSETS = [{*"+"}, {*"-"}, {*"*"}, {*"+-"}, {*"+*"}, {*"-*"}, {*"+-*"}]
_CALL = re.compile(r"<([0-9]{1,6})([-+*])([0-9]{1,6})>\Z")
_CALL_WIDTH = 15


def parse(text: str = "") -> Arithmetic:
    """The problem that ``arithmetic:<text>`` names: ``"terms=2-6,noise=0.1"``, ``"calculator,modulus=97"``.

    Raises:
        ValueError: an unknown option, or a value that cannot be read.
    """
    variant, _, rest = text.partition(",")
    kind, options = (Calculator, rest) if variant.strip() == "calculator" else (Arithmetic, text)
    readers: dict[str, Callable[[str], Any]] = {
        "terms": read_range,
        "modulus": int,
        "operations": str,
        "wordiness": read_range,
        "noise": float,
        "budget": int,
        "seed": int,
        "train_size": int,
        "test_size": int,
        "evaluation_size": int,
        "max_new_tokens": int,
    }
    if kind is Calculator:
        readers |= {"calls": float, "max_calls": int}
    return kind(**read_options(options, readers, ",", "arithmetic"))


@lru_cache(maxsize=1 << 17)
def _chain(seed: int, split: str, index: int, terms: tuple[int, int], modulus: int, operations: str) -> Chain:
    """Instance ``index`` of a split: expressions are drawn until one belongs to the split."""
    rng = Random(f"chain {seed} {split} {index}")
    for _ in range(_ATTEMPTS):
        length = terms[0] + _below(terms[1] - terms[0] + 1, rng)
        values = tuple(_below(modulus, rng) for _ in range(length))
        signs = "".join(operations[_below(len(operations), rng)] for _ in range(length - 1))
        text = str(values[0]) + "".join(f"{sign}{value}" for sign, value in zip(signs, values[1:], strict=True))
        if _held_out(text) == (split == "test"):
            return Chain(text, values, signs, _results(values, signs, modulus))
    raise ValueError(
        f"arithmetic: terms={terms}, modulus={modulus}, operations={operations!r} give too few expressions to fill the "
        f"split {split!r}; use more terms, a larger modulus or more operations"
    )


def _held_out(text: str) -> bool:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) % _HELD_OUT == 0


def _results(values: Sequence[int], signs: str, modulus: int) -> tuple[int, ...]:
    results: list[int] = []
    value = values[0]
    for sign, operand in zip(signs, values[1:], strict=True):
        value = OPERATIONS[sign](value, operand) % modulus
        results.append(value)
    return tuple(results)


def _spell(chain: Chain, modulus: int, templates: Sequence[str], shifts: Sequence[int]) -> str:
    """A response whose step i is written by ``templates[i]`` and off by ``shifts[i]``; later steps follow from it."""
    steps, value = [], chain.values[0]
    for sign, operand, template, shift in zip(chain.operations, chain.values[1:], templates, shifts, strict=True):
        raw = OPERATIONS[sign](value, operand) + shift
        steps.append(template.format(value=value, operation=sign, operand=operand, raw=raw, result=raw % modulus))
        value = raw % modulus
    return f"{','.join(steps)};{value}"


def _first_steps(response: str, share: float) -> str:
    steps = response.partition(";")[0].split(",")
    count = round(share * len(steps))
    return "".join(f"{step}," for step in steps[:count]) if count < len(steps) else ",".join(steps) + ";"


def _below(bound: int, rng: Random) -> int:
    """Uniform in 0 … bound-1, from ``Random.random``: the one stream that Python keeps the same in all versions."""
    return int(rng.random() * bound)


def _low(value: int | tuple[int, int]) -> int:
    return value if isinstance(value, int) else value[0]


def _high(value: int | tuple[int, int]) -> int:
    return value if isinstance(value, int) else value[1]


def read_range(text: str) -> int | tuple[int, int]:
    """``"3"`` → 3, ``"2-5"`` → (2, 5)."""
    low, dash, high = text.partition("-")
    return (int(low), int(high)) if dash else int(low)


def _require(holds: bool, name: str, given: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"arithmetic: {name}={given} is not possible; expected {expected}")
