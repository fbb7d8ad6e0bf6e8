"""Claims: what gates answer, what verdict follows, and that a killed or failing study loses and hides nothing."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from policyopt.reports.provenance import PACKAGE
from policyopt.studies import workers
from policyopt.studies.claim import (
    Claim,
    Effect,
    Gate,
    Metrics,
    Results,
    _sources,
    decide,
    default_figure,
    every_seed,
    fingerprint,
    lower_bound,
    paired_difference,
    paired_log_ratio,
    run,
    upper_bound,
    verdict_of,
)

PASS, FAIL, OPEN = True, False, None


@dataclass(frozen=True, kw_only=True)
class Logged:
    """An arm of known accuracy that notes each of its runs in a file, and may be slow, fail, die or curve."""

    log: str
    accuracy: float
    seconds: float = 0.0
    fails_at: int = -1
    dies_at: int = -1
    curves: bool = False

    def __call__(self, seed: int, smoke: bool) -> dict[str, float | list[float]]:
        with open(self.log, "a") as file:
            file.write(f"{self.accuracy} {seed} {smoke}\n")
        time.sleep(self.seconds)
        if seed == self.fails_at:
            raise ZeroDivisionError("no such luck")
        if seed == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        curve = {"curve/x": [0.0, 100.0], "curve/accuracy": [0.0, self.accuracy]} if self.curves else {}
        return {"accuracy": np.float32(self.accuracy + seed / 100), "diverged": float("nan"), **curve}


@pytest.fixture
def threads(monkeypatch):
    """Threads for worker processes, which take seconds to start, where a test isn't about processes."""
    monkeypatch.setattr(workers, "_worker", lambda threads: ThreadPoolExecutor(1))


def study(folder: Path, **changes) -> Claim:
    log = str(folder / "log")
    made = Claim(
        slug="bnpo",
        text="better | than\nGRPO",
        paper="2506.02864",
        arms={"bnpo": Logged(log=log, accuracy=0.7), "grpo": Logged(log=log, accuracy=0.5)},
        gates=(
            paired_difference("accuracy", "bnpo", "grpo", above=0.0),
            lower_bound("accuracy", "bnpo", above=0.9, required=False),
        ),
        seeds=range(3),
        budget="nothing",
        tuning="none",
    )
    return replace(made, **changes)


def results(**arms: list[float]) -> Results:
    return Results(
        arms={arm: {seed: {"m": value} for seed, value in enumerate(values)} for arm, values in arms.items()}
    )


def logged(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


# --- gates


A, B = [1.0, 2.0, 3.0, 4.0], [0.9, 1.8, 2.9, 3.8]


@pytest.mark.parametrize(
    ("gate", "estimate", "passed"),
    [
        (paired_difference("m", "a", "b", above=0.0), 0.15, PASS),
        (paired_difference("m", "a", "b", above=1.0), 0.15, FAIL),
        (paired_difference("m", "a", "b", above=0.15), 0.15, OPEN),
        (paired_difference("m", "b", "a", below=0.0), -0.15, PASS),
        (paired_difference("m", "a", "b", below=0.0), 0.15, FAIL),
        (paired_log_ratio("m", "a", "b", above=1.0), (24 / (0.9 * 1.8 * 2.9 * 3.8)) ** 0.25, PASS),
        (paired_log_ratio("m", "a", "b", below=1.01), (24 / (0.9 * 1.8 * 2.9 * 3.8)) ** 0.25, FAIL),
        (lower_bound("m", "a", above=2.0), 2.5, OPEN),
        (lower_bound("m", "a", above=-10.0), 2.5, PASS),
        (upper_bound("m", "a", below=-10.0), 2.5, FAIL),
        (every_seed("m", "a", lambda value: value >= 1.0, "at least 1"), 1.0, PASS),
        (every_seed("m", "a", lambda value: value > 1.0, "more than 1"), 0.75, FAIL),
    ],
)
def test_gates_against_numbers_by_hand(gate, estimate, passed):
    effect = gate.test(results(a=A, b=B))
    assert effect.estimate == pytest.approx(estimate)
    assert effect.passed is passed
    assert effect.low <= effect.estimate <= effect.high


def test_pairing_removes_what_the_seeds_share():
    shared = np.random.default_rng(0).normal(size=8) * 100
    paired = results(a=list(shared + 1), b=list(shared))
    assert paired_difference("m", "a", "b", above=0.5).test(paired).passed is PASS
    assert lower_bound("m", "a", above=0.5).test(paired).passed is OPEN


def test_pairs_are_matched_by_seed_not_by_place():
    crossed = Results(arms={"a": {0: {"m": 1.0}, 1: {"m": 5.0}, 2: {"m": 9.0}}, "b": {1: {"m": 4.0}, 0: {"m": 0.0}}})
    effect = paired_difference("m", "a", "b", above=0.0).test(crossed)
    assert (effect.estimate, effect.low, effect.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan, 1.0], [math.inf, 1.0]])
