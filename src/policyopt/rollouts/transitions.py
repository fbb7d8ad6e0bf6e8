"""Checks of a data set, wherever it comes from, before anything is learned or said of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policyopt.types import Transitions

SLACK = 1e-4  # beyond ±1, for rounding


def checked(problem: Any) -> Transitions:
    """The problem's ``transitions()``. Raises ValueError, with the row and the column, where they can't be learned from."""
    if not hasattr(problem, "transitions"):
        raise ValueError(
            f"{getattr(problem, 'name', problem)!r} has no data set (no ``transitions``), which offline learning needs"
        )
    data: Transitions = problem.transitions()
    spaces, count, where = problem.spaces, len(data), f"the data set of {problem.name}"
    if not count:
        raise ValueError(f"{where} is empty: it needs at least one transition")
    wanted = {
        "observation": (count, spaces.observation),
        "action": (count,) if spaces.discrete else (count, spaces.action),
        "reward": (count,),
        "next_observation": (count, spaces.observation),
        "terminated": (count,),
    }
    for name, shape in wanted.items():
        _check_column(where, name, getattr(data, name), shape)
    _check_actions(where, data.action, spaces)
    if data.episode is not None:
        _check_ends(where, data)
    return data


def _check_column(where: str, name: str, column: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(column.shape) != shape:
        raise ValueError(f"{where}: {name} has the shape {tuple(column.shape)}, expected {shape}")
    if name == "terminated":
        if column.dtype != torch.bool:
            raise ValueError(f"{where}: terminated must be of type bool, got {column.dtype}")
    elif bool((bad := ~torch.isfinite(column)).any()):
        raise ValueError(f"{where}: {_first(name, column, bad)}; every number has to be finite")


def _check_actions(where: str, action: Tensor, spaces: Any) -> None:
    if spaces.discrete:
        if bool((bad := (action < 0) | (action >= spaces.action) | (action != action.round())).any()):
            raise ValueError(
                f"{where}: {_first('action', action, bad)}; choices are whole, from 0 to {spaces.action - 1}"
            )
    elif bool((bad := action.abs() > 1.0 + SLACK).any()):
        number = int(bad.nonzero()[0, 1])
        meant = f", which stand for {spaces.low[number]:g} to {spaces.high[number]:g}" if spaces.low else ""
        raise ValueError(
            f"{where}: {_first('action', action, bad)}; actions lie in [-1, 1]{meant}: scale them from the environment's "
            "bounds (problems.control.environments.UnitBox)"
        )


def _check_ends(where: str, data: Transitions) -> None:
    """Every episode has its end at its last row, and at no other."""
    last = torch.diff(data.episode, append=data.episode[-1:] + 1) != 0
    wrong = last != (data.terminated | data.truncated)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        said = (
            "is its last row and neither terminated nor truncated" if last[row] else "ends it and is not its last row"
        )
        raise ValueError(
            f"{where}: row {row} of episode {int(data.episode[row])} {said}; an episode ends with its last row and with no "
            "other"
        )


def _first(name: str, column: Tensor, bad: Tensor) -> str:
    """Row, column and number of the first bad one."""
    place = bad.nonzero()[0].tolist()
    number = f", number {place[1]}," if len(place) > 1 else ""
    return f"row {place[0]} of {name}{number} is {float(column[tuple(place)]):g}"
