"""The promise: on a CPU a repeat gives the same bits, and so does a run that was killed anywhere and resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policyopt import api
from policyopt.learners.update import Optimizer
from policyopt.models.language import LanguagePolicy
from policyopt.training import checkpoint, log
from policyopt.training.checkpoint import flatten, load

STEPS = 6
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with demonstrations, and a reward that a fresh policy earns more or less of."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(5) for b in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(
        "def early(completions, **columns):\n"
        "    return [sum(ord(c) for c in text) % 101 / 101 for text in completions]\n"
    )
    return folder


@pytest.fixture(autouse=True)
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "write_run_report", lambda folder: None)


def settings(data: Path, method: str, warm_start: int = 0, **overrides: str) -> api.Settings:
    return api.Settings(
        method=method,
        problem=f"dataset:{data / 'sums.jsonl'}?max_new_tokens=5&evaluation_size=4",
        reward=f"{data / 'rewards.py'}:early",
        policy="fresh:layers=1,width=16,heads=2",
        budget=f"{STEPS}-updates",
        seed=3,
        device="cpu",
        threads=1,
        evaluations=3,
        checkpoints=3,
        warm_start=warm_start,
        overrides={name.replace("__", "."): value for name, value in overrides.items()},
    )


CASES: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo", "collector__prompts": "3", "collector__samples": "4"},
    "ppo": {"method": "ppo", "collector__prompts": "12"},
    "t-ppo": {"method": "t-ppo", "collector__slots": "12", "collector__window": "2"},  # stops inside responses
    "remax": {"method": "remax", "collector__prompts": "8"},
    "sft": {"method": "sft", "collector__prompts": "8"},
    "stages": {"method": "grpo", "warm_start": 3, "collector__prompts": "3", "collector__samples": "4"},
}


KILLED: dict[str, Any] = {"method": "ppo", "warm_start": 2, "collector__prompts": "12"}  # critic, optimizers, stages


def train(chosen: api.Settings, folder: Path, resume: bool = False) -> None:
    api.train_from(chosen, folder, resume=resume, progress=False)


def final_state(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Everything that the last checkpoint holds: weights, optimizers, critics, clocks, the best score."""
    return flatten(load(folder / "checkpoints" / f"step-{STEPS:08d}"))


def assert_same(first: Path, second: Path) -> None:
    (rest, tensors), (other_rest, other_tensors) = final_state(first), final_state(second)
    assert rest == other_rest
    assert tensors.keys() == other_tensors.keys()
    different = [name for name, tensor in tensors.items() if not torch.equal(tensor, other_tensors[name])]
    assert not different
    assert untimed(first) == untimed(second)


def untimed(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_logged_once(folder: Path) -> None:
    assert [row["step"] for row in untimed(folder)] == list(range(STEPS + 1))
    samples = [json.loads(line)["step"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert sorted(set(samples)) == [0, 2, 4, 6]
    assert len(samples) == 4 * samples.count(0)
    assert not list((folder / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("case", CASES)
def test_a_repeat_gives_the_same_bits(case: str, data: Path, tmp_path: Path) -> None:
    chosen = settings(data, **CASES[case])
    train(chosen, tmp_path / "first")
    train(api.read_config(tmp_path / "first"), tmp_path / "second")
    assert_same(tmp_path / "first", tmp_path / "second")
    train(replace(chosen, seed=4), tmp_path / "other")
    mine, others = final_state(tmp_path / "first")[1], final_state(tmp_path / "other")[1]
    assert all(not torch.equal(mine[name], others[name]) for name in mine if name.endswith("exp_avg"))


def run_to_death(chosen: api.Settings, folder: Path, sabotage: Callable[[], None], resume: bool = False) -> int:
    """The exit code of a training process in which ``sabotage`` has been at work."""

    def child() -> None:
        sabotage()
        train(chosen, folder, resume)

    process = fork.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die_in(owner: Any, name: str, call: int, after: bool = False) -> Callable[[], None]:
    """Kill the process at the given call of a function, before or after it does its work."""

    def sabotage() -> None:
        genuine, count = getattr(owner, name), 0

        def fatal(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = genuine(*arguments, **options)
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, fatal)

    return sabotage


def half_a_row() -> None:
    """Die when half of the fourth row of the log has reached the disk."""
    genuine = log.JsonLines.write

    def fatal(self: log.JsonLines, step: int, row: dict[str, Any]) -> None:
        if step == 3:
            with self.path.open("a") as file:
                file.write('{"step": 3, "rewa')
            os.kill(os.getpid(), signal.SIGKILL)
        genuine(self, step, row)

    log.JsonLines.write = fatal  # type: ignore[method-assign, assignment]


POINTS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": die_in(checkpoint, "save", 1),
    "tensors written": die_in(checkpoint, "save_file", 2, after=True),
    "before a flush": die_in(checkpoint, "_flushed", 5),
    "before the rename": die_in(Path, "rename", 3),
    "after the rename": die_in(Path, "rename", 2, after=True),
    "old one half removed": die_in(checkpoint.shutil, "rmtree", 9),
    "in the middle of an update": die_in(Optimizer, "attempt", 4),
    "half a row logged": half_a_row,
    "all done but the policy": die_in(LanguagePolicy, "save", 1),
}


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "write_run_report", lambda folder: None)
        train(settings(data, **KILLED), folder)
    return folder


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_is_undisturbed(point: str, data: Path, undisturbed: Path, tmp_path: Path) -> None:
    chosen, folder = settings(data, **KILLED), tmp_path / "run"
    assert run_to_death(chosen, folder, POINTS[point]) == -signal.SIGKILL
    train(api.read_config(folder), folder, resume=True)
    assert_same(undisturbed, folder)
    assert_logged_once(folder)


@pytest.mark.slow
def test_killed_at_random_until_it_is_done(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    chosen, folder, rng = settings(data, **KILLED), tmp_path / "run", random.Random(0)
    kills, patience = 0, 0.04  # short enough for a fast machine; it grows until a slow one gets done
    while True:
        process = fork.Process(target=train, args=(chosen, folder, (folder / "config.yaml").exists()))
        process.start()
        process.join(patience * (0.5 + rng.random()))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills, patience = kills + 1, patience * 1.2
    assert process.exitcode == 0
    assert kills >= 3
    assert_same(undisturbed, folder)
    assert_logged_once(folder)


def test_the_best_checkpoint_is_that_of_the_undisturbed_run(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    chosen, folder = settings(data, **KILLED), tmp_path / "run"
    run_to_death(chosen, folder, die_in(checkpoint, "save", 3))
    train(chosen, folder, resume=True)
    (rest, tensors), (other_rest, other_tensors) = (
        flatten(load(f / "checkpoints" / "best")) for f in (undisturbed, folder)
    )
    assert rest == other_rest
    assert all(torch.equal(tensor, other_tensors[name]) for name, tensor in tensors.items())


def test_a_resume_does_not_train_a_finished_run_again(data: Path, undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").read_bytes()
    train(api.read_config(undisturbed), undisturbed, resume=True)
    assert (undisturbed / "metrics.jsonl").read_bytes() == before
