"""The building: imports go only down, files stay short, and a GRPO step can be followed in a few of them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import policyopt
from policyopt.methods import grpo
from policyopt.models.language import LanguagePolicy
from policyopt.problems.language.arithmetic import Arithmetic

ROOT = Path(policyopt.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = (
    ("types", "parallel"),
    ("problems",),
    ("objectives", "credit"),
    ("models",),
    ("rollouts",),
    ("learners",),
    ("methods",),
    ("training",),
    ("registry",),  # finds methods, problems and studies by name, and imports them when they are asked for
    ("studies", "reports"),
    ("api",),
    ("cli", "__init__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of the package in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for parts in (name.split(".") for name in names):
            if parts[0] == "policyopt" and len(parts) > 1 and parts[1] in FLOOR:
                yield node.lineno, parts[1]


def lines(path: Path) -> int:
    """Lines to read: blank ones are not counted."""
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


def test_every_file_has_a_floor() -> None:
    assert {room(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = FLOOR[room(path)]
    upward = [f"line {line}: {target}" for line, target in imported_rooms(path) if FLOOR[target] > own]
    assert not upward, f"{room(path)} imports from above: {upward}"


def test_problems_know_types_alone() -> None:
    known = {target for path in FILES if room(path) == "problems" for _, target in imported_rooms(path)}
    assert known <= {"types", "problems"}


def test_files_are_short() -> None:
    limit = {path: 250 if room(path) == "methods" else 400 for path in FILES}
    long = {str(path.relative_to(ROOT)): lines(path) for path in FILES if lines(path) > limit[path]}
    assert not long


def test_imports_inside_functions_count() -> None:
    assert "models" in {target for _, target in imported_rooms(ROOT / "registry.py")}
    assert "reports" in {target for _, target in imported_rooms(ROOT / "cli.py")}


KNOWN = ("problems", "types", "parallel")


def test_a_grpo_step_can_be_followed(policy: LanguagePolicy) -> None:
    """From the collector to the optimizer, every file in which something runs: at most 8 files and 1,500 lines.

    The problem's own scoring, the records in types.py and the sums over processes, which every reader knows, are not
    counted.
    """
    learner = grpo.method().learner(Arithmetic(terms=2), policy, seed=0)
    visited: set[Path] = set()

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/"):
            visited.add(Path(frame.f_code.co_filename))

    sys.setprofile(watch)
    try:
        learner.step()
    finally:
        sys.setprofile(None)
    followed = {str(path.relative_to(ROOT)): lines(path) for path in visited if room(path) not in KNOWN}
    assert len(followed) <= 8, followed
    assert sum(followed.values()) <= 1500, followed
