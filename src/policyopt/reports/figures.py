"""Figures as SVG: labelled axes, seeds and intervals visible, colours that a colour-blind reader tells apart.

No global state: every figure is a ``matplotlib.figure.Figure`` of its own, and equal figures are saved as equal bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike

from policyopt.reports.files import write_atomically
from policyopt.reports.statistics import bootstrap_band, bootstrap_interval, on_common_axis

# Okabe and Ito's palette without black and yellow; line styles tell apart what comes after it.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", ":", "-.")
INK, GRID = "#333333", "#DDDDDD"
BAND_RESAMPLES = 999
PANEL_COLUMNS = 3


def learning_curves(curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]], xlabel: str, ylabel: str) -> Figure:
    """``curves[name]``: the seeds' (x, y). A line for the mean, a 95% bootstrap band, every seed thin behind it."""
    figure, axes = _blank(6.4, 4.2)
    bands = []
    for index, (name, seeds) in enumerate(_nonempty(curves)):
        colour, dash = _look(index)
        x, y = on_common_axis(seeds)
        mean, low, high = bootstrap_band(y, resamples=BAND_RESAMPLES)
        if len(seeds) > 1:
            bands.append((x, low, high, colour))
            axes.plot(*(part for points in seeds for part in points), color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(x, mean, color=colour, linestyle=dash, linewidth=2.0, label=_counted(name, len(seeds)))
    limits = axes.get_ylim()
    for x, low, high, colour in bands:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_ylim(limits)  # the band of few seeds is wide: it must not flatten the curves
    _label(axes, xlabel, ylabel)
    _legend_below(figure)
    return figure


def arm_points(
    metrics: Mapping[str, Mapping[str, Sequence[float]]], thresholds: Mapping[str, float] | None = None
) -> Figure:
    """``metrics[name][arm]``: one number a seed. A panel a metric, a line an arm: seeds, mean and its 95% interval.

    ``thresholds[name]`` is drawn as a dashed line where a metric has one.
    """
    arms = list(dict.fromkeys(arm for points in metrics.values() for arm in points))
    columns = min(PANEL_COLUMNS, max(1, len(metrics)))
    rows = math.ceil(len(metrics) / columns) or 1
    figure = Figure(figsize=(3.0 * columns + 1.2, (0.38 * len(arms) + 0.9) * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (metric, points) in zip(grid, metrics.items(), strict=False):
        _style(axes, "x")
        for index, arm in enumerate(arms):
            _seeds(axes, index, points.get(arm, ()))
        if thresholds and metric in thresholds:
            axes.axvline(thresholds[metric], color=INK, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlabel(metric, color=INK)
    for axes in grid[len(metrics) :]:
        axes.set_axis_off()
    dashed = "; dashed: threshold" if thresholds else ""
    figure.supxlabel(f"points: seeds; diamond: mean with its 95% interval over seeds{dashed}", fontsize=8, color=INK)
    return figure


def series(x: Sequence[float], y: Sequence[float], xlabel: str, ylabel: str) -> Figure:
    """One metric of one run, small enough to stand beside others; more than 400 points are averaged in equal bins."""
    figure, axes = _blank(4.2, 2.7)
    shown_x, shown_y = _binned(x, 400), _binned(y, 400)
    axes.plot(shown_x, shown_y, color=PALETTE[0], linewidth=1.5, marker="o" if len(shown_x) < 30 else "", markersize=3)
    _label(axes, xlabel, ylabel)
    return figure


def svg(figure: Figure) -> str:
    """The figure as SVG text: no date, ids from a fixed salt, so that equal figures are equal bytes."""
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "policyopt"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def save_svg(figure: Figure, path: Path) -> None:
    """Write ``svg(figure)`` atomically."""
    write_atomically(path, svg(figure))


def _seeds(axes: Axes, place: int, values: Sequence[float]) -> None:
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return
    colour, _ = _look(place)
    axes.scatter(finite, np.full(finite.size, place - 0.12), s=18, color=colour, alpha=0.5, linewidth=0)
    mean, low, high = bootstrap_interval(finite)
    reach = [[mean - low], [high - mean]] if finite.size > 1 else None
    axes.errorbar(mean, place + 0.18, xerr=reach, fmt="D", color=colour, markersize=5, capsize=3, linewidth=1.6)


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _label(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    if axes.get_xlim()[1] >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axes.get_xlim()[1] > 6))


def _legend_below(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = max(1, min(3, 60 // max(map(len, labels), default=1)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _look(index: int) -> tuple[str, str]:
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def _counted(name: str, seeds: int) -> str:
    return f"{name} ({seeds} seed{'s' if seeds != 1 else ''})"


def _nonempty(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]],
) -> Iterable[tuple[str, Sequence[tuple[ArrayLike, ArrayLike]]]]:
    return ((name, seeds) for name, seeds in curves.items() if len(seeds))


def _binned(values: Sequence[float], bins: int) -> list[float]:
    if len(values) <= bins:
        return list(values)
    return [float(np.mean(part)) for part in np.array_split(np.asarray(values), bins)]


def fitted_points(
    points: Mapping[str, tuple[ArrayLike, ArrayLike]],
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """``points[name]`` and the curve ``lines[name]`` that was fitted to them."""
    figure, axes = _blank(6.4, 4.2)
    for index, name in enumerate(points):
        colour, dash = _look(index)
        axes.plot(*points[name], "o", color=colour, markersize=3.5, alpha=0.7)
        axes.plot(*lines[name], color=colour, linestyle=dash, linewidth=2.0, label=name)
    _label(axes, xlabel, ylabel)
    _legend_below(figure)
    return figure