def test_numbers_that_are_not_finite_decide_nothing(values):
    effect = decide(np.array(values), above=0.0)
    assert effect.passed is OPEN
    assert math.isnan(effect.estimate)
    assert "finite" in effect.note
    assert paired_log_ratio("m", "a", "b", above=1.0).test(results(a=[1.0, 2.0], b=[0.0, 1.0])).passed is OPEN


def test_a_single_seed_decides_nothing_and_equal_seeds_decide_at_once():
    assert decide(np.array([5.0]), above=0.0).passed is OPEN
    assert decide(np.array([5.0, 5.0]), above=0.0).passed is PASS
    assert decide(np.array([0.0, 0.0]), above=0.0).passed is OPEN  # the threshold itself is on neither side


def test_a_gate_at_its_threshold_passes_seldom():
    draws = np.random.default_rng(3).normal(size=(400, 6))
    answers = [decide(draw, above=0.0).passed for draw in draws]
    assert 0.005 < np.mean([answer is PASS for answer in answers]) < 0.06  # 0.025 is meant
    assert 0.005 < np.mean([answer is FAIL for answer in answers]) < 0.06


@pytest.mark.parametrize("limits", [{}, {"above": 0.0, "below": 1.0}])
def test_a_gate_has_one_threshold(limits):
    with pytest.raises(ValueError, match="exactly one of above and below"):
        paired_difference("m", "a", "b", **limits)


def test_unknown_names_are_errors_that_name_the_nearest():
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy' in a, seed 0: did you mean 'accuracy'"):
        Results(arms={"a": {0: {"loss": 1.0, "accuracy": 0.5}}}).values("acuracy", "a")
    with pytest.raises(ValueError, match=r"unknown arm 'gpro'.*did you mean 'grpo'"):
        paired_difference("m", "bnpo", "gpro", above=0.0).test(results(bnpo=[1.0], grpo=[1.0]))
    with pytest.raises(ValueError, match="is a list"):
        Results(arms={"a": {0: {"curve/x": [1.0]}}}).values("curve/x", "a")


# --- verdicts


@pytest.mark.parametrize(
    ("answers", "failed_runs", "verdict"),
    [
        ([(PASS, True), (PASS, True)], 0, "reproduced"),
        ([(PASS, True), (FAIL, False), (OPEN, False)], 0, "reproduced"),
        ([(PASS, True), (OPEN, True)], 0, "inconclusive"),
        ([(PASS, True), (FAIL, True)], 0, "not reproduced"),
        ([(OPEN, True), (FAIL, True)], 0, "not reproduced"),
        ([(PASS, True)], 1, "inconclusive"),
        ([(FAIL, True)], 1, "inconclusive"),
    ],
)
def test_verdicts(tmp_path, answers, failed_runs, verdict):
    effects = [Effect(estimate=0.0, low=0.0, high=0.0, level=0.95, passed=passed) for passed, _ in answers]
    gates = tuple(Gate(name="", text="", test=lambda _: effects[0], required=required) for _, required in answers)
    errors = {("bnpo", seed): "failed" for seed in range(failed_runs)}
    assert verdict_of(study(tmp_path, gates=gates), effects, errors) == verdict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": (lower_bound("m", "bnpo", above=0.0, required=False),)}, "no required gate"),
        ({"gates": (lower_bound("m", "bnop", above=0.0),)}, "did you mean 'bnpo'"),
        ({"seeds": (1, 1)}, "distinct seeds"),
        ({"seeds": ()}, "distinct seeds"),
    ],
)
def test_claims_that_could_decide_nothing_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        study(tmp_path, **changes)


