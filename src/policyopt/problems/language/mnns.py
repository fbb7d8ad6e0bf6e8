"""Minimum non-negative signed sum: give each of some digits a sign, so that the sum is as small as can be without being
negative (arXiv 2505.23648, §2). A small search problem: the states are the partial sums, 2^t of them after t digits.

    prompt       D2 D5 D3 D9                 the digits
    response     S1                          the answer, 2 + 5 + 3 - 9
    with chain   D2 D5 D3 D9 -> S2 S7 S10 S1 the partial sums on the way to it

Instances are all sequences of the digits 1 to 9. Which are held out is decided by the digits without their order, so
that no held-out instance is a permutation of a training one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations_with_replacement, permutations, product
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from policyopt.problems.language.base import Act, LanguageProblem, read_options
from policyopt.types import Prompt, Scores

DIGITS = range(1, 10)
HELD_OUT = 0.2


def traces(digits: Sequence[int], count: int | None = None) -> list[tuple[int, ...]]:
    """Partial sums of the ``count`` best signings (None: of all 2^m), the best first.

    In order of the final sum: nearest to zero, non-negative before negative, then by the signs, + before -.
    """
    found = [tuple(accumulate(s * d for s, d in zip(signs, digits, strict=True))) for signs in _signs(len(digits))]
    found.sort(key=lambda sums: (abs(sums[-1]), sums[-1] < 0))  # stable: the signs decide between equals
    return found[:count]


def minimum(digits: Sequence[int]) -> int:
    """The least non-negative signed sum."""
    return traces(digits, 1)[0][-1]


def superposition(digits: Sequence[int], count: int | None = None) -> list[dict[int, float]]:
    """For each step the share of the ``count`` best signings at each partial sum."""
    chosen = traces(digits, count)
    steps: list[dict[int, float]] = []
    for sums in zip(*chosen, strict=True):
        shares = dict.fromkeys(sums, 0.0)
        for value in sums:
            shares[value] += 1 / len(chosen)
        steps.append(shares)
    return steps


def _signs(length: int) -> list[tuple[int, ...]]:
    return list(product((1, -1), repeat=length))


@dataclass(frozen=True, kw_only=True)
class MinimumSignedSum(LanguageProblem):
    """Signed sums of ``length`` digits; scores "accuracy": the last word of the response is the answer.

    chain: the demonstrations, and responses until they end of themselves, write the partial sums; without it the first
        sum that is written is the answer.
    split_seed: which digit multisets, one in five, are held out.
    """

    name: str = "signed-sum"
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0
    length: int = 4
    chain: bool = False
    split_seed: int = 0
    evaluation_size: int = 1 << 20

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 6:
            raise ValueError(
                f"signed-sum: length={self.length} is not possible; expected 2 to 6 digits, 9^length instances"
            )
        object.__setattr__(self, "max_new_tokens", self.max_new_tokens or self.length + self.chain)
        object.__setattr__(self, "stop", self.stop or (() if self.chain else ("S",)))

    def size(self, split: str) -> int:
        self.check((), split)
        return len(self._instances(split))

    def digits(self, ids: Sequence[int], split: str = "train") -> list[tuple[int, ...]]:
        instances = self._instances(split)
        return [instances[i] for i in ids]

    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        self.check(ids, split)
        arrow = " ->" if self.chain else ""
        return [" ".join(f"D{d}" for d in digits) + arrow for digits in self.digits(ids, split)]

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        self.check(ids, split)
        right = [f"S{_best(digits, 1)[0][-1]}" for digits in self.digits(ids, split)]
        given = [response.rpartition(" ")[2] for response in responses]
        return {"accuracy": torch.tensor([a == b for a, b in zip(given, right, strict=True)]).float()}

    def demonstrations(self, ids: Sequence[int], split: str = "train") -> list[str]:
        """The answer, with ``chain`` the partial sums that lead to it."""
        self.check(ids, split)
        best = [_best(digits, 1)[0] for digits in self.digits(ids, split)]
        return [" ".join(f"S{value}" for value in (sums if self.chain else sums[-1:])) for sums in best]

    def soft_demonstrations(
        self, ids: Sequence[int], count: int, split: str = "train"
    ) -> list[tuple[Mapping[str, float], ...]]:
        """For each prompt and step the words that the ``count`` best signings write there, with their shares.

        The last step is the answer alone.
        """
        self.check(ids, split)
        return [_soft(digits, count) for digits in self.digits(ids, split)]

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """The share of held-out instances whose answer is right, each token of the response being the likeliest one."""
        ids = range(min(self.evaluation_size, self.size("test")))
        responses = [texts[0] for texts in act(self.prompts(ids, "test"), 1, True)]
        return {"eval/accuracy": float(self.components(ids, responses, "test")["accuracy"].mean())}

    def tokenizer(self) -> Any:
        """A token a word: digits D0 to D9, every sum that can occur, ``->``, ``+``, ``-``, <pad>, <bos>, <eos>.

        A prompt begins with <bos>.
        """
        reach = DIGITS[-1] * self.length
        words = ["<pad>", "<bos>", "<eos>", "->", "+", "-", *(f"D{d}" for d in range(10))]
        words += [f"S{value}" for value in range(-reach, reach + 1)]
        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            clean_up_tokenization_spaces=False,
        )

    def _instances(self, split: str) -> list[tuple[int, ...]]:
        return _split(self.length, self.split_seed)[split]


@lru_cache(maxsize=4)
def _split(length: int, seed: int) -> dict[str, list[tuple[int, ...]]]:
    """All instances of each split, in random order."""
    rng = Random(f"mnns {seed}")
    multisets = list(combinations_with_replacement(DIGITS, length))
    multisets.sort(key=lambda _: rng.random())
    held_out = round(HELD_OUT * len(multisets))
    parts = {"test": multisets[:held_out], "train": multisets[held_out:]}
    return {
        split: sorted((p for m in part for p in sorted(set(permutations(m)))), key=lambda _: rng.random())
        for split, part in parts.items()
    }


@lru_cache(maxsize=1 << 20)
def _best(digits: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    return traces(digits, count)


@lru_cache(maxsize=1 << 17)
def _soft(digits: tuple[int, ...], count: int) -> tuple[Mapping[str, float], ...]:
    *steps, _ = superposition(digits, count)
    thoughts = [{f"S{value}": share for value, share in shares.items()} for shares in steps]
    return (*thoughts, {f"S{minimum(digits)}": 1.0})


def parse(text: str = "") -> MinimumSignedSum:
    """The problem that ``signed-sum:<text>`` names: ``"length=4,chain=yes"``.

    Raises:
        ValueError: an unknown option, or a value that cannot be read.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "length": int,
        "chain": _flag,
        "split_seed": int,
        "evaluation_size": int,
    }
    return MinimumSignedSum(**read_options(text, readers, ",", "signed-sum"))


def _flag(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("write yes or no")
    return text == "yes"
