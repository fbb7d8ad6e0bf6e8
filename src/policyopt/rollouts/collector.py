"""What a collector is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from policyopt.types import Clock, Part


@dataclass
class Collected:
    """Named batches of experience (``rollouts``, ``demonstrations``, …), and numbers for the log with what was spent."""

    batches: dict[str, Any]
    metrics: dict[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Collector(Part):
    """Gathers experience: how the policy meets the problem."""

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        raise NotImplementedError
