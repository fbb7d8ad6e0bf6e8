"""One run as a page: ``report.html`` and ``curve.svg`` from what the run's folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from policyopt.reports.figures import series, svg
from policyopt.reports.files import read_lines, write_atomically

GROUPS = {
    "eval": "Evaluation",
    "reward": "Reward",
    "response": "Responses",
    "loss": "Loss",
    "policy": "Policy",
    "spent": "Spent so far",
    "cost": "Cost of a step",
    "time": "Time",
}
UNITS = {
    "policy/entropy": "nats a step",
    "policy/kl_k1": "nats a step",
    "policy/kl_k2": "nats a step",
    "policy/kl_k3": "nats a step",
    "response/length": "tokens",
    "cost/tokens": "generated tokens",
    "cost/env_steps": "environment steps",
    "time/step": "seconds",
    "time/evaluation": "seconds",
    "spent/tokens": "generated tokens",
    "spent/env_steps": "environment steps",
    "spent/seconds": "seconds",
}
AXES = {"spent/tokens": "generated tokens", "spent/env_steps": "environment steps", "step": "learner steps"}
HEADLINES = ("eval/accuracy", "eval/return")
SHOWN_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of a run: the steps at which it was logged, and its values."""

    name: str
    steps: list[float]
    values: list[float]

    @property
    def label(self) -> str:
        """The name with its unit."""
        return f"{self.name} ({UNITS[self.name]})" if self.name in UNITS else self.name

    def drawn(self) -> Markup:
        """The curve as inline SVG."""
        drawing = svg(series(self.steps, self.values, "learner steps", self.label))
        return Markup(drawing[drawing.index("<svg") :])  # made here, no foreign text but the metric's escaped name


def write_run_report(run_dir: Path) -> Path:
    """Write ``report.html`` (self-contained, works offline) and ``curve.svg`` into a run's folder; the report's path.

    Reads ``metrics.jsonl`` (one object a step: ``step``, names such as ``eval/accuracy``, totals under ``spent/``) and,
    where they exist, ``config.yaml`` and ``samples.jsonl`` (``step``, ``prompt``, ``response``, perhaps ``reward``).
    Raises ValueError where there are no metrics to show.
    """
    rows = read_metrics(run_dir)
    curves = [curve_of(rows, name) for name in metric_names(rows)]
    config = run_dir / "config.yaml"
    page = page_template("run.html").render(
        title=run_dir.resolve().name,
        groups=_grouped(curves),
        last=[(curve.label, curve.values[-1]) for curve in curves],
        steps=int(rows[-1]["step"]),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        samples=_first_and_last(read_lines(run_dir / "samples.jsonl")),
    )
    write_atomically(run_dir / "report.html", page)
    write_atomically(run_dir / "curve.svg", _main_curve(rows, curves))
    return run_dir / "report.html"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, in order; ValueError where there is none."""
    rows = read_lines(run_dir / "metrics.jsonl")
    if not rows:
        raise ValueError(f"{run_dir / 'metrics.jsonl'} holds no metrics yet: is {run_dir} the folder of a run?")
    if any("step" not in row for row in rows):
        raise ValueError(f"{run_dir / 'metrics.jsonl'} has a row without 'step'")
    return rows


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every metric that is a number in some row, the headline first, in the order of the report's groups."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if name != "step" and _number(value))
    order = list(GROUPS)
    known = {name: order.index(_prefix(name)) if _prefix(name) in order else len(order) for name in names}
    return sorted(names, key=lambda name: (name not in HEADLINES, known[name], name))


def curve_of(rows: Sequence[Mapping[str, Any]], name: str, axis: str = "step") -> Curve:
    """One metric over ``axis``, at the rows that have both; before the first step nothing is spent."""
    placed = [{axis: 0.0, **row} if row["step"] == 0 else row for row in rows]
    kept = [row for row in placed if _number(row.get(name)) and _number(row.get(axis))]
    return Curve(name=name, steps=[float(row[axis]) for row in kept], values=[float(row[name]) for row in kept])


def axis_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What progress is best measured in: what was spent (tokens, environment steps) where it is logged, else steps."""
    return next(name for name in AXES if any(_number(row.get(name)) for row in rows))


def page_template(name: str) -> Any:
    """A page of this package; everything that is put into it is escaped."""
    pages = Environment(loader=PackageLoader("policyopt", "reports"), autoescape=True, undefined=StrictUndefined)
    pages.filters["number"] = lambda value: "–" if value is None else f"{value:.4g}"
    return pages.get_template(name)


def _grouped(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(GROUPS.get(_prefix(curve.name), "Other"), []).append(curve)
    return groups


def _main_curve(rows: Sequence[Mapping[str, Any]], curves: Sequence[Curve]) -> str:
    name, axis = curves[0].name, axis_of(rows)
    curve = curve_of(rows, name, axis)
    return svg(series(curve.steps, curve.values, AXES[axis], curve.label))


def _first_and_last(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A few samples of the first recorded step and of the last: what the run began with and what it learned."""
    steps = list(dict.fromkeys(sample["step"] for sample in samples))
    ends = dict.fromkeys((steps[0], steps[-1])) if steps else {}
    return [sample for step in ends for sample in [s for s in samples if s["step"] == step][:SHOWN_SAMPLES]]


def _prefix(name: str) -> str:
    return name.partition("/")[0]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
