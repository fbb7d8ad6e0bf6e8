"""Several runs side by side: one table, one figure, one page, over the same axis and the same stretch of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from policyopt.reports.figures import learning_curves, svg
from policyopt.reports.files import write_atomically, write_json
from policyopt.reports.run import AXES, axis_of, curve_of, metric_names, page_template, read_metrics
from policyopt.reports.statistics import (
    Interval,
    area_under_curve,
    bootstrap_interval,
    interquartile_mean,
)

Rows = Sequence[Mapping[str, Any]]

COMPARED = ("eval/accuracy", "eval/return", "eval/preference_accuracy")
"""What runs are compared by: the first of these that they log."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a comparison by ``metric``; every interval is over ``seeds`` runs.

    final: mean of the metric at the end of the stretch of the axis that all runs of all entries cover; iqm: its
    interquartile mean; area: mean height of the curve over that stretch, in the metric's own unit.
    """

    name: str
    metric: str
    seeds: int
    final: Interval
    iqm: Interval
    area: Interval


def write_compare(
    runs: Mapping[str, Sequence[Path]], out: Path, metric: str | None = None, budget: str = ""
) -> list[Entry]:
    """Compare groups of run folders (one a seed): ``compare.json``, ``.svg``, ``.html`` in ``out``; the table's lines.

    The axis is what all runs log: generated tokens, else environment steps, else learner steps; it is cut where the
    shortest run ends: nobody is compared at a larger budget. ``budget`` says in words what each run could spend.
    ``metric`` None is the first of ``COMPARED`` that the first run logs.
    Raises ValueError where a group is empty or a run lacks the metric.
    """
    if not runs or not all(runs.values()):
        raise ValueError(f"a comparison needs at least one run of each name, got {dict(runs)}")
    metric = metric or _usual_metric(next(iter(runs.values()))[0])
    read = {name: [_read(path, metric) for path in paths] for name, paths in runs.items()}
    axis = _shared_axis([rows for group in read.values() for rows in group])
    curves = {name: [_points(rows, metric, axis) for rows in group] for name, group in read.items()}
    start = max(x[0] for group in curves.values() for x, _ in group)
    end = min(x[-1] for group in curves.values() for x, _ in group)
    if start > end:
        raise ValueError(f"the runs share no stretch of {AXES[axis]}: one starts at {start:g}, another ends at {end:g}")
    entries = [_entry(name, metric, group, start, end) for name, group in curves.items()]
    figure = svg(learning_curves(curves, AXES[axis], metric))
    facts = {"metric": metric, "axis": AXES[axis], "from": start, "to": end, "budget": budget}
    _write(out, entries, facts, figure)
    return entries


def print_table(console: Console, entries: Sequence[Entry]) -> None:
    """The comparison on a terminal."""
    table = Table("method", "seeds", "final [95% interval]", "interquartile mean", "area under the curve")
    table.title = escape(entries[0].metric)
    for entry in entries:
        cells = (escape(str(interval)) for interval in (entry.final, entry.iqm, entry.area))
        table.add_row(escape(entry.name), str(entry.seeds), *cells)
    console.print(table)


def _usual_metric(path: Path) -> str:
    names = metric_names(read_metrics(path))
    return next((metric for metric in COMPARED if metric in names), COMPARED[0])


def _entry(
    name: str, metric: str, curves: Sequence[tuple[list[float], list[float]]], start: float, end: float
) -> Entry:
    cut = [_between(x, y, start, end) for x, y in curves]
    final = [y[-1] for _, y in cut]
    return Entry(
        name=name,
        metric=metric,
        seeds=len(curves),
        final=bootstrap_interval(final),
        iqm=bootstrap_interval(final, interquartile_mean),
        area=bootstrap_interval([area_under_curve(x, y) for x, y in cut]),
    )


def _between(x: list[float], y: list[float], start: float, end: float) -> tuple[list[float], list[float]]:
    """The stretch of a curve from ``start`` to ``end``, its ends interpolated."""
    axis = [start, *(point for point in x if start < point < end), end]
    return axis, [float(value) for value in np.interp(axis, x, y)]


def _read(path: Path, metric: str) -> Rows:
    rows = read_metrics(path)
    names = metric_names(rows)
    if metric not in names:
        near = get_close_matches(metric, names, n=1, cutoff=0.0)
        raise ValueError(f"{path} has no metric {metric!r}; the nearest of its {len(names)} is {near[0]!r}")
    return rows


def _shared_axis(runs: Sequence[Rows]) -> str:
    axes = {axis_of(rows) for rows in runs}
    return axes.pop() if len(axes) == 1 else "step"


def _points(rows: Rows, metric: str, axis: str) -> tuple[list[float], list[float]]:
    curve = curve_of(rows, metric, axis)
    return curve.steps, curve.values


def _write(out: Path, entries: Sequence[Entry], facts: Mapping[str, Any], figure: str) -> None:
    write_json(out / "compare.json", {**facts, "entries": [_record(entry) for entry in entries]})
    write_atomically(out / "compare.svg", figure)
    drawing = Markup(figure[figure.index("<svg") :])
    page = page_template("compare.html").render(entries=entries, figure=drawing, facts=facts)
    write_atomically(out / "compare.html", page)


def _record(entry: Entry) -> dict[str, Any]:
    intervals = {name: getattr(entry, name)._asdict() for name in ("final", "iqm", "area")}
    return {"name": entry.name, "seeds": entry.seeds, **intervals}
