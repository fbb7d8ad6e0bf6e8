"""Measuring two libraries beside each other: a fresh process for every measurement, arms in alternating order."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias, TypeVar

from rich.console import Console

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """seconds of each counted step; peak in bytes above the loaded model."""

    seconds: tuple[float, ...]
    peak: int


Arms: TypeAlias = dict[str, list[Measured]]
M = TypeVar("M", bound=Measured)


class Meter:
    """Times of step ends by ``clock``, and the peak of memory since it was made."""

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        import torch

        self.clock = clock
        self.cuda = torch.cuda if device == "cuda" else None
        self.ends: list[float] = []
        if self.cuda is not None:
            self.cuda.reset_peak_memory_stats()
            self.loaded = self.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self.loaded = _resident("VmRSS")

    def stamp(self) -> None:
        if self.cuda is not None:
            self.cuda.synchronize()
        self.ends.append(self.clock())

    def measured(self, steps: int) -> Measured:
        peak = _resident("VmHWM") if self.cuda is None else self.cuda.max_memory_allocated()
        between = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return Measured(seconds=tuple(between[-steps:]), peak=int(peak - self.loaded))


def _resident(field: str) -> int:
    """Bytes of this process in /proc/self/status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _serve(task: Callable[[Any], Any], setting: Any, sender: Connection) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output belongs to the table and the JSON
    sender.send(task(setting))


def apart(task: Callable[[Any], Any], setting: Any, patience: float | None = None) -> Any:
    """task(setting) in a fresh process; None where it takes longer than ``patience`` seconds. Raises RuntimeError when
    the process fails."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(task, setting, sender), daemon=True)
    process.start()
    sender.close()
    try:
        given = receiver.recv() if receiver.poll(patience) else None
    except EOFError as error:
        raise RuntimeError(f"the measurement of {setting} failed") from error
    if given is None:
        process.kill()
    process.join()
    return given


def alternate(task: Callable[[Any], M], settings: Mapping[str, Any], repeats: int) -> dict[str, list[M]]:
    """All repeats of all arms; the order turns round from one repeat to the next."""
    arms: dict[str, list[M]] = {arm: [] for arm in settings}
    for repeat in range(repeats):
        for arm in settings if repeat % 2 == 0 else reversed(settings):
            note(f"{arm}, repeat {repeat + 1} of {repeats}")
            arms[arm].append(apart(task, settings[arm]))
    return arms


def note(text: str) -> None:
    """To standard error."""
    Console(stderr=True).print(text, style="dim", highlight=False)


def step_seconds(measured: Sequence[Measured]) -> float:
    return median(second for one in measured for second in one.seconds)


def peak(measured: Sequence[Measured]) -> float:
    return median(one.peak for one in measured)


def plain_trainer(device: str) -> dict[str, Any]:
    """Arguments of a `transformers` trainer that does nothing but train: a constant rate, fused AdamW, no logging or saving."""
    return {
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "fp16": False,
        "use_cpu": device == "cpu",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "seed": 0,
    }