# --- running


def test_a_study_writes_its_result_as_documented(tmp_path):
    result = run(study(tmp_path), out=tmp_path / "results", progress=False)
    record = json.loads((tmp_path / "results" / "bnpo.json").read_text())
    documented = {"slug", "claim", "verdict", "arms", "effect", "gates", "seeds", "budget", "seconds"}
    assert documented | {"versions", "machine", "commit"} | {"paper", "tuning", "errors"} == set(record)
    assert record["verdict"] == result.verdict == "reproduced"
    assert record["seeds"] == [0, 1, 2]
    assert record["arms"]["grpo"]["2"] == {"accuracy": pytest.approx(0.52), "diverged": None}
    assert record["effect"].keys() == {"estimate", "low", "high", "level"}
    assert record["effect"]["estimate"] == pytest.approx(0.2)
    assert [(gate["required"], gate["passed"]) for gate in record["gates"]] == [(True, True), (False, False)]
    assert (tmp_path / "results" / "bnpo.svg").read_text().startswith("<?xml")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["bnpo.json", "bnpo.svg"]
    console = Console(file=io.StringIO(), width=200)
    result.print(console)
    assert all(word in console.file.getvalue() for word in ("0.71 [0.6", "reported only", "pass", "bnpo: reproduced"))


@pytest.mark.usefixtures("threads")
def test_a_smoke_run_is_apart_and_has_no_verdict(tmp_path):
    result = run(study(tmp_path), smoke=True, out=tmp_path / "results", progress=False)
    assert result.verdict is None
    assert result.path == tmp_path / "results" / "smoke" / "bnpo.json"
    assert not (tmp_path / "results" / "bnpo.json").exists()
    assert logged(tmp_path) == [f"{accuracy} {seed} True" for seed in (0, 1) for accuracy in (0.7, 0.5)]


@pytest.mark.usefixtures("threads")
def test_failing_runs_are_listed_and_only_they_are_tried_again(tmp_path):
    claim = study(tmp_path)
    claim = replace(claim, arms=claim.arms | {"bnpo": replace(claim.arms["bnpo"], fails_at=1)})
    result = run(claim, out=tmp_path, progress=False)
    assert result.verdict == "inconclusive"
    assert result.errors == {("bnpo", 1): "ZeroDivisionError: no such luck"}
    assert len(logged(tmp_path)) == 6
    assert result.effects[0].estimate == pytest.approx(0.2)
    listed = json.loads((tmp_path / "bnpo.json").read_text())["errors"]
    assert listed == [{"arm": "bnpo", "seed": 1, "message": "ZeroDivisionError: no such luck"}]
    (tmp_path / "log").unlink()
    run(claim, out=tmp_path, progress=False)
    assert logged(tmp_path) == ["0.7 1 False"]


@pytest.mark.slow
def test_a_worker_that_dies_takes_no_other_run_along(tmp_path):
    claim = study(tmp_path)
    arms = claim.arms | {"grpo": replace(claim.arms["grpo"], dies_at=0)}
    result = run(replace(claim, arms=arms), out=tmp_path, progress=False, jobs=2)
    assert result.errors == {("grpo", 0): "the worker process died"}
    assert (len(result.results.arms["bnpo"]), len(result.results.arms["grpo"])) == (3, 2)
    assert result.verdict == "inconclusive"


