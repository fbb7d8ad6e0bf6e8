"""Gates: the questions that a study asks of its results, and what an interval over seeds answers.

``paired_difference`` and ``paired_log_ratio`` compare two arms seed by seed, ``lower_bound`` and ``upper_bound`` hold
one arm against a number, ``every_seed`` asks a predicate of every run. Any other question is a ``Gate`` with its own
``test``, for which ``decide`` turns one number a seed into an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from policyopt.reports.statistics import Array, bootstrap_interval

Metrics: TypeAlias = Mapping[str, float | list[float]]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The metrics of every finished run, ``arms[arm][seed][metric]``, each arm's seeds in the order of the study."""

    arms: Mapping[str, Mapping[int, Metrics]]

    def values(self, metric: str, arm: str) -> Array:
        """A scalar metric of one arm over its seeds, [S]."""
        return np.array([scalar(metrics, metric, f"{arm}, seed {seed}") for seed, metrics in self.of(arm).items()])

    def pairs(self, metric: str, method: str, baseline: str) -> tuple[Array, Array]:
        """A scalar metric of two arms over the seeds that both finished, [S] and [S]."""
        a, b = self.of(method), self.of(baseline)
        shared = Results(arms={method: {s: a[s] for s in a if s in b}, baseline: {s: b[s] for s in a if s in b}})
        return shared.values(metric, method), shared.values(metric, baseline)

    def curves(self, name: str, arm: str) -> list[tuple[ArrayLike, ArrayLike]]:
        """Each seed's learning curve ``curve/<name>`` over ``curve/x``."""
        return [(_entry(m, "curve/x", arm), _entry(m, f"curve/{name}", arm)) for m in self.of(arm).values()]

    def of(self, arm: str) -> Mapping[int, Metrics]:
        """One arm's metrics by seed."""
        if arm not in self.arms:
            raise unknown("arm", arm, self.arms, "this study")
        return self.arms[arm]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A gate's answer: an estimate over seeds, its interval at ``level``, and what the interval decides.

    passed: True where the whole interval lies on the gate's side of its threshold, False where all of it lies on the
    other (decided against), None where it contains the threshold or nothing finite could be computed (undecided).
    """

    estimate: float
    low: float
    high: float
    level: float
    passed: bool | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One question asked of the results. A gate that isn't ``required`` is reported and does not touch the verdict.

    ``metric`` and ``arms`` are what ``test`` reads: the arms are checked before the work starts, the metric as soon as
    one of them has run. ``threshold`` is drawn in the figure: for a gate whose threshold is on the metric's scale.
    """

    name: str
    text: str
    test: Callable[[Results], Effect]
    required: bool = True
    metric: str = ""
    arms: tuple[str, ...] = ()
    threshold: float | None = None


def paired_difference(
    metric: str,
    method: str,
    baseline: str,
    *,
    above: float | None = None,
    below: float | None = None,
    level: float = 0.95,
    required: bool = True,
) -> Gate:
    """The mean over seeds of (method − baseline), runs paired by seed, lies ``above`` (or ``below``) a threshold."""
    return Gate(
        name=f"{metric}: {method} − {baseline} {_side(above, below)}",
        text=f"mean paired difference of {metric}, {method} minus {baseline}, {_side(above, below)}",
        test=lambda results: decide(
            np.subtract(*results.pairs(metric, method, baseline)), above=above, below=below, level=level
        ),
        required=required,
        metric=metric,
        arms=(method, baseline),
    )


def paired_log_ratio(
    metric: str,
    method: str,
    baseline: str,
    *,
    above: float | None = None,
    below: float | None = None,
    level: float = 0.95,
    required: bool = True,
) -> Gate:
    """The geometric mean over seeds of method / baseline lies ``above`` (or ``below``) a ratio; metrics are positive.

    Computed as the mean of log ratios; threshold, estimate and interval are given as ratios (1 = no difference).
    """

    def test(results: Results) -> Effect:
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.divide(*results.pairs(metric, method, baseline)))
        limits = {side: math.log(ratio) for side, ratio in (("above", above), ("below", below)) if ratio is not None}
        effect = decide(logs, **limits, level=level)
        with np.errstate(over="ignore"):
            estimate, low, high = (float(np.exp(end)) for end in (effect.estimate, effect.low, effect.high))
        return replace(effect, estimate=estimate, low=low, high=high)

    return Gate(
        name=f"{metric}: {method} / {baseline} {_side(above, below)}",
        text=f"geometric mean of the paired ratio of {metric}, {method} over {baseline}, {_side(above, below)}",
        test=test,
        required=required,
        metric=metric,
        arms=(method, baseline),
    )


