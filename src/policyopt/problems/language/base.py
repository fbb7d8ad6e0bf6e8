"""What every language problem offers: prompts by id, scores of responses, demonstrations, evaluation.

An instance is named by (split, id) alone, so that data are made when they are asked for and are the same in every run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeAlias

import torch
from torch import Tensor

from policyopt.types import Prompt, Ranking, Scores

Act: TypeAlias = Callable[[list[Prompt], int, bool], list[list[str]]]

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class LanguageProblem(ABC):
    """Prompts, and scores of responses to them; training and held-out instances never overlap.

    stop: texts at which a response ends, besides the end token. max_new_tokens: the longest response, in tokens.
    reward_weights: the reward is the sum of these score components, each times its weight.
    metric: the score component reported as accuracy, on the first ``evaluation_size`` held-out instances.
    """

    name: str
    stop: tuple[str, ...] = ()
    max_new_tokens: int
    reward_weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0}, hash=False)
    metric: str = "accuracy"
    evaluation_size: int = 256

    @abstractmethod
    def size(self, split: str) -> int:
        """How many instances the split has: its ids are 0 … size-1."""

    @abstractmethod
    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        """The prompts of these instances: texts, or lists of messages."""

    @abstractmethod
    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        """The unweighted parts of the reward, {name: float32 [N]}, of response n to the prompt ``ids[n]``."""

    def score(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        """The components, float32 [N] each, and under "reward" their weighted sum."""
        if len(ids) != len(responses):
            raise ValueError(
                f"{self.name}: got {len(responses)} responses to {len(ids)} prompts; give one id a response"
            )
        scores = self.components(ids, responses, split)
        for name in self.reward_weights:
            choose(name, list(scores), f"{self.name}: score component in reward_weights")
        reward = torch.zeros(len(ids))
        for name, weight in self.reward_weights.items():
            reward = reward + weight * scores[name]
        return {**scores, "reward": reward}

    def demonstrations(self, ids: Sequence[int], split: str = "train") -> list[str]:
        """A worked response to each prompt.

        Raises:
            ValueError: the problem has none.
        """
        raise ValueError(f"the problem {self.name!r} has no demonstrations; imitation needs a problem that has some")

    def rankings(self, ids: Sequence[int], split: str = "train") -> list[Ranking]:
        """Responses to each prompt with their scores, the best first; a pair is ((chosen, rejected), (1, 0)).

        Raises:
            ValueError: the problem has none.
        """
        raise ValueError(f"the problem {self.name!r} has no preferences; choose a problem that has some")

    def preferred(
        self, ids: Sequence[int], first: Sequence[str], second: Sequence[str], split: str = "train"
    ) -> Tensor:
        """The probability that the first response is preferred to the second, [N]: Bradley-Terry's of the reward.

        A problem with preferences of another kind, such as intransitive ones, says its own.
        """
        difference = self.score(ids, first, split)["reward"] - self.score(ids, second, split)["reward"]
        return difference.sigmoid()

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """Mean held-out scores, one sampled response a prompt: ``eval/<component>``; the metric is ``eval/accuracy``.

        ``act(prompts, samples, greedy)`` gives ``samples`` responses to each prompt and owns the sampling temperature.
        """
        ids = range(min(self.evaluation_size, self.size("test")))
        responses = [sampled[0] for sampled in act(self.prompts(ids, "test"), 1, False)]
        scores = self.score(ids, responses, "test")
        choose(self.metric, list(scores), f"{self.name}: metric")
        means = {f"eval/{name}": float(value.mean()) for name, value in scores.items()}
        return {"eval/accuracy": means[f"eval/{self.metric}"], **means}

    def check(self, ids: Sequence[int], split: str) -> None:
        """Raises ValueError for an unknown split or an id outside of it."""
        choose(split, SPLITS, f"{self.name}: split")
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.size(split):
            raise ValueError(
                f"{self.name}: ids of the split {split!r} are 0 to {self.size(split) - 1}, got {min(ids)} to {max(ids)}"
            )


def pass_at_k(correct: Tensor, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right, averaged over problems.

    Mean over problems of 1 - C(n-c, k) / C(n, k), where c of the n samples are right (arXiv 2107.03374, equation 1).

    Args:
        correct: bool [N, n], problems by samples.
        k: 1 ≤ k ≤ n.

    Raises:
        ValueError: k is outside 1 … n.
    """
    samples = correct.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs k between 1 and the number of samples, which is {samples}")
    counts = correct.sum(dim=1).tolist()
    failures = [math.comb(samples - int(right), k) / math.comb(samples, k) for right in counts]
    return 1.0 - sum(failures) / len(failures)


def choose(name: str, names: Sequence[str], what: str) -> str:
    """``name`` itself when it is one of ``names``; otherwise a ValueError that tells the nearest."""
    if name in names:
        return name
    nearest = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"there are {', '.join(map(str, names))}"
    raise ValueError(f"{what} {name!r} is not known; {hint}")


def read_options(text: str, readers: Mapping[str, Callable[[str], Any]], separator: str, what: str) -> dict[str, Any]:
    """``"a=1,b=x"`` as {name: value}, each value read by its name's reader.

    Raises:
        ValueError: an option without ``=``, an unknown name, a name given twice, or a value that cannot be read.
    """
    options: dict[str, Any] = {}
    for piece in filter(None, (piece.strip() for piece in text.split(separator))):
        name, equals, value = piece.partition("=")
        if not equals:
            raise ValueError(f"{what}: cannot read {piece!r}; write name=value, such as {next(iter(readers))}=…")
        choose(name, list(readers), f"{what}: option")
        if name in options:
            raise ValueError(f"{what}: option {name!r} is given twice")
        try:
            options[name] = readers[name](value)
        except ValueError as error:
            raise ValueError(f"{what}: cannot read {name}={value}: {error}") from error
    return options
