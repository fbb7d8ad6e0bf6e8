"""Flow BC: behaviour cloning with a flow policy, which keeps every mode of the demonstrations (arXiv 2209.03003).

    min E ‖v(s, (1 − t) x₀ + t a, t) − (a − x₀)‖²,   x₀ ~ N(0, I), t ~ U(0, 1);   actions by 10 Euler steps from noise

The base policy of methods that improve on a generative policy without training it by reinforcement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from policyopt.learners.acting import Acting, Agent, network
from policyopt.learners.off_policy import OffPolicy, Round, Update
from policyopt.learners.update import Adam
from policyopt.models.diffusion import Flow, FlowPolicy
from policyopt.types import Loss, Transitions

FAMILY = "baselines"


@dataclass(frozen=True, kw_only=True)
class Imitate(Update):
    """The flow towards the remembered actions."""

    trains: ClassVar[str] = "flow"
    model: Flow = Flow()

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"flow": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        flow = network(agent, "flow", FlowPolicy)
        loss = flow.imitation_error(batch.observation, batch.action, rng).mean()
        return Loss(loss, {"loss/imitation": loss.detach()})


@dataclass(frozen=True, kw_only=True)
class FlowActing(Acting):
    """The flow acts by itself."""

    def policy(self, agent: Agent) -> nn.Module:
        return agent["flow"]


def method() -> OffPolicy:
    return cloning(Flow())


def cloning(flow: Flow) -> OffPolicy:
    """Clones the problem's demonstrations into this flow, offline."""
    update = Imitate(model=flow, optimizer=Adam(learning_rate=1e-3, gradient_clip=None))
    return OffPolicy(rounds=(Round(updates=(update,)),), acting=FlowActing(), collector=None)
