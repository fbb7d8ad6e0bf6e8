"""What a study is: a paper's central claim as an experiment, run over seeds and decided by gates.

A study module ``policyopt.studies.<slug with _ for ->`` defines ``claim = Claim(…)``. Its arms are the runs to compare,
its gates the questions asked of their results; ``run`` does the rest: workers, journal, verdict, table, JSON, figure.

    claim = Claim(
        slug="bnpo", paper="2506.02864",
        text="Rewards normalized by a fitted Beta distribution beat GRPO's at the same number of tokens.",
        arms={"bnpo": bnpo, "grpo": grpo},                    # (seed, smoke) -> {"accuracy": 0.71, "curve/x": […], …}
        gates=(paired_difference("accuracy", "bnpo", "grpo", above=0.0),),
        seeds=range(6), budget="2M generated tokens an arm and seed",
        tuning="learning rate of every arm settled on seeds 100 and 101, three tries an arm",
    )
"""

from __future__ import annotations

import ast
import hashlib
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from policyopt.reports.figures import arm_points, learning_curves, save_svg
from policyopt.reports.files import write_json
from policyopt.reports.provenance import PACKAGE, provenance
from policyopt.reports.statistics import bootstrap_interval
from policyopt.studies.gates import (
    Effect,
    Gate,
    Metrics,
    Results,
    decide,
    every_seed,
    lower_bound,
    paired_difference,
    paired_log_ratio,
    scalar,
    unknown,
    upper_bound,
)
from policyopt.studies.workers import Arm, Journal, Outcome, Task, execute

__all__ = [
    "Arm",
    "Claim",
    "Effect",
    "Gate",
    "Metrics",
    "Result",
    "Results",
    "Verdict",
    "decide",
    "every_seed",
    "fingerprint",
    "lower_bound",
    "paired_difference",
    "paired_log_ratio",
    "run",
    "upper_bound",
    "verdict_of",
]

Verdict: TypeAlias = Literal["reproduced", "not reproduced", "inconclusive"]

