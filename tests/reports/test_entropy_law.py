"""The entropy law of runs: read from their logs, fitted, drawn; what can't be fitted is named."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import pytest

from policyopt import cli
from policyopt.reports.entropy_law import entropy_and_score, write_entropy_law


def run_folder(folder: Path, a: float, b: float, points: int = 6) -> Path:
    folder.mkdir()
    rows = [{"step": 0, "eval/accuracy": 0.1}]  # before the first step nothing was sampled
    for i in range(points):
        entropy = 1.0 - 0.15 * i
        rows += [{"step": 2 * i + 1, "policy/entropy": entropy}]
        rows += [{"step": 2 * i + 2, "policy/entropy": entropy, "eval/accuracy": -a * exp(entropy) + b}]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def test_the_law_of_two_runs(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / "one", 0.1, 0.6), run_folder(tmp_path / "two", 0.2, 0.9)]
    assert len(entropy_and_score(folders[0])[0]) == 6
    table, laws = write_entropy_law(folders, tmp_path / "law.svg")
    assert laws["one"][:3] == pytest.approx((0.1, 0.6, 0.5)) and laws["two"].r_squared == pytest.approx(1.0)
    assert table.row_count == 2 and "policy entropy" in (tmp_path / "law.svg").read_text()


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "one", 0.1, 0.6)
    assert cli.main(["report", "--entropy-law", str(folder)]) == 0
    assert (folder / "entropy-law.svg").exists()


def test_too_few_evaluations_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 2 evaluations with policy/entropy"):
        entropy_and_score(run_folder(tmp_path / "one", 0.1, 0.6, points=2))
