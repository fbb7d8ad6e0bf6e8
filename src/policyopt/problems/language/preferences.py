"""Preference data as a problem, with TRL's columns: pairs or ranked lists of responses, texts or chat messages.

    prompt, chosen, rejected        texts; or messages, chosen and rejected holding the answer alone or the whole dialogue
    chosen, rejected                that begin alike: the prompt is what they share, whole messages or whole words
    prompt, responses, scores       lists of K responses with a number each, K the same in all rows

Words that a pair shares count neither for nor against a response, so where the prompt of two texts ends makes no difference to
losses of pairs. What can't be learned from is an error that names the row; rows that compare a response with itself or score all
responses alike are left out, and a warning says how many. All else is as for ``dataset:``: splits, options, reward functions for
methods that sample.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
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
    for number, row in enumerate(made, start=1):
        if len(row["scores"]) != len(made[0]["scores"]):
            sizes = f"{len(row['scores'])} responses, row 1 has {len(made[0]['scores'])}"
            raise ValueError(f"{where}: row {number} has {sizes}; split the file into one for each number of responses")
    apart = [row for row in made if len(set(row["responses"])) == len(row["responses"])]
    kept = [row for row in apart if len(set(row["scores"])) > 1]
    if not kept:
        raise ValueError(f"{where} has no row whose responses and scores differ: there is nothing to prefer")
    if len(kept) < len(made):
        warnings.warn(
            f"{len(made) - len(kept)} of {len(made)} rows of {where} are left out: {len(made) - len(apart)} compare a "
            f"response with itself, {len(apart) - len(kept)} score all responses alike",
            stacklevel=3,
        )
    return kept


def _row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    prompt, responses, scores = _listed(row, where) if row.get("responses") is not None else _pair(row, where)
    if not prompt:
        raise ValueError(f"{where} has no prompt")
    if not isinstance(prompt, str) and not is_messages(prompt):
        raise ValueError(
            f"{where}: the prompt is {str(prompt)[:60]!r}; expected text, or messages with 'role' and 'content'"
        )
    if not all(text.strip() for text in responses):
        raise ValueError(f"{where} has an empty response")
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return {"prompt": prompt, "responses": [responses[k] for k in order], "scores": [scores[k] for k in order]}


def _pair(row: Mapping[str, Any], where: str) -> tuple[Any, list[str], list[float]]:
    for side in ("chosen", "rejected"):
        if row.get(side) is None:
            near = get_close_matches(side, [name for name in row if name not in ("chosen", "rejected")], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{where} has no {side!r}: expected 'prompt', 'chosen' and 'rejected', got {', '.join(row)}{hint}"
            )
    chosen, rejected = row["chosen"], row["rejected"]
    dialogues = is_messages(chosen) and is_messages(rejected)
    prompt = row.get("prompt")
    if prompt is None or (dialogues and isinstance(prompt, str) and len(chosen) > 1):  # the dialogue's own words
        prompt = _shared(chosen, rejected) if dialogues else _shared_words(chosen, rejected)
        if not prompt:
            raise ValueError(f"{where} has no 'prompt': only dialogues or texts that begin alike can do without one")
        if not dialogues:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return prompt, [_answer(side, prompt, where) for side in (chosen, rejected)], [1.0, 0.0]


def _shared(chosen: Any, rejected: Any) -> Any:
    """The messages or letters with which both begin; of each something is left."""
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    return chosen[:count]


def _shared_words(chosen: Any, rejected: Any) -> str:
    """The whole words with which both texts begin, without the white space behind them; "" for anything but texts."""
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return ""
    words = re.match(r"(.*)\s", _shared(chosen, rejected), re.DOTALL)
    return words[1] if words else ""


def _answer(side: Any, prompt: Any, where: str) -> str:
    """The text of a response: a text as it is, of messages the one message that follows the prompt."""
    if isinstance(side, str):
        return side
    if not is_messages(side):
        raise ValueError(
            f"{where}: a response is {str(side)[:60]!r}; expected text, or messages with 'role' and 'content'"
        )
    asked = list(prompt) if isinstance(prompt, list) else []
    rest = side[len(asked) :] if asked and side[: len(asked)] == asked else side
    if len(rest) != 1:
        raise ValueError(f"{where}: a response has {len(rest)} messages behind the prompt; expected one")
    if rest[0]["role"] in ("user", "system"):
        raise ValueError(f"{where}: a response is a message of the role {rest[0]['role']!r}; expected 'assistant'")
    return str(rest[0]["content"])


def _listed(row: Mapping[str, Any], where: str) -> tuple[Any, list[str], list[float]]:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or not isinstance(scores, list) or not len(responses) == len(scores) >= 2:
        raise ValueError(f"{where}: expected lists 'responses' and 'scores' of one length, 2 or more")
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise ValueError(f"{where} has the scores {scores}: all of them must be finite numbers")
    numbers = [float(score) for score in scores]
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
