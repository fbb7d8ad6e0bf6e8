"""PRDC: the policy is pulled to the action of the nearest state-action pair of the whole data set (arXiv 2306.06569).

    a* = the action of argmin over (ŝ, â) in the data of ‖(β s, π(s)) − (β ŝ, â)‖
    actor: −(α / mean |Q_1(s, π(s))|) · mean Q_1(s, π(s)) + mean over rows and dimensions of (π(s) − a*)²

TD3+BC otherwise. Near a bad action of this state there may be a good one of a state close by: large β is TD3+BC, β = 0
forgets the state. The paper writes the distance; the squared error of the action alone, as in the authors' code, is used
here, and no gradient goes through the search. α = 2.5 and β = 2 suit hopper and walker2d; ``halfcheetah``: α = 40;
``antmaze``: α = β = 7.5 and rewards of 10000 r − 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.learners.acting import network
from policyopt.learners.data import ScaledReward
from policyopt.learners.off_policy import OffPolicy
from policyopt.methods import td3_bc
from policyopt.models.neighbours import NearestPairs
from policyopt.objectives.behaviour import BehaviourRegularizer, BehaviourTarget
from policyopt.types import Transitions

FAMILY = "offline"
VARIANTS = ("halfcheetah", "antmaze")


@dataclass(frozen=True, kw_only=True)
class NearestPair(BehaviourTarget):
    """The action of the data set's pair nearest to (β s, π(s)). Raises ValueError for a negative weight or no neighbour."""

    state_weight: float = 2.0
    neighbour: int = 1

    def __post_init__(self) -> None:
        if self.state_weight < 0.0 or self.neighbour < 1:
            raise ValueError(f"needs state_weight of 0 or more and a neighbour from 1 on, got {self}")

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"neighbours": NearestPairs(self.state_weight, self.neighbour)}

    def prepare(self, agent: nn.ModuleDict, data: Transitions) -> None:
        network(agent, "neighbours", NearestPairs).fit(data.observation, data.action)

    def __call__(
        self, agent: nn.ModuleDict, batch: Transitions, action: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        return agent["neighbours"](batch.observation, action), None


def nearest(value_weight: float = 2.5, state_weight: float = 2.0) -> OffPolicy:
    """TD3 on the data with α and β."""
    return td3_bc.regularized(BehaviourRegularizer(target=NearestPair(state_weight=state_weight)), value_weight)


def method() -> OffPolicy:
    return nearest()


def halfcheetah() -> OffPolicy:
    return nearest(value_weight=40.0)


def antmaze() -> OffPolicy:
    return replace(nearest(value_weight=7.5, state_weight=7.5), rewards=ScaledReward(scale=10_000.0, shift=-1.0))
