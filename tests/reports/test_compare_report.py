"""Comparisons against numbers worked out by hand, over one common stretch of the axis."""

import io
import json

import pytest
from rich.console import Console

from policyopt.reports.compare import print_table, write_compare


def run(folder, accuracies, tokens=100, key="spent/tokens", metric="eval/accuracy"):
    folder.mkdir(parents=True)
    rows = [{"step": i, key: tokens * i, metric: a} for i, a in enumerate(accuracies)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    return {
        "<b>grpo": [run(tmp_path / f"g{seed}", [0.0, 0.2 + seed / 10, 0.4 + seed / 10]) for seed in range(3)],
        "rloo": [run(tmp_path / "r0", [0.0, 0.1, 0.2, 0.9])],
    }


def test_final_and_area_end_where_the_shortest_run_ends(runs, tmp_path):
    grpo, rloo = write_compare(runs, tmp_path / "out")
    assert grpo.final.estimate == pytest.approx(0.5)
    assert grpo.area.estimate == pytest.approx(0.275)  # seed 0: (0.1 + 0.3) / 2, and 0.075 more with each seed
    assert grpo.final.low < 0.4 < 0.6 < grpo.final.high
    assert rloo.final.estimate == pytest.approx(0.2)  # not 0.9, which it reached with more tokens than the others had
    assert (grpo.seeds, rloo.seeds) == (3, 1)


def test_files_say_the_same_as_the_table(runs, tmp_path):
    entries = write_compare(runs, tmp_path / "out", budget="300 tokens")
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (record["metric"], record["axis"], record["to"]) == ("eval/accuracy", "generated tokens", 200)
    assert record["entries"][0]["final"]["estimate"] == entries[0].final.estimate
    assert record["entries"][1]["final"]["low"] is None  # one seed: no interval
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;grpo" in page
    assert "budget 300 tokens" in page
    assert page.count("<svg") == 1
    assert (tmp_path / "out" / "compare.svg").read_text().startswith("<?xml")


def test_the_terminal_table_shows_intervals(runs, tmp_path):
    console = Console(file=io.StringIO(), width=160)
    print_table(console, write_compare(runs, tmp_path / "out"))
    shown = console.file.getvalue()
    assert "0.5 [" in shown
    assert "<b>grpo" in shown


def test_runs_that_count_different_things_are_compared_by_steps(tmp_path):
    mixed = {"a": [run(tmp_path / "a", [0, 1])], "b": [run(tmp_path / "b", [0, 1], key="spent/env_steps")]}
    write_compare(mixed, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["axis"] == "learner steps"


def test_control_is_compared_by_returns(tmp_path):
    played = {
        name: [run(tmp_path / name, [-9, -5], key="spent/env_steps", metric="eval/return")] for name in ("a", "b")
    }
    console = Console(file=io.StringIO(), width=160)
    print_table(console, write_compare(played, tmp_path / "out"))
    assert "eval/return" in console.file.getvalue()
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["axis"] == "environment steps"


def test_an_unknown_metric_names_the_nearest(runs, tmp_path):
    with pytest.raises(ValueError, match=r"no metric 'eval/acuracy'.*'eval/accuracy'"):
        write_compare(runs, tmp_path / "out", metric="eval/acuracy")


def test_a_name_without_runs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one run of each name"):
        write_compare({"grpo": []}, tmp_path / "out")
