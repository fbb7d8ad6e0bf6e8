"""Every command from end to end on sizes that take a second, and what a user is told who got something wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from policyopt import api, cli
from policyopt.reports.claims import BEGIN, END
from policyopt.training.log import read_rows

POLICY = "fresh:layers=1,width=16,heads=2"
PROBLEM = "arithmetic:terms=2,evaluation_size=4,max_new_tokens=6"
SMALL = ["--problem", PROBLEM, "--policy", POLICY, "--device", "cpu", "--threads", "1", "--evaluations", "2"]
FEW = ["--set", "collector.prompts=2", "collector.samples=2"]


def train(out: Path, *more: str, method: str = "grpo", budget: str = "2-updates") -> int:
    return cli.main(["train", method, *SMALL, "--budget", budget, "--out", str(out), *FEW, *more])


def short_page(folder: Path) -> Path:
    """In the place of a page with a figure for each metric, which takes longer than the training."""
    (folder / "report.html").write_text("short")
    return folder / "report.html"


@pytest.fixture(autouse=True)
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "write_run_report", short_page)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder, "--warm-start", "1") == 0
    return folder


def output(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """(what was printed, what was complained about), each on one line whatever the width of the terminal."""
    captured = capsys.readouterr()
    return " ".join(captured.out.split()), " ".join(captured.err.split())


# -- the commands


def test_train_leaves_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "checkpoints",
        "policy",
        "report.html",
        "curve.svg",
    }
    assert [row["step"] for row in read_rows(trained / "metrics.jsonl")] == [0, 1, 2]


def test_a_config_repeats_a_run(trained: Path, tmp_path: Path) -> None:
    assert cli.main(["train", "--config", str(trained / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, again = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_rows(folder / "metrics.jsonl")]
        for folder in (trained, tmp_path / "again")
    )
    assert first == again
    assert (trained / "config.yaml").read_text() == (tmp_path / "again" / "config.yaml").read_text()
    weights = [(folder / "policy" / "model.safetensors").read_bytes() for folder in (trained, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_a_saved_policy_is_trained_on(trained: Path, tmp_path: Path) -> None:
    from policyopt.models.load import load_policy

    assert load_policy(str(trained / "policy")).core.config.hidden_size == 16
    folder = tmp_path / "on"
    arguments = ["train", "sft", *SMALL, "--budget", "1-updates", "--out", str(folder), "--set", "collector.prompts=2"]
    arguments[arguments.index(POLICY)] = str(trained / "policy")
    assert cli.main(arguments) == 0


def test_evaluate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(trained), "--pass-at", "1,2"]) == 0
    out, _ = output(capsys)
    found = dict(re.findall(r"(\S+) +([\d.]+)", out))
    assert set(found) == {"eval/accuracy", "eval/format", "eval/reward", "greedy/accuracy", "pass@1", "pass@2"}
    assert all(0.0 <= float(value) <= 1.0 for value in found.values())
    assert float(found["pass@1"]) <= float(found["pass@2"])


def test_sample(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(trained), "3+4=", "[bold]1+1=", "--samples", "2"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert sum(line.startswith("3+4= → ") for line in lines) == 2
    assert sum(line.startswith("[bold]1+1= → ") for line in lines) == 2
    assert cli.main(["sample", str(trained), "3+4=", "--greedy"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["sample", str(trained), "3+4=", "--greedy", "--seed", "5"]) == 0
    assert capsys.readouterr().out == first, "greedy answers do not depend on the seed"


def test_a_mixture_of_one_needs_no_share(tmp_path: Path) -> None:
    assert (
        cli.main(["log", "--problem", "checker", "--steps", "50", "--mix", "random", "--out", str(tmp_path / "d")]) == 0
    )
    assert (tmp_path / "d" / "data").exists()


def test_methods_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods"]) == 0
    out, _ = output(capsys)
    assert {"grpo", "ppo", "remax", "sft"} <= set(out.split())


def test_methods_shows_the_fields_that_set_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "grpo"]) == 0
    out, _ = output(capsys)
    assert "arXiv 2402.03300" in out
    assert "optimizer.learning_rate" in out
    assert "objective.aggregation │ SequenceMean" in out
    assert cli.main(["methods", "grpo:dapo"]) == 0
    assert "objective.stabilization.high │ 0.28" in output(capsys)[0]


def test_diff(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diff", "grpo", "grpo:dapo"]) == 0
    out, _ = output(capsys)
    assert "objective.aggregation │ SequenceMean │ TokenMean" in out
    assert "optimizer" not in out


def test_report(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "report.html").unlink()
    assert cli.main(["report", str(trained)]) == 0
    assert "<h2>Evaluation</h2>" in (trained / "report.html").read_text()
    (tmp_path / "results").mkdir()
    page = tmp_path / "claims.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert cli.main(["report", "--claims", "--results", str(tmp_path / "results"), "--page", str(page)]) == 0
    assert "| method | paper | claim |" in page.read_text()
    assert cli.main(["report"]) == 1
    assert "which run?" in output(capsys)[1]


@pytest.mark.slow
def test_compare_and_a_second_call_only_adds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "sft", "grpo:token_mean", "--problem", PROBLEM, "--policy", POLICY, "--seeds", "2"]
    arguments += ["--budget", "1-updates", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    out, _ = output(capsys)
    assert re.search(r"sft │ 2 │", out)
    assert re.search(r"grpo:token_mean │ 2 │", out)
    assert {path.name for path in tmp_path.glob("compare.*")} == {"compare.json", "compare.svg", "compare.html"}
    entries = json.loads((tmp_path / "compare.json").read_text())["entries"]
    assert [(entry["name"], entry["seeds"]) for entry in entries] == [("sft", 2), ("grpo:token_mean", 2)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")}
    assert len(before) == 4
    assert cli.main([*arguments, "--seeds", "3"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.glob("*/metrics.jsonl"))) == 6


@pytest.mark.slow
def test_reproduce_smoke(tmp_path: Path) -> None:
    assert cli.main(["reproduce", "stepmix", "--smoke", "--seeds", "1", "--out", str(tmp_path)]) == 0


def test_resume_goes_on_with_a_run_that_was_stopped_by_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def child() -> None:
        sys.exit(train(folder, budget="100000-updates"))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    log = folder / "metrics.jsonl"
    while process.is_alive() and not (log.exists() and len(read_rows(log)) >= 3):
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    done = len(read_rows(log))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("100000-updates", f"{done + 1}-updates"))
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert [row["step"] for row in read_rows(log)] == list(range(done + 2))


# -- help


@pytest.mark.parametrize(
    "command", [[], *([name] for name in cli.COMMANDS)], ids=lambda command: " ".join(command) or "all"
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    out, _ = output(capsys)
    assert "usage: policyopt" in out
    assert set(cli.COMMANDS) <= set(re.findall(r"[a-z]+", out)) or command


def test_help_needs_no_torch() -> None:
    """Help and the list of methods must come at once, and torch alone takes seconds."""
    code = (
        "import sys\n"
        "from policyopt import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'tensordict', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("[]")


# -- what goes wrong

WRONG: dict[str, tuple[list[str], str]] = {
    "method": (["grop"], "no method is called 'grop'; did you mean grpo"),
    "variant": (["grpo:dappo"], "no variant of grpo is called 'dappo'; did you mean dapo"),
    "no method": ([], "which method? For example: policyopt train grpo"),
    "problem": (["grpo", "--problem", "arithmetik"], "no problem is called 'arithmetik'; did you mean arithmetic"),
    "problem option": (
        ["grpo", "--problem", "arithmetic:termz=3"],
        "option 'termz' is not known; did you mean 'terms'",
    ),
    "problem value": (["grpo", "--problem", "arithmetic:terms=x"], "cannot read terms=x"),
    "field": (
        ["grpo", "--set", "optimizer.learning_rat=1"],
        "Adam has no field 'learning_rat'; did you mean 'learning_rate'",
    ),
    "value": (["grpo", "--set", "epochs=many"], "epochs: expected int, such as 1, got 'many'"),
    "part": (
        ["grpo", "--set", "objective.aggregation=TokenMeen"],
        "no Aggregation is called 'TokenMeen'; did you mean 'TokenMean'",
    ),
    "no equals sign": (["grpo", "--set", "epochs"], "--set needs FIELD=VALUE, got 'epochs'"),
    "impossible value": (["grpo", "--set", "epochs=0"], "epochs and minibatches must be positive, got 0 and 1"),
    "group of one": (["grpo", "--set", "collector.samples=1"], "needs at least 2 samples a prompt"),
    "budget": (["grpo", "--budget", "lots"], "cannot read the budget 'lots'"),
    "budget unit": (["grpo", "--budget", "10-token"], "cannot read the budget '10-token'"),
    "negative budget": (["grpo", "--budget=-5-updates"], "cannot read the budget"),
    "policy folder": (["grpo", "--policy", "./nowhere"], "there is no model folder ./nowhere"),
    "fresh policy": (["grpo", "--policy", "fresh:layer=1"], "cannot read 'layer=1' of a fresh policy"),
    "heads": (["grpo", "--policy", "fresh:width=10,heads=3"], "heads"),
    "dtype": (["grpo", "--dtype", "float8"], "unknown dtype 'float8'"),
    "device": (["grpo", "--device", "gpu"], "the device 'gpu' cannot be used"),
    "threads": (["grpo", "--threads", "-1"], "threads must be positive, got -1"),
    "micro-batch": (["grpo", "--micro-batch", "0"], "micro_batch must be a positive number of tokens, got 0"),
    "micro-batch of a method without": (["stepmix", "--micro-batch", "8"], "has no field 'micro_batch'"),
    "tracker": (["grpo", "--tracker", "tensorbord"], "no tracker is called 'tensorbord'; did you mean tensorboard"),
    "config": (["--config", "nowhere.yaml"], "there is no nowhere.yaml"),
    "resume": (["--resume", "nowhere"], "there is no nowhere"),
    "reward": (["grpo", "--reward", "rewards.py:good"], "the problem arithmetic takes no rewards; dataset:… does"),
    "lora": (["grpo", "--lora", "0"], "rank of a low-rank adapter must be positive"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_of_train_says_what_to_do(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[case]
    defaults = [] if case in ("config", "resume") else ["--out", "run", "--budget", "1-updates", "--policy", POLICY]
    if case != "group of one":
        assert cli.main(["train", *defaults, *arguments]) == 1
    else:
        assert cli.main(["train", *defaults, *arguments, "collector.prompts=2"]) == 1
    _, complaint = output(capsys)
    assert complaint.startswith("policyopt: ") or "policyopt: " in complaint
    assert message in complaint
    assert "Traceback" not in complaint
    if case != "group of one":
        assert not (tmp_path / "run" / "metrics.jsonl").exists(), "refused before any work"


def test_a_folder_that_holds_a_run_is_left_alone(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    assert train(trained) == 1
    assert "holds a run already: choose another folder (--out), or go on with it" in output(capsys)[1]
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_model_without_a_tokenizer(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / "policy" / name).read_bytes())
    assert cli.main(["train", "grpo", "--policy", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "gives no tokenizer" in output(capsys)[1]
    (tmp_path / "config.json").unlink()
    assert cli.main(["train", "grpo", "--policy", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "is not a model folder: it has no config.json" in output(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "which methods? For example: policyopt compare grpo rloo"),
        (["compare", "grpo", "rlo"], "no method is called 'rlo'; did you mean rloo"),
        (["compare", "grpo", "--seeds", "0"], "seeds must be positive, got 0"),
        (["methods", "grop"], "no method is called 'grop'; did you mean grpo"),
        (["diff", "grpo", "pppo"], "no method is called 'pppo'; did you mean pdppo or ppo"),
        (["reproduce", "grop"], "no study is called 'grop'"),
        (["evaluate", "nowhere"], "there is no nowhere"),
        (["sample", "nowhere", "1+1="], "there is no nowhere"),
        (["report", "nowhere"], "no metrics yet"),
    ],
)
def test_wrong_calls_of_the_other_commands(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert message in output(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pass-at", "1,x"], "--pass-at needs numbers such as 1,8, got '1,x'"),
        (["--pass-at", "0"], "pass@k needs a k of 1 or more, got 0"),
    ],
)
def test_evaluate_refuses_what_it_cannot_estimate(
    arguments: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(trained), *arguments]) == 1
    assert message in output(capsys)[1]


def test_a_run_without_a_better_evaluation_has_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", budget="1-updates") == 0
    best = tmp_path / "run" / "checkpoints" / "best"
    assert not best.exists(), "a fresh policy answers nothing right, before and after one update"
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "run"), "--best"]) == 1
    assert "no evaluation was better than the one before training" in output(capsys)[1]


def test_settings_add_up(tmp_path: Path) -> None:
    settings = ["--set", "collector.prompts=2", "--set", "collector.samples=3"]
    assert cli.main(["train", "grpo", "--budget", "1-updates", *settings, "--out", str(tmp_path / "run")]) == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["resolved"]
    assert resolved["collector"]["prompts"] == 2 and resolved["collector"]["samples"] == 3


def test_one_name_serves_language_and_control(tmp_path: Path) -> None:
    small = ["--set", "collector.steps=8", "collector.environments=2", "minibatches=2", "epochs=1"]
    command = ["train", "ppo", "--problem", "gym:CartPole-v1", "--budget", "1-updates", *small]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 0
    assert "method: ppo:control" in (tmp_path / "run" / "config.yaml").read_text(), "the run can be repeated as it was"
    again = ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "again")]
    assert cli.main(again) == 0
