"""DQN on logged choices, with double Q-learning, and its relatives BC, CQL, BCQ and CRR (arXiv 1509.06461).

    critic: mean over rows of Huber(Q(s, a) − r − γ (1 − d) Q̄(s', argmax over allowed a' of Q(s', a')))

``bc``: cross-entropy of the data's choice alone. ``cql``: the critic and 0.1 · mean (logsumexp_a Q(s, a) − Q(s, a_data)).
``bcq``: allowed are choices whose probability under an imitation is at least 0.3 of the most probable one's. ``crr``:
cross-entropy weighted by 1[Q(s, a) > mean of Q over 4 choices of π]; the target's choice is drawn from π's slow copy. These
are the discrete methods whose success arXiv 2111.04714 relates to measures of the data, with its networks and rates.
Targets follow by 1% each update, where its authors copy every 100 updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from policyopt.learners.acting import Acting, Agent
from policyopt.learners.off_policy import OffPolicy, Round, Update, polyak
from policyopt.learners.update import Adam
from policyopt.models.choices import Choices
from policyopt.types import Loss, Transitions

FAMILY = "baselines"
VARIANTS = ("bc", "cql", "bcq", "crr")
ADAM = Adam(learning_rate=1e-4, gradient_clip=None)


def allowed(logits: Tensor, threshold: float) -> Tensor:
    """[N, A]: choices whose probability is at least ``threshold`` of the most probable one's, which always is one."""
    relative = (logits - logits.amax(-1, keepdim=True)).exp()
    return relative >= threshold


def best(values: Tensor, among: Tensor | None = None) -> Tensor:
    """The choice [N] of the highest value [N, A] among those that are True."""
    return (values if among is None else values.masked_fill(~among, -torch.inf)).argmax(-1)


def of(values: Tensor, action: Tensor) -> Tensor:
    """The values [N] of choices [N] out of [N, A]."""
    return values.gather(-1, action[:, None]).squeeze(-1)


def improves(value: Tensor, others: Tensor) -> Tensor:
    """CRR's weight: 1 where a value [N] is above the mean of others [N, M], 0 elsewhere and where they are equal."""
    return (value > others.mean(-1)).float()


def drawn(logits: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """``count`` choices [N, count] from the softmax of [N, A]."""
    return torch.multinomial(logits.softmax(-1), count, replacement=True, generator=rng)


@dataclass(frozen=True, kw_only=True)
class DoubleQ(Update):
    """Values of choices; ``conservatism`` is the weight of CQL's term, ``threshold`` that of BCQ's restriction."""

    trains: ClassVar[str] = "critic"
    optimizer: Adam = ADAM
    model: Choices = Choices()
    gamma: float = 0.99
    polyak: float = 0.01
    conservatism: float = 0.0
    threshold: float | None = None

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        sizes = problem.spaces.observation, problem.spaces.action
        return {
            "critic": self.model.build(*sizes, seed),
            "target": self.model.build(*sizes, seed).requires_grad_(False),
        }

    def next_action(self, agent: Agent, observation: Tensor, rng: torch.Generator) -> Tensor:
        """What would be done next, [N]."""
        among = None if self.threshold is None else allowed(agent["actor"](observation), self.threshold)
        return best(agent["critic"](observation), among)

    @torch.no_grad()
    def target(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Tensor:
        following = batch.next_observation
        values = of(agent["target"](following), self.next_action(agent, following, rng))
        return batch.reward + self.gamma * (~batch.terminated) * values

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        values = agent["critic"](batch.observation)
        logged = of(values, batch.action)
        loss = functional.smooth_l1_loss(logged, self.target(agent, batch, rng))
        if self.conservatism:
            loss = loss + self.conservatism * (values.logsumexp(-1) - logged).mean()
        return Loss(loss, {"loss/value": loss.detach(), "value/mean": logged.detach().mean()})

    def finish(self, agent: Agent) -> None:
        polyak(agent["target"], agent["critic"], self.polyak)


@dataclass(frozen=True, kw_only=True)
class SampledQ(DoubleQ):
    """The target's choice is drawn from the actor's slow copy."""

    def next_action(self, agent: Agent, observation: Tensor, rng: torch.Generator) -> Tensor:
        return drawn(agent["actor_target"](observation), 1, rng)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Imitation(Update):
    """The actor towards the data's choices; ``penalty`` on squared logits."""

    trains: ClassVar[str] = "actor"
    optimizer: Adam = ADAM
    model: Choices = Choices()
    penalty: float = 0.0

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"actor": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    def weights(self, agent: Agent, batch: Transitions, logits: Tensor, rng: torch.Generator) -> Tensor | float:
        """How much each row counts, [N]."""
        return 1.0

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        logits = agent["actor"](batch.observation)
        surprise = -of(logits.log_softmax(-1), batch.action)
        loss = (
            self.weights(agent, batch, logits.detach(), rng) * surprise
        ).mean() + self.penalty * logits.square().mean()
        return Loss(loss, {"loss/imitation": loss.detach()})


@dataclass(frozen=True, kw_only=True)
class ImprovingImitation(Imitation):
    """Of choices that are better than those that the actor draws."""

    samples: int = 4
    polyak: float = 0.01

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        made = super().modules(problem, seed)
        return {**made, "actor_target": super().modules(problem, seed)["actor"].requires_grad_(False)}

    @torch.no_grad()
    def weights(self, agent: Agent, batch: Transitions, logits: Tensor, rng: torch.Generator) -> Tensor:
        values = agent["critic"](batch.observation)
        return improves(of(values, batch.action), values.gather(-1, drawn(logits, self.samples, rng)))

    def finish(self, agent: Agent) -> None:
        polyak(agent["actor_target"], agent["actor"], self.polyak)


class ChoicePolicy:
    """Acts by values, among the choices that are allowed, or by the actor: a sample of it, where greedy its mode."""

    def __init__(self, agent: Agent, threshold: float | None, by_values: bool) -> None:
        self.agent, self.threshold, self.by_values = agent, threshold, by_values

    @torch.no_grad()
    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Choices [N] for observations [N, S]."""
        if self.by_values:
            among = None if self.threshold is None else allowed(self.agent["actor"](observation), self.threshold)
            return best(self.agent["critic"](observation), among), {}, memory
        logits = self.agent["actor"](observation)
        return (logits.argmax(-1) if greedy else drawn(logits, 1, rng)[:, 0]), {}, memory


@dataclass(frozen=True, kw_only=True)
class Choosing(Acting):
    """By values, among choices that are allowed where a ``threshold`` says which, or by the actor."""

    discrete: ClassVar[bool] = True
    by_values: bool = True
    threshold: float | None = None

    def policy(self, agent: Agent) -> Any:
        return ChoicePolicy(agent, self.threshold, self.by_values)


def of_updates(*updates: Update, acting: Choosing | None = None) -> OffPolicy:
    return OffPolicy(rounds=(Round(updates=updates),), acting=acting or Choosing(), collector=None, batch=128)


def method() -> OffPolicy:
    return of_updates(DoubleQ())


def bc() -> OffPolicy:
    return of_updates(Imitation(), acting=Choosing(by_values=False))


def cql() -> OffPolicy:
    return of_updates(DoubleQ(conservatism=0.1))


def bcq() -> OffPolicy:
    return of_updates(Imitation(penalty=0.01), DoubleQ(threshold=0.3), acting=Choosing(threshold=0.3))


def crr() -> OffPolicy:
    return of_updates(SampledQ(), ImprovingImitation(), acting=Choosing(by_values=False))
