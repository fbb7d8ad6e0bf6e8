"""The examples run as they stand, are short, and do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from policyopt import api
from policyopt.types import Rollouts

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def run(path: Path, updates: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(path), str(updates)])
    monkeypatch.setattr(api, "write_run_report", lambda run: None)
    return runpy.run_path(str(path), run_name="__main__")


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"own_reward", "own_advantage", "own_policy"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_says_what_came_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(path, 1, monkeypatch, tmp_path)
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "after" in shown
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "metrics.jsonl").exists()


def test_the_ranks_of_a_group_are_what_the_example_says() -> None:
    example = runpy.run_path(str(next(path for path in EXAMPLES if path.stem == "own_advantage")))
    batch = Rollouts(
        actions=torch.zeros(5, 2, dtype=torch.int64),
        mask=torch.ones(5, 2).bool(),
        scores={"reward": torch.tensor([0.1, 9.0, 0.1, 5.0, 5.0])},
        group=torch.tensor([0, 0, 0, 1, 1]),
        batch_size=[5],
    )
    advantage = example["Ranked"](scale=3.0)(batch).advantage
    torch.testing.assert_close(advantage, torch.tensor([-1.0, 2.0, -1.0, 0.0, 0.0])[:, None].expand(5, 2))
