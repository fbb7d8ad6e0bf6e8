"""Intervals against Student's formula, scipy's bootstrap, limits and measured coverage; curves against hand numbers."""

import numpy as np
import pytest
from scipy import stats

from policyopt.reports.statistics import (
    area_under_curve,
    bootstrap_band,
    bootstrap_interval,
    interquartile_mean,
    on_common_axis,
)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_give_students_interval(seeds):
    values = np.random.default_rng(seeds).normal(size=seeds)
    interval = bootstrap_interval(values)
    low, high = stats.t.interval(0.95, seeds - 1, loc=values.mean(), scale=stats.sem(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() + (low - values.mean()), abs=0.03 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.03 * (high - low))


def test_many_seeds_give_the_plain_percentile_bootstrap():
    values = np.random.default_rng(0).exponential(size=400)
    ours = bootstrap_interval(values, level=0.9)
    theirs = stats.bootstrap((values,), np.mean, confidence_level=0.9, method="percentile").confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_few_seeds_widen_the_plain_percentile_bootstrap_by_hesterbergs_factor():
    values = np.random.default_rng(1).normal(size=10)
    ours = bootstrap_interval(values)
    reach = stats.t.ppf(0.975, 9) * np.sqrt(10 / 9)
    level = 1 - 2 * stats.norm.sf(reach)
    theirs = stats.bootstrap((values,), np.mean, confidence_level=level, method="percentile").confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)


@pytest.mark.parametrize("seeds", [3, 6, 12])
def test_coverage_of_normal_seeds_is_what_it_says(seeds):
    runs = np.random.default_rng(seeds).normal(loc=1.0, size=(seeds, 1500))
    _, low, high = bootstrap_band(runs, resamples=999)
    covered = ((low <= 1.0) & (high >= 1.0)).mean()
    assert 0.92 < covered < 0.97


def test_seeds_that_agree_have_no_width_and_one_seed_has_no_bounds():
    same = bootstrap_interval([0.3] * 8)
    assert same.low == pytest.approx(0.3, abs=1e-12)
    assert same.high == pytest.approx(0.3, abs=1e-12)
    alone = bootstrap_interval([0.3])
    assert (alone.estimate, alone.low, alone.high) == (0.3, -np.inf, np.inf)
    assert str(alone) == "0.3"


def test_intervals_repeat_and_scale_with_the_data():
    values = np.random.default_rng(2).normal(size=7)
    once = bootstrap_interval(values)
    assert bootstrap_interval(values) == once
    assert np.allclose(bootstrap_interval(10 * values + 3), 10 * np.array(once) + 3)


def test_no_seeds_is_an_error():
    with pytest.raises(ValueError, match="at least one seed"):
        bootstrap_interval([])


def test_interquartile_mean_drops_a_quarter_at_either_end():
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 5.0, 6.0]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([1.0, 2.0, 6.0]) == pytest.approx(3.0)
    assert bootstrap_interval([0.0] * 7 + [1e9], interquartile_mean).estimate == 0.0


def test_curves_meet_on_the_range_that_all_cover():
    x, y = on_common_axis([([0, 10, 20], [0, 10, 20]), ([5, 15], [1, 3])])
    assert x.tolist() == [5, 10, 15]
    assert y.tolist() == [[5, 10, 15], [1, 2, 3]]
    x, y = on_common_axis([(np.arange(1000), np.arange(1000) * 2.0)], points=11)
    assert len(x) == 11
    assert np.allclose(y[0], 2 * x)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ([([0, 1], [0, 1]), ([2, 3], [0, 1])], "no stretch"),
        ([([0, 1], [0, 1, 2])], "as many y as x"),
        ([([5, 4, 6], [0, 1, 2])], "totals so far"),
    ],
)
def test_curves_that_cannot_be_compared_are_errors(curves, message):
    with pytest.raises(ValueError, match=message):
        on_common_axis(curves)


def test_area_under_the_curve_is_the_mean_height():
    assert area_under_curve([0, 1, 3], [0, 2, 2]) == pytest.approx((1 + 4) / 3)
    assert area_under_curve([10, 30], [0.4, 0.4]) == pytest.approx(0.4)
    assert area_under_curve([7], [0.25]) == 0.25
