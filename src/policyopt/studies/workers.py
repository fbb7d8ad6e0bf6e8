"""Worker processes for a study's runs, and the journal that keeps each finished run."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from policyopt.reports.files import read_lines, write_atomically
from policyopt.studies.gates import Metrics

Arm: TypeAlias = Callable[[int, bool], Metrics]  # (seed, smoke) -> the metrics of one run
Task: TypeAlias = tuple[str, int]  # (arm, seed)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One finished run: its metrics, or the message and traceback of what stopped it."""

    metrics: Metrics | None = None
    seconds: float = 0.0
    message: str = ""
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class Journal:
    """The finished runs of a study that is under way, one JSON line each, with the fingerprint of what made them."""

    path: Path
    fingerprint: str

    def read(self) -> dict[Task, Outcome]:
        """The runs that this very study finished; lines of other settings, or cut off by a kill, are taken out."""
        lines = [line for line in read_lines(self.path) if line["fingerprint"] == self.fingerprint]
        self._write(lines)
        return {(x["arm"], x["seed"]): Outcome(metrics=x["metrics"], seconds=x["seconds"]) for x in lines}

    def append(self, task: Task, outcome: Outcome) -> None:
        """One finished run, on disk when this returns."""
        line = {"fingerprint": self.fingerprint, "arm": task[0], "seed": task[1]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"metrics": outcome.metrics, "seconds": outcome.seconds}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def drop(self, tasks: Sequence[Task]) -> None:
        """Take out runs that stand in a result; the file goes with the last."""
        self._write([line for line in read_lines(self.path) if (line["arm"], line["seed"]) not in tasks])

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if lines:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        else:
            self.path.unlink(missing_ok=True)


def execute(arms: Mapping[str, Arm], tasks: Sequence[Task], smoke: bool, jobs: int) -> Iterator[tuple[Task, Outcome]]:
    """Outcomes in the order in which runs finish. A pool for each job: a worker that dies takes no other along."""
    threads = max(1, torch.get_num_threads() // jobs)
    idle = [_worker(threads) for _ in range(min(jobs, len(tasks)))]
    waiting, running = list(tasks), dict[Future[Outcome], tuple[Task, ProcessPoolExecutor]]()
    try:
        while waiting or running:
            while waiting and idle:
                task, pool = waiting.pop(0), idle.pop()
                running[pool.submit(_measure, arms[task[0]], task[1], smoke)] = (task, pool)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, pool = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    outcome = Outcome(message="the worker process died", trace="it was killed, or ran out of memory")
                    pool = _worker(threads)
                idle.append(pool)
                yield task, outcome
    finally:
        for pool in [*idle, *(pool for _, pool in running.values())]:
            pool.shutdown(wait=not running, cancel_futures=True)


def _worker(threads: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin_worker, initargs=(threads,))


def _begin_worker(threads: int) -> None:
    """A worker outlives a parent that was killed unless it watches for that itself."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(arm: Arm, seed: int, smoke: bool) -> Outcome:
    """One run, in a worker. Exceptions become text here: not every exception survives the way back."""
    began = time.perf_counter()
    try:
        metrics = {name: _plain(value) for name, value in arm(seed, smoke).items()}
    except (Exception, SystemExit) as error:
        spent = time.perf_counter() - began
        return Outcome(message=f"{type(error).__name__}: {error}", trace=traceback.format_exc(), seconds=spent)
    return Outcome(metrics=metrics, seconds=time.perf_counter() - began)


def _plain(value: Any) -> float | list[float]:
    """Python numbers, so that what is written and read again is what was measured."""
    return float(value) if np.ndim(value) == 0 else [float(each) for each in value]
