"""Checks of a data set before anything is learned from it."""

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
    spaces, count = problem.spaces, data.batch_size[0]
    if not count:
        raise ValueError(f"the data set of {problem.name} is empty: it needs at least one transition")
    wanted = {
        "observation": (count, spaces.observation),
        "action": (count, spaces.action),
        "reward": (count,),
        "next_observation": (count, spaces.observation),
        "terminated": (count,),
    }
    for name, shape in wanted.items():
        _check(problem.name, name, getattr(data, name), shape)
    _within(problem.name, data.action)
    return data


def _check(where: str, name: str, column: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(column.shape) != shape:
        raise ValueError(f"the data set of {where}: {name} has the shape {tuple(column.shape)}, expected {shape}")
    if name == "terminated":
        if column.dtype != torch.bool:
            raise ValueError(f"the data set of {where}: terminated must be of type bool, got {column.dtype}")
        return
    if bool((bad := ~torch.isfinite(column)).any()):
        row = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the data set of {where}: row {row[0]} of {name}{_number(row)} is {float(column[tuple(row)])}; every number "
            "has to be finite"
        )


def _within(where: str, action: Tensor) -> None:
    if bool((bad := action.abs() > 1.0 + SLACK).any()):
        row = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the data set of {where}: row {row[0]} of action{_number(row)} is {float(action[tuple(row)]):g}; actions lie "
            "in [-1, 1]: scale them from the environment's bounds (problems.control.environments.to_unit)"
        )


def _number(row: list[int]) -> str:
    return f", number {row[1]}," if len(row) > 1 else ""
