"""The log of a run: one JSON object a step, and trackers that are given the same rows."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Tracker(Protocol):
    """A sink for rows of numbers."""

    def write(self, step: int, row: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """``metrics.jsonl``. Rows that can't be written (disk full) are kept in memory and tried again with the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: list[str] = []

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        # NaN and infinities are not JSON: they are written as null
        clean = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        self.pending.append(json.dumps({"step": step, **clean}) + "\n")
        self.close()

    def close(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.writelines(self.pending)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)  # a full disk may have taken half a row
            warnings.warn(
                f"{self.path} could not be written ({error}); {len(self.pending)} rows are kept", stacklevel=3
            )
        else:
            self.pending.clear()

    def truncate(self, step: int) -> None:
        """Drop what was logged after ``step`` (and a line cut in half): a resumed run writes it again."""
        if not self.path.exists():
            return
        rows = [row for row in read_rows(self.path) if row["step"] <= step]
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        aside.replace(self.path)


class TensorBoard:
    """TensorBoard event files (extra ``trackers``)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard is not installed: pip install 'policyopt[trackers]'") from error
        self.writer = SummaryWriter(str(folder))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line that was cut in half is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def numbers(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Tensors are read here, once a step, and nowhere before."""
    return {name: float(value) for name, value in metrics.items()}
