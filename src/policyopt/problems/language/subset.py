"""Some of the training prompts of a language problem, as a problem of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policyopt.problems.language.base import LanguageProblem
from policyopt.types import Prompt, Ranking, Scores


@dataclass(frozen=True, kw_only=True)
class Subset(LanguageProblem):
    """The training prompts ``ids`` of ``whole``; held-out prompts are all of its own."""

    whole: Any
    ids: tuple[int, ...]

    def size(self, split: str) -> int:
        return len(self.ids) if split == "train" else int(self.whole.size(split))

    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        found: list[Prompt] = self.whole.prompts(self._original(ids, split), split)
        return found

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        scores: Scores = self.whole.components(self._original(ids, split), responses, split)
        return scores

    def demonstrations(self, ids: Sequence[int], split: str = "train") -> list[str]:
        texts: list[str] = self.whole.demonstrations(self._original(ids, split), split)
        return texts

    def rankings(self, ids: Sequence[int], split: str = "train") -> list[Ranking]:
        found: list[Ranking] = self.whole.rankings(self._original(ids, split), split)
        return found

    def evaluate(self, act: Any, rng: Any) -> dict[str, float]:
        found: dict[str, float] = self.whole.evaluate(act, rng)
        return found

    def _original(self, ids: Sequence[int], split: str) -> Sequence[int]:
        return [self.ids[i] for i in ids] if split == "train" else ids


def subset(problem: Any, ids: Sequence[int]) -> Subset:
    """Raises ValueError where nothing is left."""
    if not len(ids):
        raise ValueError(f"no training prompt of {problem.name} is left in this part of it")
    shared = ("stop", "max_new_tokens", "reward_weights", "metric", "evaluation_size")
    return Subset(name=problem.name, whole=problem, ids=tuple(ids), **{name: getattr(problem, name) for name in shared})
