"""Figures: the same bytes twice, everything that is drawn is finite and labelled."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from policyopt.reports.figures import arm_points, learning_curves, save_svg, series, svg

CURVES = {
    "grpo": [(np.arange(5), np.arange(5) / 5), (np.arange(5), np.arange(5) / 4)],
    "rloo": [(np.arange(4), np.ones(4))],
}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: learning_curves(CURVES, "generated tokens", "accuracy"),
        lambda: arm_points(
            {"accuracy": {"grpo": [0.1, 0.2, 0.4], "rloo": [0.3]}, "cost": {"grpo": [1.0]}}, {"cost": 2}
        ),
        lambda: series(list(range(1000)), [1.0] * 1000, "learner steps", "loss/policy"),
    ],
)
def test_the_same_figure_is_the_same_bytes_and_valid_xml(draw, tmp_path):
    save_svg(draw(), tmp_path / "figure.svg")
    once = (tmp_path / "figure.svg").read_text()
    assert svg(draw()) == once
    assert ET.fromstring(once).tag.endswith("svg")
    assert "<dc:date>" not in once


def test_a_band_of_few_seeds_does_not_flatten_the_curves():
    low, high = learning_curves(CURVES, "x", "y").axes[0].get_ylim()
    assert low > -0.2
    assert high < 1.2


def test_the_mean_line_is_the_mean_and_the_legend_is_outside():
    figure: Figure = learning_curves(CURVES, "generated tokens", "accuracy")
    axes = figure.axes[0]
    mean = next(line for line in axes.get_lines() if line.get_label() == "grpo (2 seeds)")
    assert np.allclose(mean.get_ydata(), np.arange(5) * (1 / 5 + 1 / 4) / 2)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("generated tokens", "accuracy")
    assert axes.get_legend() is None
    assert len(figure.legends) == 1
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(axes.get_window_extent())


def test_arms_without_finite_numbers_are_left_empty():
    axes = arm_points({"regret": {"a": [1.0, 2.0], "b": [float("nan")], "c": []}}).axes[0]
    drawn = [point for points in axes.collections for point in points.get_offsets().tolist()]
    assert [1.0, -0.12] in drawn
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c"]


def test_long_series_are_averaged():
    line = series(list(range(4000)), [float(step % 2) for step in range(4000)], "steps", "y").axes[0].get_lines()[0]
    assert len(line.get_ydata()) == 400
    assert np.allclose(line.get_ydata(), 0.5)
