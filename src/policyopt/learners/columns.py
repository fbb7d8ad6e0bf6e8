"""The check that every column which a part reads is given by a part before it: made when a learner is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from policyopt.types import Part


def check_columns(stages: Iterable[Part]) -> None:
    """Raise ValueError where a part of ``stages``, in their order, reads a column that nothing before it gives."""
    given = {"actions", "mask"}
    for part in (piece for stage in stages for piece in nested_parts(stage)):
        if missing := [column for column in part.needs if column not in given]:
            raise ValueError(
                f"{type(part).__name__} reads the column {missing[0]!r}, which no part before it gives; there are "
                f"{', '.join(sorted(given))}. Add a part that gives it (`policyopt methods` shows the parts of each method)"
            )
        given |= set(part.gives)


def nested_parts(part: Part) -> Iterator[Part]:
    """The parts inside ``part``, then itself: what is inside works first."""
    for item in fields(part):
        value = getattr(part, item.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Part):
                yield from nested_parts(inner)
    yield part
