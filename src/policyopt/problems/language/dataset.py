"""A data set of prompts as a problem, with TRL's column names, scored by reward functions.

Columns: ``prompt`` (a text, or messages), and where there are such ``completion`` or ``answer`` (demonstrations),
``chosen`` and ``rejected`` (preferences). All columns but the prompt are passed to the reward functions (``rewards``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import torch

from policyopt.problems.language.base import Act, LanguageProblem, choose, read_options
from policyopt.problems.language.rewards import RewardFunction, call, check_arguments, load_function, parse_rewards
from policyopt.types import Prompt, Ranking, Scores

Rows: TypeAlias = Sequence[Mapping[str, Any]]

READERS: Mapping[str, Callable[[str], Any]] = {
    "held_out": float,
    "stop": lambda value: (value.replace("\\n", "\n"),),
    "max_new_tokens": int,
    "evaluation_size": int,
    "config": str,
}
FORMATS: Mapping[str, str] = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True)
class DatasetProblem(LanguageProblem):
    """Rows with a ``prompt``, scored by reward functions.

    train, test: rows of the same columns; no prompt stands in both. rewards: a reward function, or the text that names
    one, for each score component; ``reward_weights`` are 1 where not given. metric: the first reward where not given.
    Without rewards the problem has demonstrations or preferences to learn from but no scores, and nothing to evaluate.
    """

    max_new_tokens: int = 256
    metric: str = ""
    reward_weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    train: Rows = field(hash=False, repr=False)
    test: Rows = field(hash=False, repr=False)
    rewards: Mapping[str, str | RewardFunction] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward_weights", {**dict.fromkeys(self.rewards, 1.0), **self.reward_weights})
        object.__setattr__(self, "metric", self.metric or next(iter(self.rewards), ""))
        for split in ("train", "test"):
            _check_rows(self._rows(split), f"{self.name}, {split}")
        if isinstance(self.train[0]["prompt"], str) != isinstance(self.test[0]["prompt"], str):
            raise ValueError(f"{self.name}: prompts are texts in one split and messages in the other; use one kind")
        shared = {_key(row) for row in self.train} & {_key(row) for row in self.test}
        if shared:
            raise ValueError(f"{self.name}: {len(shared)} prompts are in train and test, such as {min(shared)}")
        columns = [name for name in self.train[0] if name != "prompt"]
        for name in self.reward_weights:
            choose(name, list(self.rewards), f"{self.name}: reward function in reward_weights")
        if "reward" in self.rewards:
            raise ValueError(f"{self.name}: 'reward' is the weighted sum; give that reward function another name")
        for name, function in self._functions().items():
            check_arguments(name, function, columns)

    def size(self, split: str) -> int:
        self.check((), split)
        return len(self._rows(split))

    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        self.check(ids, split)
        return [self._rows(split)[index]["prompt"] for index in ids]

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        """One component a reward function.

        Raises:
            ValueError: there is no reward function, or one fails (see ``rewards.call``).
        """
        if not self.rewards:
            raise ValueError(f"the problem {self.name!r} has no reward function; give rewards=file.py:function")
        prompts = self.prompts(ids, split)
        messages = bool(prompts) and not isinstance(prompts[0], str)
        completions = [[{"role": "assistant", "content": text}] if messages else text for text in responses]
        rows = [self._rows(split)[index] for index in ids]
        columns = {name: [row.get(name) for row in rows] for name in self.train[0] if name != "prompt"}
        return {
            name: call(name, function, prompts, completions, columns) for name, function in self._functions().items()
        }

    def demonstrations(self, ids: Sequence[int], split: str = "train") -> list[str]:
        """The column ``completion``, or else ``answer``."""
        self.check(ids, split)
        column = next((name for name in ("completion", "answer") if name in self.train[0]), None)
        if column is None:
            return super().demonstrations(ids, split)
        return [self._text(index, column, split) for index in ids]

    def rankings(self, ids: Sequence[int], split: str = "train") -> list[Ranking]:
        """The columns ``chosen`` and ``rejected``."""
        self.check(ids, split)
        if not {"chosen", "rejected"} <= set(self.train[0]):
            return super().rankings(ids, split)
        pairs = [(self._text(index, "chosen", split), self._text(index, "rejected", split)) for index in ids]
        return [(pair, (1.0, 0.0)) for pair in pairs]

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        return super().evaluate(act, rng) if self.rewards else {}

    def _rows(self, split: str) -> Rows:
        return self.train if split == "train" else self.test

    def _functions(self) -> dict[str, RewardFunction]:
        return {name: load_function(given) if isinstance(given, str) else given for name, given in self.rewards.items()}

    def _text(self, index: int, column: str, split: str) -> str:
        value = self._rows(split)[index].get(column)
        if isinstance(value, list) and is_messages(value):
            value = value[-1]["content"]
        if value is None or isinstance(value, list | dict):
            raise ValueError(
                f"{self.name}: {column!r} of {split} row {index + 1} is {value!r}; expected text or messages"
            )
        return str(value)


def parse(text: str, *, rewards: str | None = None, test: str | None = None) -> DatasetProblem:
    """The problem that ``dataset:<text>`` names: a file (jsonl, json, csv, parquet) or the id of a data set on the hub.

    Options follow a question mark, ``train.jsonl?held_out=0.2&max_new_tokens=64``: ``held_out`` (the share of distinct
    prompts held out where there is no test file, 0.1 unless given, one at least), ``stop`` (``\\n`` for a line end),
    ``max_new_tokens``, ``evaluation_size``, and ``config`` (of a data set on the hub).

    rewards: functions and weights, ``"rewards.py:correct=1.0,rewards.py:short=0.1"``; without it a column ``answer`` is
        compared by ``exact_match``. test: a file or hub id of held-out rows.

    Raises:
        ValueError: the data cannot be found or read, or lack what is needed; the message says where.
    """
    source, _, rest = text.partition("?")
    options = read_options(rest, READERS, "&", f"dataset:{source}")
    config, share = options.pop("config", None), options.pop("held_out", 0.1)
    rows = read_rows(source, config)
    _check_rows(rows, source)
    held_out = read_rows(test, config, "test") if test else None
    train, test_rows = hold_out(rows, share, source) if held_out is None else without(rows, held_out, source)
    functions, weights = parse_rewards(rewards) if rewards else _default_rewards(rows[0], source)
    return DatasetProblem(
        name=Path(source).stem, train=train, test=test_rows, rewards=functions, reward_weights=weights, **options
    )


def _default_rewards(row: Mapping[str, Any], source: str) -> tuple[dict[str, str], dict[str, float]]:
    if "answer" in row:
        return parse_rewards("exact_match")
    if "completion" in row or {"chosen", "rejected"} <= set(row):
        return {}, {}
    raise ValueError(
        f"nothing says what a good response to {source} is: it has no column 'answer', 'completion', or 'chosen' and "
        f"'rejected', but {', '.join(row)}; give rewards=file.py:function"
    )


def read_rows(source: str, config: str | None = None, split: str = "train") -> Rows:
    """The rows of a local file, a local folder or a data set on the hub."""
    import datasets

    path = Path(source).expanduser()
    kind = FORMATS.get(path.suffix.lower())
    if kind and not path.is_file():
        siblings = sorted(other.name for other in path.parent.glob("*") if other.suffix.lower() in FORMATS)
        raise ValueError(f"no file {source!r}; {path.parent} has {', '.join(siblings) or 'no data file'}")
    if path.is_file() and not kind:
        raise ValueError(f"cannot tell the format of {source!r}; expected a name that ends in {', '.join(FORMATS)}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{source} is empty")
    try:
        found = (
            datasets.load_dataset(kind, data_files=str(path), split="train")
            if kind
            else datasets.load_dataset(source, config, split=split)
        )
    except Exception as error:
        where = _bad_line(path) if path.suffix == ".jsonl" else "" if kind else "; there is no such local path either"
        raise ValueError(f"cannot read {source!r}: {error.__cause__ or error!r}{where}") from error
    rows: Rows = found.to_list()
    return rows


def _bad_line(path: Path) -> str:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"; line {number} is not a JSON object"
        except ValueError as error:
            return f"; line {number} is not JSON: {error}"
    return ""


def _check_rows(rows: Rows, where: str) -> None:
    """Raises ValueError where there are no rows, no ``prompt``, or a prompt that is neither text nor messages."""
    if not rows:
        raise ValueError(f"{where} has no rows")
    columns = list(rows[0])
    if "prompt" not in columns:
        nearest = get_close_matches("prompt", columns, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(
            f"{where} has no column 'prompt'; its columns are {', '.join(columns)}; {hint}rename the right one"
        )
    text = isinstance(rows[0]["prompt"], str)
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt")
        if not (isinstance(prompt, str) and prompt) and not is_messages(prompt):
            raise ValueError(
                f"{where}: the prompt of row {number} is {str(prompt)[:80]!r} ({type(prompt).__name__}); expected a "
                f"text that is not empty, or a list of messages with 'role' and 'content'"
            )
        if isinstance(prompt, str) != text:
            kinds = ("a text", "messages") if text else ("messages", "a text")
            raise ValueError(
                f"{where}: the prompt of row 1 is {kinds[0]} and that of row {number} {kinds[1]}; use one kind"
            )


def is_messages(value: Any) -> bool:
    """Whether it is a chat: a list of messages with a role and a text."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps(row["prompt"], sort_keys=True)