SMOKE_SEEDS = 2
SHOWN_METRICS = 3


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A paper's central claim as an experiment.

    paper: arXiv id; arms: name -> run, module-level functions or frozen dataclass instances, so that they reach worker
    processes; seeds: all that are scored, none is dropped; budget: what an arm and seed may spend, in words;
    tuning: how the hyperparameters were settled: on which seeds (not among the scored ones), how many tries an arm;
    figure: results -> figure, in place of the default (learning curves where arms return ``curve/<name>`` lists with
    ``curve/x`` in units of ``axis``, else the seeds of every arm for the gates' metrics).
    """

    slug: str
    text: str
    paper: str
    arms: Mapping[str, Arm]
    gates: tuple[Gate, ...]
    seeds: Sequence[int]
    budget: str
    tuning: str
    figure: Callable[[Results], Figure] | None = None
    axis: str = "learner steps"

    def __post_init__(self) -> None:
        if not any(gate.required for gate in self.gates):
            raise ValueError(f"the claim {self.slug!r} has no required gate: nothing could be decided")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"the claim {self.slug!r} needs distinct seeds, got {list(self.seeds)}")
        for gate in self.gates:
            for arm in gate.arms:
                if arm not in self.arms:
                    raise unknown("arm", arm, self.arms, f"gate {gate.name!r} of the claim {self.slug!r}")


def verdict_of(claim: Claim, effects: Sequence[Effect], errors: Mapping[Task, str]) -> Verdict:
    """What the required gates say together.

    "inconclusive" where a run failed, whatever the others say; else "not reproduced" where an interval of some required
    gate excludes its threshold on the wrong side; else "reproduced" where all required gates pass; else "inconclusive":
    some interval contains its threshold.
    """
    answers = [effect.passed for gate, effect in zip(claim.gates, effects, strict=True) if gate.required]
    if errors:
        return "inconclusive"
    if False in answers:
        return "not reproduced"
    return "reproduced" if all(answers) else "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What ``run`` found. ``verdict`` is None for a smoke run; ``errors`` has the message of every run that failed."""

    claim: Claim
    results: Results
    effects: tuple[Effect, ...]
    errors: Mapping[Task, str]
    verdict: Verdict | None
    seeds: tuple[int, ...]
    seconds: float
    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """The JSON object of ``results/<slug>.json``."""
        claim, gates = self.claim, [_gate_record(*pair) for pair in zip(self.claim.gates, self.effects, strict=True)]
        first = next(gate for gate in gates if gate["required"])
        made: dict[str, Any] = {
            "slug": claim.slug,
            "claim": claim.text,
            "paper": claim.paper,
            "verdict": self.verdict,
            "effect": {key: first[key] for key in ("estimate", "low", "high", "level")},
            "gates": gates,
            "errors": [{"arm": arm, "seed": seed, "message": text} for (arm, seed), text in self.errors.items()],
            "seeds": list(self.seeds),
            "budget": claim.budget,
            "tuning": claim.tuning,
            "seconds": round(self.seconds, 2),
            **provenance(),
            "arms": {arm: {str(seed): m for seed, m in runs.items()} for arm, runs in self.results.arms.items()},
        }
        return made

    def print(self, console: Console | None = None) -> None:
        """A table of arms and metrics with intervals over seeds, the gates, the verdict."""
        console = console or Console()
        console.print(_metric_table(self), _gate_table(self))
        for (arm, seed), message in self.errors.items():
            console.print(f"{arm}, seed {seed} failed: {message}", style="red", markup=False)
        said = "smoke run: no verdict" if self.verdict is None else self.verdict
        console.print(f"{self.claim.slug}: {said}   ({self.seconds:.0f} s of runs, {self.path})", markup=False)


def run(
    claim: Claim,
    seeds: Sequence[int] | None = None,
    smoke: bool = False,
    jobs: int = 1,
    out: Path = Path("results"),
    progress: bool = True,
) -> Result:
    """Run every arm on every seed, hold the gates against the results, write ``<out>/<slug>.json`` and ``.svg``.

    Runs go to ``jobs`` worker processes. Each finished one is appended to ``<out>/<slug>.partial.jsonl`` at once, and a
    killed study goes on where it stopped, as long as the sources and the arms' settings are the same. A run that fails
    is listed under ``errors`` and the others go on; the next call tries it again. Smoke runs use the first two seeds,
    write under ``<out>/smoke`` and give no verdict. Raises ValueError where an arm doesn't report a gate's metric.
    """
    chosen = tuple(seeds if seeds is not None else claim.seeds[:SMOKE_SEEDS] if smoke else claim.seeds)
    _check(claim, chosen, jobs)
    folder = out / "smoke" if smoke else out
    journal = Journal(path=folder / f"{claim.slug}.partial.jsonl", fingerprint=fingerprint(claim, smoke))
    finished = journal.read()
    wanted = [(arm, seed) for seed in chosen for arm in claim.arms]
    tasks = [task for task in wanted if task not in finished]
    with _progress(progress) as bar:
        shown = bar.add_task(claim.slug, total=len(wanted), completed=len(wanted) - len(tasks))
        for task, outcome in execute(claim.arms, tasks, smoke, jobs):
            finished[task] = outcome
            if outcome.metrics is None:
                bar.console.print(f"{task[0]}, seed {task[1]} failed:\n{outcome.trace}", style="red", markup=False)
            else:
                journal.append(task, outcome)
                _check_metrics(claim, task, outcome.metrics)
            bar.advance(shown)
    result = _judge(claim, chosen, finished, smoke, folder / f"{claim.slug}.json")
    write_json(result.path, result.record)
    if not result.errors:
        journal.drop(wanted)
    save_svg((claim.figure or default_figure(claim))(result.results), result.path.with_suffix(".svg"))
    result.print()
    return result


def fingerprint(claim: Claim, smoke: bool) -> str:
    """A hash of what a run's numbers depend on: the arms' settings, and every source that arms or study import."""
    modules = (sys.modules[arm.__module__] for arm in claim.arms.values())
    files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    made = hashlib.sha256(f"{claim.slug} {smoke}".encode())
    for name, arm in claim.arms.items():
        made.update(re.sub(r" at 0x[0-9a-f]+", "", f"{name}={arm!r}").encode())
    for source in sorted(_sources(files | {PACKAGE / "studies" / f"{claim.slug.replace('-', '_')}.py"})):
        made.update(source.read_bytes())
    return made.hexdigest()[:16]


def _sources(files: Iterable[Path]) -> set[Path]:
    """The files that exist, and the files of this package that they import, directly or not."""
    found: set[Path] = set()
    unread = [file for file in files if file.exists()]
    while unread:
        file = unread.pop()
        if file not in found:
            found.add(file)
            places = [PACKAGE.parent.joinpath(*name.split(".")) for name in _imports(file)]
            unread += [path for place in places if (path := place.with_suffix(".py")).exists()]
    return found


def _imports(file: Path) -> Iterator[str]:
    """Names of this package that a source file imports; a name may turn out to be no module."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE.name))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE.name):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def default_figure(claim: Claim) -> Callable[[Results], Figure]:
    """Learning curves where the arms return them, else the seeds of every arm for each metric that a gate reads."""

    def draw(results: Results) -> Figure:
        curves = {
            arm: next((key for key in logged if key.startswith("curve/") and key != "curve/x"), "")
            for arm, runs in results.arms.items()
            if (logged := next(iter(runs.values()), {})) and "curve/x" in logged
        }
        if drawn := {arm: key.removeprefix("curve/") for arm, key in curves.items() if key}:
            name = next(iter(drawn.values()))
            same = {arm: results.curves(name, arm) for arm in drawn if drawn[arm] == name}
            return learning_curves(same, xlabel=claim.axis, ylabel=name)
        thresholds = {gate.metric: gate.threshold for gate in claim.gates if gate.threshold is not None}
        metrics = dict.fromkeys(gate.metric for gate in claim.gates if gate.metric)
        points = {metric: {arm: _known(results, metric, arm) for arm in results.arms} for metric in metrics}
        return arm_points(points, thresholds)

    return draw


def _known(results: Results, metric: str, arm: str) -> list[float]:
    """A metric over the seeds that report it: an arm may lack a metric that no gate asks of it."""
    found = [metrics.get(metric) for metrics in results.of(arm).values()]
    return [float(value) for value in found if isinstance(value, float)]


def _check(claim: Claim, seeds: Sequence[int], jobs: int) -> None:
    if not seeds or len(set(seeds)) != len(seeds) or jobs < 1:
        raise ValueError(f"a study needs distinct seeds and at least one job, got seeds {list(seeds)} and {jobs} jobs")
    for name, arm in claim.arms.items():
        try:
            pickle.dumps(arm)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"the arm {name!r} of {claim.slug!r} cannot be sent to a worker process ({error}): "
                "make it a module-level function or a frozen dataclass"
            ) from error


def _check_metrics(claim: Claim, task: Task, metrics: Metrics) -> None:
    for gate in claim.gates:
        if gate.metric and task[0] in gate.arms:
            scalar(metrics, gate.metric, f"gate {gate.name!r}: {task[0]}, seed {task[1]}")


def _judge(claim: Claim, seeds: tuple[int, ...], finished: Mapping[Task, Outcome], smoke: bool, path: Path) -> Result:
    wanted = {(arm, seed): finished[arm, seed] for arm in claim.arms for seed in seeds}
    arms: dict[str, dict[int, Metrics]] = {arm: {} for arm in claim.arms}
    for (arm, seed), outcome in wanted.items():
        if outcome.metrics is not None:
            arms[arm][seed] = outcome.metrics
    errors = {task: outcome.message for task, outcome in wanted.items() if outcome.metrics is None}
    results = Results(arms=arms)
    effects = tuple(gate.test(results) for gate in claim.gates)
    return Result(
        claim=claim,
        results=results,
        effects=effects,
        errors=errors,
        verdict=None if smoke else verdict_of(claim, effects, errors),
        seeds=seeds,
        seconds=sum(outcome.seconds for outcome in wanted.values()),
        path=path,
    )


def _gate_record(gate: Gate, effect: Effect) -> dict[str, Any]:
    asked = {"name": gate.name, "text": gate.text, "required": gate.required, "passed": effect.passed}
    found = {key: getattr(effect, key) for key in ("estimate", "low", "high", "level", "note")}
    return asked | found


def _metric_table(result: Result) -> Table:
    """A line an arm, a column a metric: those that gates read, then others while there is room."""
    arms = result.results.arms
    asked = list(dict.fromkeys(gate.metric for gate in result.claim.gates if gate.metric))
    reported = sorted({name for runs in arms.values() for metrics in runs.values() for name in metrics} - set(asked))
    rest = [name for name in reported if any(_known(result.results, name, arm) for arm in arms)]
    shown = asked + rest[: max(0, SHOWN_METRICS - len(asked))]
    table = Table("arm", *map(escape, shown), title=f"mean over {len(result.seeds)} seeds [95% interval]")
    for arm in arms:
        columns = [_known(result.results, name, arm) for name in shown]
        table.add_row(escape(arm), *(str(bootstrap_interval(column)) if column else "–" for column in columns))
    return table


def _gate_table(result: Result) -> Table:
    table = Table("gate", "estimate [interval]", "level", "answer")
    for gate, effect in zip(result.claim.gates, result.effects, strict=True):
        answer = {True: "[green]pass", False: "[red]fail", None: "[yellow]undecided"}[effect.passed]
        shown = escape(f"{effect.estimate:.3g} [{effect.low:.3g}, {effect.high:.3g}]")
        needed = "" if gate.required else " (reported only)"
        table.add_row(escape(gate.name), shown, f"{effect.level:.0%}", f"{answer}[/]{needed} {escape(effect.note)}")
    return table


def _progress(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
