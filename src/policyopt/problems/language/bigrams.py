"""Strings whose true reward is known: a hidden score for every pair of neighbouring letters.

    prompt       d                     a letter: what the response follows on
    response     a d c c b …           letters, at most ``length`` of them
    reward       scale · Σ_t W[y_{t-1}, y_t], y_0 being the prompt, W drawn once from ``seed``

Preferences are Bradley-Terry draws from that reward, with labels flipped at a known rate, so that regret, win rates and
over-optimization can be measured exactly; the reward is a sum over tokens, so that credit can be held against the truth.
Demonstrations, and the responses that are compared, are strings of a Markov chain that prefers good pairs a little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from policyopt.problems.language.base import Act, LanguageProblem, read_options
from policyopt.types import Prompt, Ranking, Scores


@dataclass(frozen=True, kw_only=True)
class Bigrams(LanguageProblem):
    """Scores "true": the reward of a response, without its prompt's shift.

    letters: size of the alphabet. length: letters of a demonstration, and the most that count. scale: of the hidden scores,
    which are standard normal before it. skill: how much the demonstrations' chain prefers good pairs (logits skill · W).
    responses: how many of them are ranked for each prompt; 2 gives chosen and rejected by one draw, more give every
    response the mean probability of winning against the list. flips: share of wrong labels among pairs. shift: deviation of
    a constant that is added to the reward of all responses to a prompt and means nothing. train_size: number of prompts;
    prompt ids differ in what they demonstrate and compare.
    """

    name: str = "bigrams"
    max_new_tokens: int = 0
    metric: str = "true"
    letters: int = 12
    length: int = 12
    scale: float = 0.4
    skill: float = 0.3
    responses: int = 2
    flips: float = 0.0
    shift: float = 0.0
    seed: int = 0
    train_size: int = 4000
    test_size: int = 1000

    def __post_init__(self) -> None:
        if not 2 <= self.letters <= 26 or self.length < 2 or self.responses < 2:
            raise ValueError(
                f"bigrams: expected 2 to 26 letters, a length and a number of responses of 2 or more, got {self.letters}, "
                f"{self.length}, {self.responses}"
            )
        if not 0.0 <= self.flips < 0.5:
            raise ValueError(f"bigrams: flips is a share of wrong labels below 0.5, got {self.flips}")
        object.__setattr__(self, "max_new_tokens", self.max_new_tokens or self.length + 1)
        object.__setattr__(self, "reward_weights", {"reward_shifted": 1.0} if self.shift else {"true": 1.0})

    def size(self, split: str) -> int:
        self.check((), split)
        return self.train_size if split == "train" else self.test_size

    def pair_scores(self) -> np.ndarray:
        """W, scaled: [letters, letters], from the letter before to the letter."""
        return self.scale * _hidden(self.letters, self.seed)

    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        self.check(ids, split)
        return [ascii_lowercase[i % self.letters] for i in ids]

    def true_reward(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> torch.Tensor:
        """float32 [N]."""
        scores, asked = self.pair_scores(), self.prompts(ids, split)
        index = {letter: i for i, letter in enumerate(ascii_lowercase)}
        rewards = torch.zeros(len(ids))
        for row, (prompt, text) in enumerate(zip(asked, responses, strict=True)):
            path = [index[letter] for letter in str(prompt) + "".join(text.split())[: self.length]]
            rewards[row] = float(scores[path[:-1], path[1:]].sum())
        return rewards

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        true = self.true_reward(ids, responses, split)
        if not self.shift:
            return {"true": true}
        offsets = [np.random.default_rng([self.seed, 7, i]).normal(0.0, self.shift) for i in ids]
        return {"true": true, "reward_shifted": true + torch.tensor(offsets).float()}

    def demonstrations(self, ids: Sequence[int], split: str = "train") -> list[str]:
        self.check(ids, split)
        return [self._strings(i, split, 1, "demonstration")[0] for i in ids]

    def rankings(self, ids: Sequence[int], split: str = "train") -> list[Ranking]:
        self.check(ids, split)
        return [self._ranking(i, split) for i in ids]

    def _ranking(self, index: int, split: str) -> Ranking:
        texts = list(dict.fromkeys(self._strings(index, split, self.responses, "compared")))
        while len(texts) < self.responses:  # equal strings are not compared
            texts = list(
                dict.fromkeys([*texts, *self._strings(index + self.size(split) * len(texts), split, 1, "more")])
            )
        reward = self.true_reward([index] * len(texts), texts, split).tolist()
        labels = self._labels(reward, np.random.default_rng([self.seed, 5, split == "test", index]))
        order = sorted(range(len(texts)), key=lambda k: -labels[k])
        return [texts[k] for k in order], [labels[k] for k in order]

    def _labels(self, reward: Sequence[float], rng: np.random.Generator) -> list[float]:
        win = [[1.0 / (1.0 + exp(b - a)) for b in reward] for a in reward]
        if len(reward) > 2:
            return [sum(row) / len(row) for row in win]
        first = (rng.random() < win[0][1]) != (rng.random() < self.flips)
        return [float(first), float(not first)]

    def _strings(self, index: int, split: str, count: int, use: str) -> list[str]:
        """``count`` strings of the demonstrations' chain, behind the prompt's letter."""
        rng = np.random.default_rng([self.seed, split == "test", index, *use.encode()])
        chain = _chain(self.letters, self.seed, self.skill)
        state = np.full(count, index % self.letters)
        letters = []
        for draws in rng.random((self.length, count)):
            state = (chain[state] < draws[:, None]).sum(1).clip(max=self.letters - 1)
            letters.append(state)
        return ["".join(ascii_lowercase[i] for i in row) for row in np.array(letters).T]

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """``eval/return``: the mean true reward of one sampled response a held-out prompt."""
        ids = range(min(self.evaluation_size, self.size("test")))
        texts = [sampled[0] for sampled in act(self.prompts(ids, "test"), 1, False)]
        return {"eval/return": float(self.true_reward(ids, texts, "test").mean())}

    def tokenizer(self) -> Any:
        """A token a letter; <pad>, <bos>, <eos> besides. A text is read letter by letter."""
        words = ["<pad>", "<bos>", "<eos>", *ascii_lowercase[: self.letters]]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        )


@lru_cache(maxsize=16)
def _hidden(letters: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 1]).standard_normal((letters, letters))


@lru_cache(maxsize=16)
def _chain(letters: int, seed: int, skill: float) -> np.ndarray:
    """Cumulative probabilities of the next letter, [letters, letters]."""
    weights = np.exp(skill * _hidden(letters, seed))
    chain: np.ndarray = np.cumsum(weights / weights.sum(1, keepdims=True), 1)
    return chain


def parse(text: str = "") -> Bigrams:
    """The problem that ``bigrams:<text>`` names: ``"letters=8,flips=0.3,responses=8"``.

    Raises:
        ValueError: an unknown option, or a value that cannot be read.
    """
    whole = ("letters", "length", "responses", "seed", "train_size", "test_size", "evaluation_size")
    readers: dict[str, Callable[[str], Any]] = dict.fromkeys(whole, int)
    readers |= dict.fromkeys(("scale", "skill", "flips", "shift"), float)
    return Bigrams(**read_options(text, readers, ",", "bigrams"))
