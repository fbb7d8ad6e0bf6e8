"""Preference data as a problem, with TRL's columns: pairs or ranked lists of responses, texts or chat messages.

    prompt, chosen, rejected        texts; or messages, chosen and rejected holding the answer alone or the whole dialogue
    chosen, rejected                dialogues that begin alike: what they share is the prompt
    prompt, responses, scores       lists of K responses with a number each

What can't be learned from is an error that names the row; pairs of identical responses are left out, and a warning says how
many. All else is as for ``dataset:``: splits, options, reward functions for methods that sample.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policyopt.problems.language.base import read_options
from policyopt.problems.language.dataset import READERS, DatasetProblem, hold_out, is_messages, read_rows, without
from policyopt.problems.language.rewards import parse_rewards
from policyopt.types import Ranking


@dataclass(frozen=True, kw_only=True)
class PreferenceProblem(DatasetProblem):
    """Rows with ``prompt``, ``responses`` (best first) and ``scores``, as ``normalized`` makes them."""

    def rankings(self, ids: Sequence[int], split: str = "train") -> list[Ranking]:
        self.check(ids, split)
        rows = [self._rows(split)[i] for i in ids]
        return [(row["responses"], row["scores"]) for row in rows]


def normalized(rows: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Rows as {prompt, responses, scores}, best first. Raises ValueError for the first row that can't be read."""
    made = [_row(row, f"{where}: row {number}") for number, row in enumerate(rows, start=1)]
    kept = [row for row in made if len(set(row["responses"])) == len(row["responses"])]
    if not kept:
        raise ValueError(f"{where} has no row whose responses differ: there is nothing to prefer")
    if len(kept) < len(made):
        warnings.warn(
            f"{len(made) - len(kept)} of {len(made)} rows of {where} are left out: they compare a response with itself",
            stacklevel=3,
        )
    return kept


def _row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    prompt, responses, scores = _listed(row, where) if "responses" in row else _pair(row, where)
    if not prompt:
        raise ValueError(f"{where} has no prompt")
    for text in responses:
        if not text:
            raise ValueError(f"{where} has an empty response")
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return {"prompt": prompt, "responses": [responses[k] for k in order], "scores": [scores[k] for k in order]}


def _pair(row: Mapping[str, Any], where: str) -> tuple[Any, list[str], list[float]]:
    for side in ("chosen", "rejected"):
        if row.get(side) is None:
            raise ValueError(
                f"{where} has no {side!r}: expected 'prompt', 'chosen' and 'rejected', got {', '.join(row)}"
            )
    prompt, sides = row.get("prompt"), (row["chosen"], row["rejected"])
    if prompt is None and all(isinstance(side, list) for side in sides):
        prompt = _shared(*sides)
    if prompt is None:
        raise ValueError(f"{where} has no 'prompt': only dialogues that begin alike can do without one")
    return prompt, [_answer(side, prompt, where) for side in sides], [1.0, 0.0]


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> list[Any]:
    """The messages with which both dialogues begin; their last ones are answers."""
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    return list(chosen[:count])


def _answer(side: Any, prompt: Any, where: str) -> str:
    """The text of a response: a text as it is, of messages the one message that follows the prompt."""
    if isinstance(side, str):
        return side
    if not is_messages(side):
        raise ValueError(
            f"{where}: a response is {str(side)[:60]!r}; expected text, or messages with 'role' and 'content'"
        )
    asked = [prompt] if isinstance(prompt, Mapping) else list(prompt) if isinstance(prompt, list) else []
    rest = side[len(asked) :] if asked and side[: len(asked)] == asked else side
    if len(rest) != 1:
        raise ValueError(f"{where}: a response has {len(rest)} messages behind the prompt; expected one")
    return str(rest[0]["content"])


def _listed(row: Mapping[str, Any], where: str) -> tuple[Any, list[str], list[float]]:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or not isinstance(scores, list) or not len(responses) == len(scores) >= 2:
        raise ValueError(f"{where}: expected lists 'responses' and 'scores' of one length, 2 or more")
    numbers = [float("nan") if score is None else float(score) for score in scores]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where} has the scores {scores}: all of them must be finite numbers")
    return row.get("prompt"), [_answer(text, row.get("prompt"), where) for text in responses], numbers


def parse(text: str, *, rewards: str | None = None, test: str | None = None) -> PreferenceProblem:
    """The problem that ``preferences:<text>`` names: a file (jsonl, json, csv, parquet) or the id of a data set on the hub.

    Options follow a question mark, as for ``dataset:``; ``max_new_tokens`` is where responses are cut. test: held-out rows.
    Raises ValueError where the data cannot be found, read or learned from.
    """
    source, _, rest = text.partition("?")
    options = read_options(rest, READERS, "&", f"preferences:{source}")
    config, share = options.pop("config", None), options.pop("held_out", 0.1)
    rows = normalized(read_rows(source, config), source)
    if test:
        train, held_out = without(rows, normalized(read_rows(test, config, "test"), test), source)
    else:
        train, held_out = hold_out(rows, share, source)
    functions, weights = parse_rewards(rewards) if rewards else ({}, {})
    return PreferenceProblem(
        name=Path(source).stem, train=train, test=held_out, rewards=functions, reward_weights=weights, **options
    )
