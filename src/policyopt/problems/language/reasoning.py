"""Any generator of the package reasoning-gym as a problem, with the prompt template as a part.

A hash of its text puts a question into the training split, into the held-out split or among the worked examples of
prompts: no question of one is ever in another, under any seed, also where a generator has few questions. (Seeds alone
do not separate them: two one-digit terms of ``chain_sum`` make 200 questions.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Any, ClassVar

import torch

from policyopt.problems.language.base import LanguageProblem, choose, read_options
from policyopt.types import Prompt, Scores

DEFAULT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
}

_SHARES = {"test": (0, 1), "shots": (2,), "train": (3, 4, 5, 6, 7, 8, 9)}  # of ten hash values
_ATTEMPTS = 200


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """A raw text of worked examples and the question, ``Q: …\\nA: …\\n\\n``, which suits small base models.

    shots: worked examples, the same for every question. stop: where an answer ends; of several lines needs another.
    """

    shots: int = 4
    stop: tuple[str, ...] = ("\n",)

    def prompt(self, question: str, examples: Sequence[tuple[str, str]]) -> Prompt:
        return "".join(f"Q: {asked}\nA: {answer}\n\n" for asked, answer in examples) + f"Q: {question}\nA:"

    def response(self, answer: str) -> str:
        return f" {answer}"

    def extract(self, response: str) -> str | None:
        """What stands before the first stop text, or None where that is empty."""
        for stop in self.stop:
            response = response.partition(stop)[0]
        return response.strip() or None


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Messages for an instruction-tuned model; the answer is what stands in the last ``<answer>…</answer>``."""

    system: str = ""
    instruction: str = "Give the final answer between <answer> and </answer>."
    shots: ClassVar[int] = 0
    stop: ClassVar[tuple[str, ...]] = ()

    def prompt(self, question: str, examples: Sequence[tuple[str, str]]) -> Prompt:
        user = {"role": "user", "content": f"{question}\n\n{self.instruction}".strip()}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]

    def response(self, answer: str) -> str:
        return f"<answer>{answer}</answer>"

    def extract(self, response: str) -> str | None:
        """What stands in the last pair of tags, or None without one."""
        before, closing, _ = response.rpartition("</answer>")
        _, opening, answer = before.rpartition("<answer>")
        return answer.strip() if opening and closing else None


@dataclass(frozen=True, kw_only=True)
class ReasoningGym(LanguageProblem):
    """Questions of one reasoning-gym generator.

    Scores: "accuracy" (the generator's own checker gives full marks), "score" (its marks in [0, 1], part marks too),
    "format" (the template finds an answer). A response that the checker cannot handle has the score 0.

    options: of the generator's configuration, over ``DEFAULT_OPTIONS``. name and stop follow from dataset and template.

    Instances are the same in every run as far as the generator is a function of its seed and index; ``knight_swap`` (a
    time limit) and ``list_functions`` (a shared stream) are not.
    """

    name: str = field(init=False, default="")
    stop: tuple[str, ...] = field(init=False, default=())
    max_new_tokens: int = 64
    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    template: FewShot | Chat = field(default_factory=FewShot)
    seed: int = 0
    train_size: int = 10_000
    test_size: int = 500

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"reasoning-gym-{self.dataset}")
        object.__setattr__(self, "stop", self.template.stop)
        known = _option_names(self.dataset)
        for option in self.options:
            choose(option, known, f"{self.name}: option")
        if min(self.train_size, self.test_size) < 1:
            raise ValueError(
                f"{self.name}: a split needs one instance or more, got {self.train_size}, {self.test_size}"
            )
        for split in ("train", "test"):
            self._entry(0, split)
        if any(stop in answer for stop in self.stop for _, answer in self._examples()):
            raise ValueError(
                f"{self.name}: its answers hold the stop text {self.stop}, where a response would be cut off; "
                f"use template=chat, or FewShot with another stop"
            )

    def size(self, split: str) -> int:
        self.check((), split)
        return self.train_size if split == "train" else self.test_size

    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        self.check(ids, split)
        examples = self._examples()
        return [self.template.prompt(self._entry(index, split)["question"], examples) for index in ids]

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        self.check(ids, split)
        answers = [self.template.extract(response) for response in responses]
        marks = torch.tensor([self._marks(answer, index, split) for answer, index in zip(answers, ids, strict=True)])
        found = torch.tensor([answer is not None for answer in answers])
        return {"accuracy": (marks >= 1.0).float(), "score": marks.float(), "format": found.float()}

    def demonstrations(self, ids: Sequence[int], split: str = "train") -> list[str]:
        """The generator's answers in the template's form.

        Raises:
            ValueError: the generator checks answers without giving one.
        """
        self.check(ids, split)
        return [self.template.response(self._answer(index, split)) for index in ids]

    def _entry(self, index: int, split: str) -> Mapping[str, Any]:
        size = {"train": self.train_size, "test": self.test_size, "shots": max(1, 10 * self.template.shots)}[split]
        return _draw(self.dataset, self._configuration(), self.seed, split, size, index)

    def _answer(self, index: int, split: str) -> str:
        answer = self._entry(index, split)["answer"]
        if not isinstance(answer, str):
            raise ValueError(
                f"the problem {self.name!r} has no demonstrations: its checker accepts many answers and the generator "
                f"gives none; use template=chat, which needs no worked examples, and no imitation"
            )
        return answer

    def _examples(self) -> list[tuple[str, str]]:
        """Distinct worked examples, from questions of their own."""
        found: dict[str, str] = {}
        for index in range(10 * self.template.shots):
            if len(found) < self.template.shots:
                found[self._entry(index, "shots")["question"]] = self._answer(index, "shots")
        if len(found) < self.template.shots:
            raise ValueError(
                f"{self.name}: only {len(found)} distinct worked examples, {self.template.shots} asked for"
            )
        return list(found.items())

    def _marks(self, answer: str | None, index: int, split: str) -> float:
        if answer is None:
            return 0.0
        checker = _source(self.dataset, self._configuration(), self.seed, split, 0, 1)
        try:
            return float(checker.score_answer(answer, self._entry(index, split)))
        except Exception:  # checkers parse what a policy wrote, and several raise on what they cannot parse
            return 0.0

    def _configuration(self) -> str:
        return json.dumps({**DEFAULT_OPTIONS.get(self.dataset, {}), **self.options}, sort_keys=True)


