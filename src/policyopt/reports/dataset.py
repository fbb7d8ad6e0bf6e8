"""What `policyopt inspect` shows of a data set."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from policyopt.methods.offline_dataset_metrics import Summary


def table(found: Summary, name: str) -> Table:
    """One line a measure, in words."""
    shown = Table(title=name)
    shown.add_column("measure")
    shown.add_column("value", justify="right")
    spread = [found.returns.quantile(q).item() for q in (0.0, 0.5, 1.0) if len(found.returns)]
    rows = {
        "rows": f"{found.rows}",
        "complete episodes, of all": f"{len(found.returns)} of {found.episodes}",
        "steps an episode, mean": f"{float(found.lengths.double().mean()):.1f}",
        "return, mean": f"{float(found.returns.mean()):.3f}",
        "return, least / median / greatest": " / ".join(f"{q:.3f}" for q in spread),
        "positive-sided variance of returns": f"{found.positive_variance:.4g}",
        "share of zero rewards": f"{found.zero_rewards:.3f}",
        "different states": f"{found.states}",
        "different state-action pairs": f"{found.pairs}",
        "trajectory quality TQ (0 random, 1 best)": _number(found.quality, "give --random-return and --best-return"),
        "coverage SACo": _number(found.coverage, "give --reference"),
        "log coverage lSACo": _number(found.log_coverage, "give --reference"),
    }
    for measure, value in rows.items():
        shown.add_row(measure, value)
    return shown


def _number(value: float, otherwise: str) -> str:
    return otherwise if math.isnan(value) else f"{value:.4f}"


def figure(found: Summary, path: Path) -> Path:
    """A histogram of the episodes' returns, as SVG."""
    with matplotlib.rc_context({"svg.hashsalt": "policyopt"}):
        drawn = Figure(figsize=(5.0, 3.0), layout="constrained")
        axes = drawn.subplots()
        axes.hist(found.returns.numpy(), bins=40, color="tab:blue")
        axes.axvline(float(found.returns.mean()), color="black", linewidth=1.0, label="mean")
        axes.set(xlabel="return of an episode", ylabel="episodes")
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, metadata={"Date": None})
    return path
