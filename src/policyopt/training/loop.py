"""The one loop: progress, log, evaluation, checkpoints, resume, stopping. No method has another around its ``step``."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from policyopt.learners.compiled import compile_updates
from policyopt.learners.update import NonFinite
from policyopt.rollouts.evaluate import act_for
from policyopt.training.checkpoint import Checkpoints, save, to_device
from policyopt.training.log import JsonLines, Tracker, numbers, read_rows
from policyopt.types import Budget, Learner, Prompt, generator

SHOWN = ("eval/accuracy", "eval/return", "eval/preference_accuracy", "reward/mean", "loss/policy", "policy/entropy")


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often, as numbers over the whole budget: evaluations (also before the first step and after the last),
    checkpoints (also after the last step)."""

    evaluations: int = 20
    checkpoints: int = 10


@dataclass
class Run:
    """What a run gave: the rows of its log, its learner, its folder (None where nothing was written)."""

    rows: list[dict[str, float]]
    learner: Learner
    folder: Path | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)

    def curve(self, metric: str, against: str = "step") -> tuple[list[float], list[float]]:
        """(x, y) of the rows that have ``metric``."""
        rows = [row for row in self.rows if metric in row]
        return [row[against] for row in rows], [row[metric] for row in rows]

    def last(self, metric: str) -> float:
        return self.curve(metric)[1][-1]


def run(
    method: Any,
    problem: Any,
    policy: Any = None,
    *,
    budget: Budget,
    seed: int,
    out: Path | None = None,
    resume: bool = False,
    cadence: Cadence = Cadence(),
    trackers: Sequence[Tracker] = (),
    progress: bool = False,
    compiled: bool = False,
) -> Run:
    """Train until the budget is spent.

    compiled: updates as compiled code, where that can be done (``learners.compiled``).
    out: the run folder, created where it does not exist; None keeps everything in memory. With ``resume`` it goes on from
    the newest good checkpoint in it. Raises NonFinite when a loss or gradient is not finite, after writing a checkpoint of
    the state at hand; Ctrl-C finishes the step in progress, leaves a checkpoint and raises KeyboardInterrupt.
    """
    learner = method.learner(problem, policy, seed=seed, budget=budget)
    if compiled:
        compile_updates(learner)
    loop = _Loop(learner, problem, budget, seed, out, cadence, list(trackers))
    if resume:
        loop.resume()
    with _bar(progress) as bar:
        loop.go(bar)
    return Run(loop.rows, learner, out, loop.samples)


