"""Checkpoints: nested state as safetensors and JSON, written aside, flushed to disk, renamed. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, REST = "tensors.safetensors", "state.json"


def flatten(state: Any, path: str = "", tensors: dict[str, Tensor] | None = None) -> tuple[Any, dict[str, Tensor]]:
    """Nested dictionaries and lists → (the same with ``{"tensor": path}`` in place of tensors, {path: tensor})."""
    tensors = {} if tensors is None else tensors
    if isinstance(state, Tensor):
        tensors[path] = state.detach().cpu().contiguous().clone()
        return {"tensor": path}, tensors
    if isinstance(state, dict):
        if bad := [key for key in state if not isinstance(key, str)]:
            raise TypeError(f"a state's keys must be text, got {bad[0]!r} at {path or 'the top'}")
        return {key: flatten(value, f"{path}/{key}", tensors)[0] for key, value in state.items()}, tensors
    if isinstance(state, (list, tuple)):
        return [flatten(value, f"{path}/{i}", tensors)[0] for i, value in enumerate(state)], tensors
    if state is None or isinstance(state, (bool, int, float, str)):
        return state, tensors
    raise TypeError(
        f"can't save a {type(state).__name__} at {path}: a state holds tensors, numbers, text, lists, dicts"
    )


def restore(rest: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``flatten`` (tuples come back as lists)."""
    if isinstance(rest, dict):
        if rest.keys() == {"tensor"} and rest["tensor"] in tensors:
            return tensors[rest["tensor"]]
        return {key: restore(value, tensors) for key, value in rest.items()}
    if isinstance(rest, list):
        return [restore(value, tensors) for value in rest]
    return rest


def _flushed(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(state: dict[str, Any], folder: Path) -> None:
    """Write ``state`` as ``folder``; it appears whole or not at all. Raises OSError (disk full …) leaving nothing behind."""
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    rest, tensors = flatten(state)
    try:
        aside.mkdir(parents=True)
        try:
            save_file(tensors, aside / TENSORS)
        except Exception as error:  # safetensors wraps the operating system's error in one of its own
            raise OSError(f"could not write {aside / TENSORS}: {error}") from error
        size = (aside / TENSORS).stat().st_size
        (aside / REST).write_text(json.dumps({"size": size, "state": rest}))
        for name in (TENSORS, REST):
            _flushed(aside / name)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        _flushed(folder.parent)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def load(folder: Path) -> dict[str, Any]:
    """Raises ValueError where the checkpoint is incomplete or damaged."""
    try:
        rest = json.loads((folder / REST).read_text())
        size = (folder / TENSORS).stat().st_size
        if size != rest["size"]:
            raise ValueError(f"{TENSORS} has {size} bytes instead of {rest['size']}")
        state: dict[str, Any] = restore(rest["state"], load_file(folder / TENSORS))
    except Exception as error:
        raise ValueError(f"the checkpoint {folder} is damaged: {error}") from error
    return state


class Checkpoints:
    """The checkpoints of a run folder: the last two, and the best by evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*") if not p.name.endswith(".tmp"))

    def save(self, step: int, state: dict[str, Any]) -> bool:
        """False, with a warning, where it could not be written: training goes on and the last good one stays."""
        try:
            save(state, self.folder / f"step-{step:08d}")
        except OSError as error:
            warnings.warn(f"checkpoint of step {step} not written ({error}); the last good one is kept", stacklevel=2)
            return False
        for old in self.steps()[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        return True

    def save_best(self, state: dict[str, Any]) -> None:
        try:
            save(state, self.folder / "best")
        except OSError as error:
            warnings.warn(f"best checkpoint not written ({error})", stacklevel=2)

    def latest(self) -> dict[str, Any] | None:
        """The newest good checkpoint, None where there is none yet; damaged ones are passed over with a warning.

        Raises ValueError where there are only damaged ones.
        """
        problems = []
        for folder in reversed(self.steps()):
            try:
                return load(folder)
            except ValueError as error:
                problems.append(str(error))
                warnings.warn(f"{error}; trying the one before", stacklevel=2)
        if problems:
            raise ValueError(f"no usable checkpoint in {self.folder}: {'; '.join(problems)}")
        return None


def to_device(state: Any, device: str | torch.device) -> Any:
    """The same nested state with its tensors on ``device``."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: to_device(value, device) for key, value in state.items()}
    return [to_device(value, device) for value in state] if isinstance(state, list) else state