def lower_bound(metric: str, arm: str, *, above: float, level: float = 0.95, required: bool = True) -> Gate:
    """The mean over seeds of one arm's metric lies above ``above``."""
    return _bound(metric, arm, above=above, level=level, required=required)


def upper_bound(metric: str, arm: str, *, below: float, level: float = 0.95, required: bool = True) -> Gate:
    """The mean over seeds of one arm's metric lies below ``below``."""
    return _bound(metric, arm, below=below, level=level, required=required)


def every_seed(metric: str, arm: str, predicate: Callable[[float], bool], text: str, *, required: bool = True) -> Gate:
    """``predicate`` holds for the metric in every seed; ``text`` says so. The estimate is the share of such seeds."""

    def test(results: Results) -> Effect:
        values = results.values(metric, arm)
        kept = [bool(predicate(value)) for value in values]
        broken = ", ".join(f"{value:g}" for value, holds in zip(values, kept, strict=True) if not holds)
        share = float(np.mean(kept)) if kept else math.nan
        note = f"broken by {broken}" if broken else ""
        return Effect(estimate=share, low=share, high=share, level=1.0, passed=all(kept) if kept else None, note=note)

    return Gate(
        name=f"{metric}: {arm}, every seed", text=text, test=test, required=required, metric=metric, arms=(arm,)
    )


def decide(values: Array, *, above: float | None = None, below: float | None = None, level: float = 0.95) -> Effect:
    """The mean of ``values`` [S], one number a seed, with its bootstrap interval, held against one threshold."""
    limit = _limit(above, below)
    if not values.size or not np.isfinite(values).all():
        note = f"{np.isfinite(values).sum()} of {values.size} seeds gave a finite number"
        return Effect(estimate=math.nan, low=math.nan, high=math.nan, level=level, passed=None, note=note)
    estimate, low, high = bootstrap_interval(values, level=level)
    higher, lower = low > limit, high < limit
    passed = (higher if above is not None else lower) if higher or lower else None
    note = "one seed decides nothing" if values.size == 1 else ""
    return Effect(estimate=estimate, low=low, high=high, level=level, passed=passed, note=note)


def _bound(
    metric: str, arm: str, *, above: float | None = None, below: float | None = None, level: float, required: bool
) -> Gate:
    return Gate(
        name=f"{metric}: {arm} {_side(above, below)}",
        text=f"mean of {metric} of {arm} {_side(above, below)}",
        test=lambda results: decide(results.values(metric, arm), above=above, below=below, level=level),
        required=required,
        metric=metric,
        arms=(arm,),
        threshold=_limit(above, below),
    )


def _side(above: float | None, below: float | None) -> str:
    return f"{'>' if above is not None else '<'} {_limit(above, below):g}"


def _limit(above: float | None, below: float | None) -> float:
    if above is not None and below is None:
        return above
    if below is not None and above is None:
        return below
    raise ValueError(f"a gate needs exactly one of above and below, got above={above}, below={below}")


def _entry(metrics: Metrics, name: str, where: str) -> Any:
    if name not in metrics:
        raise unknown("metric", name, metrics, where)
    return metrics[name]


def scalar(metrics: Metrics, name: str, where: str) -> float:
    """One number of one run; ValueError where the metric is missing or a list."""
    value = _entry(metrics, name, where)
    if isinstance(value, list):
        raise ValueError(f"the metric {name!r} of {where} is a list; a gate reads one number a run")
    return float(value)


def unknown(kind: str, name: str, valid: Mapping[str, Any], where: str) -> ValueError:
    """The error for a name that isn't there, with the nearest one that is."""
    near = get_close_matches(name, valid, n=1, cutoff=0.0)
    hint = f"did you mean {near[0]!r}? There are {', '.join(valid)}" if near else "there are none"
    return ValueError(f"unknown {kind} {name!r} in {where}: {hint}")
