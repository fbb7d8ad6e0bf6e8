"""Checkpoints: what goes in comes out, what is damaged is passed over, a full disk does not end a training."""

from __future__ import annotations

import errno
import json
import multiprocessing
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policyopt.training import checkpoint
from policyopt.training.checkpoint import REST, TENSORS, Checkpoints, flatten, load, restore, save, to_device
from policyopt.training.log import JsonLines, read_rows


def state(number: float) -> dict[str, Any]:
    return {
        "clock": {"step": 3, "spent": {"tokens": 12.0}, "share": 0.25, "best": None, "done": False},
        "weights": {"a.b": torch.full((2, 3), number), "c": torch.arange(5)},
        "history": [torch.tensor(True), "text", [1, 2.5], {}],
        "half": torch.tensor([number], dtype=torch.bfloat16),
    }


def assert_equal(one: Any, two: Any) -> None:
    (rest, tensors), (other_rest, other_tensors) = flatten(one), flatten(two)
    assert rest == other_rest
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == other_tensors[name].dtype
        assert torch.equal(tensor, other_tensors[name])


def test_flatten_and_restore_are_inverse() -> None:
    rest, tensors = flatten(state(1.5))
    assert sorted(tensors) == ["/half", "/history/0", "/weights/a.b", "/weights/c"]
    assert_equal(restore(json.loads(json.dumps(rest)), tensors), state(1.5))
    assert restore(*flatten({"pair": (1, 2)})) == {"pair": [1, 2]}, "tuples come back as lists"


def test_a_state_is_a_copy() -> None:
    weight = torch.zeros(2)
    _, tensors = flatten({"weight": weight})
    weight += 1
    assert not tensors["/weight"].any()


def test_shared_and_strided_tensors_are_saved_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    save({"one": base, "two": base, "transposed": base.T, "row": base[1]}, tmp_path / "step-1")
    assert_equal(load(tmp_path / "step-1"), {"one": base, "two": base, "transposed": base.T, "row": base[1]})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": {1: 2}}, "keys must be text, got 1 at /a"),
        ({"a": [object()]}, "can't save a object at /a/0"),
        ({"a": {"b": {1, 2}}}, "can't save a set at /a/b"),
    ],
)
def test_what_cannot_be_saved_is_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        flatten(bad)


def test_a_saved_state_comes_back(tmp_path: Path) -> None:
    save(state(2.0), tmp_path / "deep" / "step-00000001")
    assert_equal(load(tmp_path / "deep" / "step-00000001"), state(2.0))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["step-00000001"]
    assert_equal(to_device(state(2.0), "cpu"), state(2.0))


def test_the_last_two_are_kept_and_the_best_beside(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(state(0.0))
    for step in (1, 2, 30):
        assert checkpoints.save(step, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "step-00000002", "step-00000030"]
    assert_equal(checkpoints.latest(), state(30))
    assert_equal(load(tmp_path / "best"), state(0.0))


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").latest() is None


def halve(folder: Path) -> None:
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[: len(data) // 2])


def halve_rest(folder: Path) -> None:
    data = (folder / REST).read_text()
    (folder / REST).write_text(data[: len(data) // 2])


def flip_size(folder: Path) -> None:
    record = json.loads((folder / REST).read_text())
    (folder / REST).write_text(json.dumps({**record, "size": record["size"] ^ 8}))


def empty(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "tensors cut in half": halve,
    "rest cut in half": halve_rest,
    "rest missing": lambda folder: (folder / REST).unlink(),
    "tensors missing": lambda folder: (folder / TENSORS).unlink(),
    "size flipped": flip_size,
    "tensors empty": empty,
    "rest is no record": lambda folder: (folder / REST).write_text("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0))
    checkpoints.save(2, state(2.0))
    DAMAGES[damage](tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match="step-00000002 is damaged.*trying the one before"):
        assert_equal(checkpoints.latest(), state(1.0))
    DAMAGES[damage](tmp_path / "step-00000001")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(
            ValueError, match=r"no usable checkpoint in .*step-00000002 is damaged.*step-00000001 is damaged"
        ),
    ):
        checkpoints.latest()


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state(1.0))
    halve(tmp_path / "step-00000002")
    assert checkpoints.save(2, state(2.0))
    assert_equal(checkpoints.latest(), state(2.0))


def test_what_a_killed_writer_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000007.tmp").mkdir()
    (tmp_path / "step-00000007.tmp" / TENSORS).write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    assert checkpoints.save(7, state(7.0))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("owner", ["save_file", "_flushed"])
def test_a_full_disk_leaves_the_last_good_one_and_nothing_else(
    owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1.0))
    checkpoints.save_best(state(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, owner, no_space)
        with pytest.warns(UserWarning, match="checkpoint of step 2 not written .*No space left.*last good one is kept"):
            assert not checkpoints.save(2, state(2.0))
        with pytest.warns(UserWarning, match="best checkpoint not written"):
            checkpoints.save_best(state(2.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "step-00000001"]
    assert_equal(checkpoints.latest(), state(1.0))
    assert_equal(load(tmp_path / "best"), state(1.0))
    assert checkpoints.save(3, state(3.0)), "once there is room again"


def save_with_a_file_limit(folder: Path, limit: int) -> None:
    """In a process that may not write a file longer than ``limit`` bytes: exit code 0 when training could go on."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    large = {"weights": torch.ones(10_000)}
    raise SystemExit(int(Checkpoints(folder).save(2, large)))


def test_a_file_that_the_system_cuts_short_is_not_a_checkpoint(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, state(1.0))
    child = multiprocessing.get_context("fork").Process(target=save_with_a_file_limit, args=(tmp_path, 8192))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_rows_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    home = tmp_path / "run"
    metrics = JsonLines(home / "metrics.jsonl")
    for step in (0, 1):  # its folder is not there: the write fails
        with pytest.warns(UserWarning, match=rf"could not be written .*{step + 1} rows are kept"):
            metrics.write(step, {"reward/mean": 0.5})
    home.mkdir()
    metrics.write(2, {"reward/mean": 1.0})
    assert [row["step"] for row in read_rows(metrics.path)] == [0, 1, 2]
    metrics.close()
    assert len(read_rows(metrics.path)) == 3, "nothing is written twice"


def write_rows_with_a_file_limit(path: Path) -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    metrics = JsonLines(path)
    for step in range(20):
        metrics.write(step, {"value": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    metrics.write(20, {"value": 1.0})


def test_a_disk_that_was_full_for_a_while_loses_and_doubles_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    child = multiprocessing.get_context("fork").Process(target=write_rows_with_a_file_limit, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(21))


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    metrics.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert metrics.path.read_text() == '{"step": 1, "a": null, "b": null, "c": 1.0}\n'


def test_truncate_drops_later_rows_and_half_a_row(tmp_path: Path) -> None:
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    metrics.truncate(3)
    assert not metrics.path.exists()
    for step in range(5):
        metrics.write(step, {"a": step / 2})
    with metrics.path.open("a") as file:
        file.write('{"step": 5, "a"')
    metrics.truncate(2)
    assert metrics.path.read_text() == "".join(json.dumps({"step": s, "a": s / 2}) + "\n" for s in range(3))
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