SCRIPT = """
import sys
from pathlib import Path
from test_claim import Logged, study
from policyopt.studies.claim import run

def main():
    folder = Path(sys.argv[1])
    log = str(folder / "log")
    slow = {"bnpo": Logged(log=log, accuracy=0.7), "grpo": Logged(log=log, accuracy=0.5, seconds=float(sys.argv[2]))}
    run(study(folder, arms=slow, slug="killed"), out=folder, progress=False)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_stopped_and_leaves_no_worker(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command, environment = [sys.executable, script, tmp_path, "1.5"], os.environ | {"PYTHONPATH": path}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    partial = tmp_path / "killed.partial.jsonl"
    deadline = time.monotonic() + 60
    while not (partial.exists() and len(partial.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=20)  # the pipes stay open as long as a worker lives
    done = [(line["arm"], line["seed"]) for line in map(json.loads, partial.read_text().splitlines())]
    assert done[:3] == [("bnpo", 0), ("grpo", 0), ("bnpo", 1)]
    with partial.open("a") as file:
        file.write('{"fingerprint": "cut o')
    (tmp_path / "log").unlink()
    subprocess.run(command, env=environment, check=True)
    names = {"bnpo": 0.7, "grpo": 0.5}
    rest = [(arm, seed) for seed in range(3) for arm in names if (arm, seed) not in done]
    assert logged(tmp_path) == [f"{names[arm]} {seed} False" for arm, seed in rest]
    assert not partial.exists()
    record = json.loads((tmp_path / "killed.json").read_text())
    assert record["verdict"] == "reproduced"
    assert all(list(runs) == ["0", "1", "2"] for runs in record["arms"].values())


@pytest.mark.usefixtures("threads")
def test_finished_runs_of_other_settings_are_not_taken_over(tmp_path):
    claim = study(tmp_path)
    other = study(tmp_path, arms=claim.arms | {"grpo": replace(claim.arms["grpo"], accuracy=0.6)})
    assert fingerprint(claim, False) == fingerprint(study(tmp_path), False)
    assert fingerprint(claim, False) != fingerprint(other, False)
    assert fingerprint(claim, False) != fingerprint(claim, True)
    stale = {"fingerprint": fingerprint(other, False), "arm": "grpo", "seed": 0, "metrics": {}, "seconds": 1.0}
    (tmp_path / "bnpo.partial.jsonl").write_text(json.dumps(stale) + "\n")
    run(claim, seeds=[0, 1], out=tmp_path, progress=False)
    assert len(logged(tmp_path)) == 4


def test_a_fingerprint_covers_what_is_imported_and_nothing_else():
    found = {path.relative_to(PACKAGE).as_posix() for path in _sources([PACKAGE / "studies" / "claim.py"])}
    assert {"studies/claim.py", "studies/gates.py", "reports/statistics.py", "reports/files.py"} <= found
    assert not {"reports/compare.py", "reports/claims.py", "registry.py"} & found


@pytest.mark.usefixtures("threads")
def test_an_unknown_metric_ends_the_study_at_the_first_run(tmp_path):
    claim = study(tmp_path, gates=(paired_difference("accurracy", "bnpo", "grpo", above=0.0),))
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        run(claim, out=tmp_path, progress=False)
    assert len(logged(tmp_path)) == 1


def test_arms_that_cannot_reach_a_worker_are_refused_before_anything_runs(tmp_path):
    claim = study(tmp_path)
    with pytest.raises(ValueError, match="module-level function or a frozen dataclass"):
        run(replace(claim, arms=claim.arms | {"grpo": lambda seed, smoke: {}}), out=tmp_path, progress=False)
    assert not (tmp_path / "log").exists()


@pytest.mark.usefixtures("threads")
def test_learning_curves_are_drawn_where_arms_return_them(tmp_path):
    claim = study(tmp_path)
    arms = {name: replace(arm, curves=True) for name, arm in claim.arms.items()}
    run(replace(claim, arms=arms, axis="generated tokens"), seeds=[0, 1], out=tmp_path, progress=False)
    drawing = (tmp_path / "bnpo.svg").read_text()
    assert "<!-- generated tokens -->" in drawing
    assert "<!-- bnpo (2 seeds) -->" in drawing


def test_arms_without_curves_are_left_out_of_the_figure() -> None:
    def learner(seed: int, smoke: bool) -> Metrics:
        return {"accuracy": 0.5, "curve/x": [0.0, 1.0], "curve/accuracy": [0.1, 0.5]}

    claim = Claim(
        slug="mixed",
        text="…",
        paper="0000.00000",
        arms={"learner": learner, "measure": learner},
        gates=(lower_bound("accuracy", "learner", above=0.0),),
        seeds=(0, 1),
        budget="none",
        tuning="none",
    )
    results = Results(
        arms={"learner": {s: learner(s, False) for s in (0, 1)}, "measure": {0: {"spread": 1.0}, 1: {"spread": 2.0}}}
    )
    figure = default_figure(claim)(results)
    labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert any("learner" in label for label in labels)
    assert not any("measure" in label for label in labels)
