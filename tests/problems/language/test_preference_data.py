"""Preference data: every shape of row, chat messages, what is refused and where, what is left out and counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policyopt import registry
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.problems.language.preferences import PreferenceProblem, normalized
from policyopt.rollouts.preferences import ranked_responses

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
        ({"prompt": "hi", "chosen": [USER, answer("a")], "rejected": [USER, answer("b")]}, [USER], ["a", "b"]),
        (
            {"chosen": "Human: hi\n\nAI: so no", "rejected": "Human: hi\n\nAI: so not"},
            "Human: hi\n\nAI: so",
            [" no", " not"],
        ),
        ({"prompt": "p", "responses": ["a", "b", "c"], "scores": [0.1, 0.9, 0.5]}, "p", ["b", "c", "a"]),
        ({"prompt": None, "chosen": [USER, answer("a")], "rejected": [USER, answer("b")]}, [USER], ["a", "b"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "responses": None}, "p", ["a", "b"]),
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
        ({"chosen": "a", "rejected": "b"}, "only dialogues or texts that begin alike"),
        ({"chosen": [USER, answer("a")], "rejected": [answer("b")]}, "only dialogues or texts that begin alike"),
        ({"chosen": "so no", "rejected": "so"}, "only dialogues or texts that begin alike"),
        ({"prompt": "p", "choosen": "a", "rejected": "b"}, "row 2 has no 'chosen'.*did you mean 'choosen'"),
        ({"prompt": "p", "chosen": " \n", "rejected": "b"}, "row 2 has an empty response"),
        ({"prompt": 7, "chosen": "a", "rejected": "b"}, "row 2: the prompt is '7'"),
        ({"prompt": [USER], "chosen": [USER | {"content": "a"}], "rejected": [answer("b")]}, "of the role 'user'"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": ["1", "2"]}, "must be finite numbers"),
        ({"prompt": "p", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}, "row 2 has 3 responses, row 1 has 2"),
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


def test_lists_without_an_order_are_left_out_and_counted() -> None:
    good = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 1, 0]}
    alike, twice = good | {"scores": [2, 2, 2]}, good | {"responses": ["a", "a", "c"]}
    with pytest.warns(UserWarning, match="2 of 3 rows.*1 compare a response with itself, 1 score all responses alike"):
        assert [row["scores"] for row in normalized([alike, good, twice], "data")] == [[1.0, 1.0, 0.0]]


def problem_of(rows: list[dict[str, Any]]) -> PreferenceProblem:
    return PreferenceProblem(name="data", train=rows, test=[rows[0] | {"prompt": "held out"}], max_new_tokens=64)


def test_where_the_prompt_of_two_texts_ends_makes_no_difference() -> None:
    """Words that both responses begin with cancel in the difference of their scores."""
    implicit = {"chosen": "1+1: is it so", "rejected": "1+1: is it not"}
    explicit = {"prompt": "1+1:", "chosen": " is it so", "rejected": " is it not"}
    policy = registry.policy("fresh:layers=1,width=16,heads=2", Arithmetic(), seed=0, device="cpu")
    margins = []
    for row, prompt_length in ((implicit, 10), (explicit, 4)):
        batch, _ = ranked_responses(policy, problem_of(normalized([row], "data")), [0])
        assert batch.prompt_length.tolist() == [prompt_length] * 2
        chosen, rejected = policy.evaluate(batch).logp.sum(1)
        margins.append(chosen - rejected)
    torch.testing.assert_close(margins[0], margins[1])


def test_long_prompts_and_responses_are_cut_and_counted() -> None:
    rows = normalized(
        [
            {"prompt": "0" * 600 + "1+1=", "chosen": "2;", "rejected": "3;"},
            {"prompt": "1+2=", "chosen": "3" * 9, "rejected": "4;"},
        ],
        "data",
    )
    problem = replace(problem_of(rows), max_new_tokens=4)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    batch, cut = ranked_responses(policy, problem, [0, 1])
    assert batch.prompt_length.tolist() == [policy.context - 4] * 2 + [4] * 2
    assert policy.decode(batch.prompt[:1, -8:], torch.tensor([8])) == ["00001+1="]  # the end of the prompt stays
    assert batch.length.tolist() == [3, 3, 4, 3] and cut == {"response/truncated": 0.25, "prompt/at_limit": 0.5}


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
