"""The studies of trees: the area under a curve up to a point, and the correlations of advantages."""

from __future__ import annotations

import pytest
import torch

from policyopt.studies.spo import correlation
from policyopt.studies.treepo import area_until


def test_the_area_is_the_mean_height_up_to_the_point() -> None:
    curve = ([0.0, 2.0, 4.0], [0.0, 1.0, 1.0])
    assert area_until(curve, 4.0) == pytest.approx(0.75)
    assert area_until(curve, 2.0) == pytest.approx(0.5)
    assert area_until(curve, 1.0) == pytest.approx(0.25)
    assert area_until(curve, 3.0) == pytest.approx(2 / 3)
    assert area_until(curve, 9.0) == pytest.approx(0.75), "no further than the curve"


def test_correlation_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(x, 2 * x + 5) == pytest.approx(1.0)
    assert correlation(x, torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)
