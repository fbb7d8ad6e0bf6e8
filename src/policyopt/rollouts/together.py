"""Several collectors in one step: the rollouts of one, and beside them the batches of others under names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policyopt.types import Clock, Collected, Collector


@dataclass(frozen=True, kw_only=True)
class Together(Collector):
    """What ``main`` collects, and what each of ``others`` does, as the batch of its name (see ``OnPolicy.objectives``).

    Costs add up; of all else that is logged under one name the main collector's number counts.
    """

    main: Collector
    others: Mapping[str, Collector] = field(default_factory=dict, hash=False)

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        made = self.main(policy, problem, clock)
        batches, metrics = dict(made.batches), dict(made.metrics)
        for name, collector in self.others.items():
            other = collector(policy, problem, clock)
            batches[name] = other.batches["rollouts"]
            costs = {key: metrics.get(key, 0.0) + n for key, n in other.metrics.items() if key.startswith("cost/")}
            metrics = {**other.metrics, **metrics, **costs}
        return Collected(batches, metrics)

    def held_out(self, policy: Any, problem: Any) -> Any:
        return self.main.held_out(policy, problem)