def _bar(visible: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    return Progress(*columns, disable=not visible, console=Console(stderr=True))


class _Loop:
    def __init__(
        self,
        learner: Learner,
        problem: Any,
        budget: Budget,
        seed: int,
        out: Path | None,
        cadence: Cadence,
        trackers: list[Tracker],
    ) -> None:
        self.learner, self.problem, self.budget, self.seed = learner, problem, budget, seed
        self.cadence, self.out = cadence, out
        self.rows: list[dict[str, float]] = []
        self.samples: list[dict[str, Any]] = []
        self.best = float("-inf")
        self.saved_step = -1
        self.trackers = trackers
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        self.checkpoints = None if out is None else Checkpoints(out / "checkpoints")
        self.metrics = None if out is None else JsonLines(out / "metrics.jsonl")
        self.sample_log = None if out is None else JsonLines(out / "samples.jsonl")
        if self.metrics is not None:
            self.trackers.append(self.metrics)

    def resume(self) -> None:
        """Go on from the newest good checkpoint; without one, start anew in the same folder."""
        assert self.checkpoints is not None and self.metrics is not None and self.sample_log is not None
        state = self.checkpoints.latest()
        step = -1
        if state is not None:
            self.learner.load_state_dict(to_device(state["learner"], getattr(self.learner.policy, "device", "cpu")))
            self.best, self.rows = state["best"] if state["best"] is not None else float("-inf"), []
            step = self.learner.clock.step
            self.learner.clock.share = self.budget.share(self.learner.clock.spent)  # of this run's budget
        self.metrics.truncate(step)
        self.sample_log.truncate(step)
        if self.metrics.path.exists():
            self.rows = read_rows(self.metrics.path)
        self.saved_step = step

    def go(self, bar: Progress) -> None:
        clock = self.learner.clock
        clock.start()
        task = bar.add_task("training", total=1.0, numbers="")
        if not self.rows:
            self._log(clock.step, self._evaluate())
        interrupt = _Interrupt()
        try:
            while clock.share < 1.0 and not interrupt.asked:
                before, started = clock.share, time.perf_counter()
                row = numbers(self.learner.step())
                row["time/step"] = time.perf_counter() - started
                row |= {f"spent/{unit}": amount for unit, amount in clock.spent.items() if unit in Budget.UNITS}
                if _crossed(before, clock.share, self.cadence.evaluations):
                    row |= self._evaluate()
                self._log(clock.step, row)
                if _crossed(before, clock.share, self.cadence.checkpoints):
                    self._checkpoint()
                bar.update(task, completed=min(clock.share, 1.0), numbers=self._headline())
            if interrupt.asked:
                self._checkpoint()
                raise KeyboardInterrupt(f"stopped after step {clock.step}; policyopt train --resume goes on from there")
        except NonFinite:
            self._keep_failed()
            raise
        finally:
            interrupt.restore()
            for tracker in self.trackers:
                tracker.close()

    def _log(self, step: int, row: dict[str, float]) -> None:
        self.rows.append({"step": step, **row})
        for tracker in self.trackers:
            tracker.write(step, row)

    def _headline(self) -> str:
        latest: dict[str, float] = {}
        for row in self.rows[-50:]:
            latest |= {name: row[name] for name in SHOWN if row.get(name) is not None}
        return "  ".join(f"{name} {value:.3f}" for name, value in list(latest.items())[:3])

    def _evaluate(self) -> dict[str, float]:
        step, policy = self.learner.clock.step, self.learner.policy
        started = time.perf_counter()
        rng = generator(self.seed, "evaluate", step, getattr(policy, "device", "cpu"))
        act = act_for(policy, self.problem, rng)
        remembering = _Remembering(act) if hasattr(policy, "extend") else None
        with torch.no_grad():
            row = numbers({**self.problem.evaluate(remembering or act, rng), **self._held_out()})
        if remembering is not None:
            self._keep_samples(step, remembering.seen)
        score = next((row[name] for name in SHOWN if name in row), None)
        if score is not None and score > self.best:
            self.best = score
            if self.checkpoints is not None and step > 0:
                self.checkpoints.save_best(self._state())
        return {**row, "time/evaluation": time.perf_counter() - started}

    def _held_out(self) -> Mapping[str, Any]:
        """What the learner itself says of held-out data, where it has something to say (preference accuracy, …)."""
        evaluate = getattr(self.learner, "evaluate", None)
        return {} if evaluate is None else evaluate()

    def _keep_samples(self, step: int, seen: list[tuple[Prompt, str]]) -> None:
        kept = [{"prompt": str(prompt), "response": text} for prompt, text in seen]
        self.samples += [{"step": step, **sample} for sample in kept]
        if self.sample_log is not None:
            for sample in kept:
                self.sample_log.write(step, sample)

    def _state(self) -> dict[str, Any]:
        best = None if self.best == float("-inf") else self.best
        return {"learner": self.learner.state_dict(), "best": best}

    def _checkpoint(self) -> None:
        step = self.learner.clock.step
        if self.checkpoints is not None and step != self.saved_step and self.checkpoints.save(step, self._state()):
            self.saved_step = step

    def _keep_failed(self) -> None:
        """The state in the middle of a step, to be looked at; a resume goes on from the last step boundary."""
        if self.out is not None:
            with suppress(OSError):
                save(self._state(), self.out / "checkpoints" / "failed")


class _Interrupt:
    """Ctrl-C ends training after the step in progress (checkpoints fall on step boundaries); a second one at once."""

    def __init__(self) -> None:
        self.asked = False
        main = threading.current_thread() is threading.main_thread()
        self.former = signal.signal(signal.SIGINT, self._ask) if main else None

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def restore(self) -> None:
        if self.former is not None:
            signal.signal(signal.SIGINT, self.former)


class _Remembering:
    """Hands on to ``act`` and keeps a few of the responses, to be looked at."""

    KEPT = 4

    def __init__(self, act: Callable[..., list[list[str]]]) -> None:
        self.act, self.seen = act, list[tuple[Prompt, str]]()

    def __call__(self, prompts: list[Prompt], samples: int, greedy: bool) -> list[list[str]]:
        answers = self.act(prompts, samples, greedy)
        if len(self.seen) < self.KEPT:
            self.seen += [(p, texts[0]) for p, texts in zip(prompts, answers, strict=True)][: self.KEPT]
        return answers


def _crossed(before: float, after: float, count: int) -> bool:
    """Whether the share of the budget passed one of ``count`` equidistant marks, the last one at 1."""
    return int(before * count) < int(min(after, 1.0) * count)
