"""On-policy learning where the policy moves on the whole batch, in a way of its own, and the critic follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from policyopt.learners.on_policy import OnPolicyLearner, minibatches
from policyopt.types import Rollouts


@torch.no_grad()
def assign(parameters: Sequence[Tensor], values: Tensor) -> None:
    """Copies values [P] into the parameters, in their order."""
    for parameter, piece in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(piece.view_as(parameter))


class WholeBatchLearner(OnPolicyLearner):
    """Collect, move the policy, then ``epochs`` passes of the critic in ``minibatches`` pieces each."""

    def step(self) -> dict[str, Tensor | float]:
        collected = self.method.collector(self.policy, self.problem, self.clock, self.memories.get("collector"))
        batch = self._credited(collected.batches["rollouts"])
        metrics = {**collected.metrics, **self._policy_step(batch)}
        for epoch in range(self.method.epochs if self.critic is not None else 0):
            order = self.clock.generator(f"minibatches-{epoch}")
            for pieces in minibatches({"rollouts": batch}, self.method.minibatches, order):
                assert self.critic is not None
                metrics |= self.critic.update(pieces["rollouts"], self.clock, self.limit)
        self.clock.advance(metrics, self.budget)
        return metrics

    def _policy_step(self, batch: Rollouts) -> dict[str, Tensor | float]:
        """Moves the policy. Raises NonFinite, weights untouched, where that would not be finite."""
        raise NotImplementedError
