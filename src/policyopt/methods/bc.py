"""BC: behaviour cloning, the data set's actions by regression (Pomerleau, 1991).

loss = mean over rows and dimensions of (π(s) − a)²;   ``gaussian``: −mean log π(a | s), deviation trained as well
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from policyopt.learners.acting import Agent, Exploring
from policyopt.learners.off_policy import OffPolicy, Round, Update
from policyopt.models.bounded_actors import Bounded, BoundedGaussian, GaussianInBox
from policyopt.objectives.behaviour import behaviour_distance
from policyopt.types import Loss, Transitions

FAMILY = "baselines"
VARIANTS = ("gaussian",)


@dataclass(frozen=True, kw_only=True)
class Cloning(Update):
    """The actor towards the remembered actions."""

    trains: ClassVar[str] = "actor"
    model: Bounded = Bounded()

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"actor": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        actor = agent["actor"]
        if isinstance(actor, BoundedGaussian):
            loss = -actor.logp(batch.observation, batch.action).mean()
        else:
            loss = behaviour_distance(actor(batch.observation), batch.action)
        return Loss(loss, {"loss/imitation": loss.detach()})


def method() -> OffPolicy:
    return OffPolicy(rounds=(Round(updates=(Cloning(),)),), acting=Exploring(noise=0.0), collector=None)


def gaussian() -> OffPolicy:
    return OffPolicy(rounds=(Round(updates=(Cloning(model=GaussianInBox()),)),), collector=None)