def parse(text: str) -> ReasoningGym:
    """The problem that ``reasoning-gym:<text>`` names: ``"chain_sum?max_terms=3&max_digits=2"``.

    Options are the generator's own, and ``template`` (few-shot or chat), ``shots``, ``seed``, ``train_size``,
    ``test_size``, ``evaluation_size``, ``max_new_tokens``.

    Raises:
        ValueError: an unknown generator or option (the nearest names are told), or a value that it does not accept.
    """
    dataset, _, rest = text.partition("?")
    own: dict[str, Callable[[str], Any]] = dict.fromkeys(
        ("seed", "train_size", "test_size", "evaluation_size", "max_new_tokens"), int
    )
    theirs: dict[str, Callable[[str], Any]] = dict.fromkeys(_option_names(dataset), _literal)
    given = read_options(rest, {"template": str, "shots": int, **own, **theirs}, "&", f"reasoning-gym:{dataset}")
    kind = choose(given.get("template", "few-shot"), ("few-shot", "chat"), "template")
    if kind == "chat" and "shots" in given:
        raise ValueError(f"reasoning-gym:{dataset}: shots belong to template=few-shot, not to template=chat")
    template = Chat() if kind == "chat" else FewShot(shots=given.get("shots", 4))
    options = {name: value for name, value in given.items() if name in theirs}
    return ReasoningGym(
        dataset=dataset,
        options=options,
        template=template,
        **{name: value for name, value in given.items() if name in own},
    )


@lru_cache(maxsize=1 << 15)
def _draw(dataset: str, configuration: str, seed: int, split: str, size: int, index: int) -> Mapping[str, Any]:
    """Entry ``index`` of a split: generators of new seeds are asked for it until the question belongs to the split."""
    for attempt in range(_ATTEMPTS):
        entry: Mapping[str, Any] = _source(dataset, configuration, seed, split, attempt, size)[index]
        digest = blake2b(entry["question"].encode(), digest_size=8).digest()
        if int.from_bytes(digest, "big") % 10 in _SHARES[split]:
            return entry
    raise ValueError(
        f"reasoning-gym:{dataset} with {configuration} has too few questions to fill the split {split!r}; "
        f"choose options that give more"
    )


@lru_cache(maxsize=256)
def _source(dataset: str, configuration: str, seed: int, split: str, attempt: int, size: int) -> Any:
    config_type: Any = _registry()[dataset]
    fresh = Random(f"{seed} {split} {attempt}").getrandbits(30)
    try:
        config = config_type[1](**json.loads(configuration), seed=fresh, size=size)
        config.validate()
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym:{dataset} does not accept the options {configuration}: {error}") from error
    return config_type[0](config=config)


def _registry() -> Mapping[str, tuple[type, type]]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError("reasoning-gym problems need the package: pip install policyopt[reasoning]") from error
    registry: Mapping[str, tuple[type, type]] = DATASETS
    return registry


def _option_names(dataset: str) -> list[str]:
    choose(dataset, sorted(_registry()), "reasoning-gym dataset")
    configuration: Any = _registry()[dataset][1]
    return [option.name for option in fields(configuration) if option.name not in ("seed", "size")]


def _literal(text: str) -> Any:
    """A JSON value; anything else is taken as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
