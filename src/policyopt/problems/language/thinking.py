"""Arithmetic chains that may have to be answered before they are worked out.

    prompt         3+4*2-5=
    response       7,4,9;9      thinking, then ``;`` and the answer
    at 3 tokens    7,4;9        thinking cut short, ``;`` written by force, and the answer that is asked for then

Short chains are worked out within a small budget of thinking, long ones need a large one. Where thinking is cut, what is left
may still be done in the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from policyopt.problems.language.arithmetic import Arithmetic, read_range
from policyopt.problems.language.base import Act, read_options
from policyopt.types import Prompt

CLOSE = ";"


@dataclass(frozen=True, kw_only=True)
class Thinking(Arithmetic):
    """``Arithmetic``, evaluated at several ``budgets``: thinking tokens after which the answer is asked for, for a tokenizer
    of characters. A step takes two of them at wordiness 0."""

    name: str = "thinking"
    budgets: tuple[int, ...] = (5, 11, 17, 23)

    def __post_init__(self) -> None:
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < 1:
            raise ValueError(f"thinking: budgets must be positive and rise, got {self.budgets}")
        super().__post_init__()

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """Besides the scores of whole responses, the share of right answers when thinking is cut at each budget, and the mean
        of these: ``eval/budget_<b>``, ``eval/anytime``."""
        ids = range(min(self.evaluation_size, self.size("test")))
        prompts = self.prompts(ids, "test")
        responses = [sampled[0] for sampled in act(prompts, 1, False)]
        found = {f"eval/{name}": float(value.mean()) for name, value in self.score(ids, responses, "test").items()}
        for budget in self.budgets:
            begun = [response.partition(CLOSE)[0][:budget] + CLOSE for response in responses]
            asked: list[Prompt] = [f"{prompt}{start}" for prompt, start in zip(prompts, begun, strict=True)]
            whole = [start + answer[0] for start, answer in zip(begun, act(asked, 1, False), strict=True)]
            found[f"eval/budget_{budget}"] = float(self.score(ids, whole, "test")[self.metric].mean())
        anytime = sum(found[f"eval/budget_{budget}"] for budget in self.budgets) / len(self.budgets)
        return {**found, "eval/accuracy": found[f"eval/{self.metric}"], "eval/anytime": anytime}


def parse(text: str = "") -> Thinking:
    """The problem that ``thinking:<text>`` names: ``"terms=2-8,budgets=3+7+11"``.

    Raises:
        ValueError: an unknown option, or a value that cannot be read.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "budgets": lambda given: tuple(int(part) for part in given.split("+")),
        "terms": read_range,
        "modulus": int,
        "operations": str,
        "noise": float,
        "seed": int,
        "train_size": int,
        "test_size": int,
        "evaluation_size": int,
        "max_new_tokens": int,
    }
    return Thinking(**read_options(text, readers, ",", "thinking"))
