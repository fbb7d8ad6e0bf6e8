"""Preference data: every shape of row, chat messages, what is refused and where, what is left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policyopt import registry
from policyopt.problems.language.preferences import normalized

USER = {"role": "user", "content": "hi"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "p", ["a", "b"]),
        ({"prompt": [USER], "chosen": [answer("a")], "rejected": [answer("b")]}, [USER], ["a", "b"]),
        ({"prompt": [USER], "chosen": [USER, answer("a")], "rejected": [USER, answer("b")]}, [USER], ["a", "b"]),
        ({"chosen": [USER, answer("a")], "rejected": [USER, answer("b")]}, [USER], ["a", "b"]),
        ({"prompt": "p", "responses": ["a", "b", "c"], "scores": [0.1, 0.9, 0.5]}, "p", ["b", "c", "a"]),
    ],
)
def test_rows_of_every_shape(row: dict[str, Any], prompt: Any, responses: list[str]) -> None:
    (made,) = normalized([row], "data")
    assert made["prompt"] == prompt and made["responses"] == responses
    assert made["scores"] == sorted(made["scores"], reverse=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "data: row 2 has no 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "data: row 2 has no 'rejected'"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "data: row 2 has an empty response"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "data: row 2 has no prompt"),
        ({"chosen": "a", "rejected": "b"}, "only dialogues that begin alike"),
        ({"prompt": "p", "responses": ["a"], "scores": [1.0]}, "of one length, 2 or more"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, float("nan")]}, "must be finite numbers"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, None]}, "must be finite numbers"),
        ({"prompt": [USER], "chosen": [answer("a"), USER, answer("x")], "rejected": [answer("b")]}, "has 3 messages"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "expected text, or messages"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalized([{"prompt": "p", "chosen": "a", "rejected": "b"}, row], "data")


def test_identical_responses_are_left_out_and_counted() -> None:
    same, good = {"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.warns(UserWarning, match="1 of 2 rows of data are left out"):
        assert len(normalized([same, good], "data")) == 1
    with pytest.raises(ValueError, match="nothing to prefer"):
        normalized([same], "data")


def file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_a_file_of_pairs_trains(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{a}+{b}=", "chosen": f"{a + b};", "rejected": f"{a - b};"} for a in range(6) for b in range(1, 4)
    ]
    problem = registry.problem(f"preferences:{file(tmp_path, rows)}?held_out=0.2&max_new_tokens=4")
    assert problem.size("train") + problem.size("test") == 18 and problem.max_new_tokens == 4
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    learner = registry.method("dpo").learner(problem, policy, seed=0)
    assert "preference/accuracy" in learner.step() and "eval/preference_accuracy" in learner.evaluate()
    assert problem.evaluate(None, None) == {}


def test_chat_messages_need_a_template(tmp_path: Path) -> None:
    rows = [
        {"prompt": [USER | {"content": f"{i}"}], "chosen": [answer("a")], "rejected": [answer("b")]} for i in range(8)
    ]
    problem = registry.problem(f"preferences:{file(tmp_path, rows)}")
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    with pytest.raises(ValueError, match="no chat template"):
        registry.method("dpo").learner(problem, policy, seed=0).step()


def test_an_unknown_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"no file 'nowhere\.jsonl'"):
        registry.problem("preferences:nowhere.jsonl")
