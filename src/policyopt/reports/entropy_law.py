"""What a run's performance bought with entropy: the fit R = -a exp(H) + b over its evaluations, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from policyopt.methods.cov_entropy import EntropyLaw, entropy_law
from policyopt.reports.figures import fitted_points, save_svg
from policyopt.reports.run import read_metrics

SCORES = ("eval/accuracy", "eval/return")


def entropy_and_score(folder: Path) -> tuple[list[float], list[float]]:
    """(entropies in nats a token, scores) of the run's evaluations. The entropy is that of the step that was evaluated.

    Raises ValueError where the run has no entropy or no score.
    """
    rows = read_metrics(folder)
    score = next((name for name in SCORES if any(name in row for row in rows)), None)
    found = (
        [(row["policy/entropy"], row[score]) for row in rows if score in row and "policy/entropy" in row]
        if score
        else []
    )
    if len(found) < 3:
        raise ValueError(
            f"{folder} has {len(found)} evaluations with policy/entropy and {' or '.join(SCORES)}; the law needs three"
        )
    entropy, value = zip(*found, strict=True)
    return list(entropy), list(value)


def write_entropy_law(folders: Sequence[Path], out: Path) -> tuple[Table, dict[str, EntropyLaw]]:
    """The fit of every run; writes the figure to ``out``."""
    points = {folder.resolve().name: entropy_and_score(folder) for folder in folders}
    laws = {name: entropy_law(*pair) for name, pair in points.items()}
    save_svg(_figure(points, laws), out)
    table = Table("run", "a", "b", "ceiling b - a", "R²", title="R = -a exp(H) + b")
    for name, law in laws.items():
        table.add_row(name, *(f"{value:.4g}" for value in law))
    return table, laws


def _figure(points: Mapping[str, tuple[list[float], list[float]]], laws: Mapping[str, EntropyLaw]) -> Figure:
    lines = {}
    for name, (entropy, _) in points.items():
        x = np.linspace(0.0, max(entropy), 64)
        lines[name] = (x, -laws[name].a * np.exp(x) + laws[name].b)
    return fitted_points(points, lines, "policy entropy (nats a token)", "score")
