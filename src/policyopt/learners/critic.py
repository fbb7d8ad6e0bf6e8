"""The critic: a value network trained beside the policy, shared by every method that needs values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.learners.update import Adam, divided, mean_metrics, minibatches
from policyopt.objectives.policy_gradient import TokenMean
from policyopt.objectives.value import clipped_value_loss, explained_variance
from policyopt.types import Clock, Part, Rollouts


@dataclass(frozen=True, kw_only=True)
class Critic(Part):
    """A value network of the policy's own shape, trained apart from it with its own optimizer.

    epochs, minibatches: None takes the policy's; there are never more minibatches than rows. clip: PPO's value clip around
    the values at collection (None: plain squared error). ``start`` is what it starts from in the place of the policy's
    weights: a reward model, or the critic of a finished stage. It learns from the collected batch of the name ``batch``,
    which may be missing in a step; one that is not the "rollouts" is given its ``returns`` by ``credit``.
    """

    gives: ClassVar[tuple[str, ...]] = ("value", "next_value")
    optimizer: Adam = Adam()
    clip: float | None = None
    start: Any = field(default=None, repr=False)
    epochs: int | None = None
    minibatches: int | None = None
    batch: str = "rollouts"
    credit: tuple[Credit, ...] = ()

    def build(self, policy: Any, seed: int) -> LiveCritic:
        model = (policy if self.start is None else self.start).critic(seed)
        return LiveCritic(self, model, getattr(policy, "default_learning_rate", lambda: 1e-3)())


def shared(batch: Rollouts) -> Rollouts:
    """With each active step's share of the mean over them."""
    return batch.replace(share=TokenMean()(batch))


class LiveCritic:
    """The critic at work: its network and optimizer."""

    def __init__(self, settings: Critic, model: Any, learning_rate: float) -> None:
        self.settings, self.model = settings, model
        self.optimizer = settings.optimizer.build(model.parameters(), learning_rate)

    def critic(self, seed: int) -> Any:
        """A value network of its own with the present weights."""
        return deepcopy(self.model)

    def annotate(self, batch: Rollouts, limit: int) -> Rollouts:
        """Adds ``value`` and ``next_value`` [N, T]: the critic knows what state follows a step."""
        value, next_value = self.model.values(batch, limit)
        return batch.replace(value=value, next_value=next_value)

    def train(
        self, batches: Mapping[str, Rollouts], epochs: int, pieces: int, clock: Clock, limit: int
    ) -> dict[str, Tensor | float]:
        """All updates on what a step collected; ``epochs`` and ``pieces`` (minibatches) are the policy's."""
        settings = self.settings
        if settings.batch not in batches:
            return {}
        batch = batches[settings.batch]
        if batch.value is None:
            batch = self.annotate(batch, limit)
        for credit in settings.credit:
            batch = credit(batch)
        count = min(settings.minibatches or pieces, len(batch))
        updates = [
            self.update(piece["rollouts"], clock, limit)
            for epoch in range(settings.epochs or epochs)
            for piece in minibatches({"rollouts": batch}, count, clock.generator(f"minibatches-{epoch}"))
        ]
        return self.summary(updates, batch)

    def summary(self, updates: Sequence[Mapping[str, Tensor | float]], batch: Rollouts) -> dict[str, Tensor | float]:
        """What is logged of the updates on what a step collected."""
        explained = explained_variance(batch.value[batch.mask], batch.returns[batch.mask])
        return {**mean_metrics(updates), "value/explained_variance": explained}

    def update(self, batch: Rollouts, clock: Clock, limit: int) -> dict[str, Tensor | float]:
        """One optimizer step of the squared error to ``returns``, as a mean over the active steps of the minibatch."""
        batch = shared(batch)
        total = torch.zeros((), device=batch.share.device)
        for micro in divided(batch, self.model.micro_batches(batch, limit)):
            loss = self.loss(micro)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimizer.step(total, clock)
        return {"loss/value": total}

    def loss(self, batch: Rollouts) -> Tensor:
        """Σ share · squared error to ``returns`` of a micro-batch."""
        error = clipped_value_loss(self.fitted(batch), batch.returns, batch.value, self.settings.clip)
        error = error.mean(-1) if error.dim() > batch.share.dim() else error  # a value for each objective
        return (batch.share * error).sum()

    def fitted(self, batch: Rollouts) -> Tensor:
        """What is fitted to the returns, [N, T] or [N, T, K], with gradient."""
        values: Tensor = self.model.evaluate(batch, ("value",)).value
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