def hold_out(rows: Rows, share: float, source: str) -> tuple[Rows, Rows]:
    """Training and held-out rows: a hash of the prompt decides, so that equal prompts stay together."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"{source}: held_out={share} is not possible; expected a share between 0 and 1")
    ranked = sorted({_key(row) for row in rows}, key=_place)
    if len(ranked) < 2:
        raise ValueError(f"{source} has one distinct prompt, so none can be held out; give a test file")
    wanted = sum(_place(key) < share for key in ranked)
    chosen = set(ranked[: min(max(wanted, 1), len(ranked) - 1)])  # at least one prompt on either side
    return [row for row in rows if _key(row) not in chosen], [row for row in rows if _key(row) in chosen]


def _place(key: str) -> float:
    """Where a prompt falls in [0, 1), by its hash."""
    return int.from_bytes(blake2b(key.encode(), digest_size=6).digest(), "big") / 2**48


def without(rows: Rows, held_out: Rows, source: str) -> tuple[Rows, Rows]:
    """Training rows whose prompt is not held out; a warning tells how many were."""
    _check_rows(held_out, f"the test data of {source}")
    taken = {_key(row) for row in held_out}
    train = [row for row in rows if _key(row) not in taken]
    if not train:
        raise ValueError(f"every prompt of {source} is also in the test data; nothing is left to train on")
    if len(train) < len(rows):
        warnings.warn(
            f"{len(rows) - len(train)} of {len(rows)} rows of {source} are left out: the test data have their prompts",
            stacklevel=3,
        )
    return train, held_out
