"""The off-policy learner: act, remember, and update on batches drawn from memory. Soft actor-critic is its default.

An agent is a set of named networks. A method lists updates, each of which makes the networks that it trains, says its
loss on a batch of transitions, and has its own optimizer; a round is a sequence of updates on one batch, repeated with
fresh ones. Without a collector nothing is gathered: the learner works on the problem's data, offline.

Soft actor-critic: arXiv 1812.05905; the deterministic actor and its smoothed target: arXiv 1802.09477. An update of
another method is a subclass with another loss; one that only aims elsewhere overrides ``next_action`` or ``action``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policyopt.learners.acting import Acting, Agent, network
from policyopt.learners.data import Sampling, ScaledReward, Standardize, StandardizedPolicy
from policyopt.learners.update import Adam
from policyopt.models.bounded_actors import Bounded
from policyopt.models.q_functions import QEnsemble, QFunctions
from policyopt.models.soft_actor import SoftActor, TanhGaussian
from policyopt.objectives.behaviour import BehaviourRegularizer, value_scale
from policyopt.rollouts.replay import Interaction, Replay
from policyopt.rollouts.transitions import checked
from policyopt.types import Budget, Clock, Loss, Part, Transitions, generator


def soft_target(
    reward: Tensor, terminated: Tensor, values: Tensor, logp: Tensor, temperature: Tensor | float, gamma: float
) -> Tensor:
    """r + γ (1 − d) (min over heads of the values [K, N] − α log π) [N]; reward, terminated, log π are [N]."""
    return reward + gamma * (~terminated) * (values.amin(0) - temperature * logp)


def regression(values: Tensor, target: Tensor) -> Tensor:
    """½ Σ over heads of the mean squared difference: values [K, N] to a target [N], or to one for each head [K, N]."""
    return 0.5 * (values - target).square().mean(-1).sum()


def soft_policy_loss(values: Tensor, logp: Tensor, temperature: Tensor) -> Tensor:
    """The mean of α log π − the least value: values [K, N] and log π [N] of actions that carry a gradient."""
    return (temperature * logp - values.amin(0)).mean()


def temperature_loss(log_temperature: Tensor, logp: Tensor, target_entropy: float) -> Tensor:
    """−log α · mean(log π + target): α falls while the entropy is above its target, and rises below it."""
    return -log_temperature * (logp + target_entropy).mean()


def smoothed(action: Tensor, noise: Tensor, clip: float) -> Tensor:
    """Actions [N, A] plus noise [N, A] clipped to ±clip, kept in the box."""
    return (action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target ← target + rate · (source − target), in place."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


@dataclass(frozen=True, kw_only=True)
class Update(Part):
    """One optimizer step on one network of the agent, the one that ``trains`` names, on each ``every``-th batch."""

    trains: ClassVar[str]
    optimizer: Adam = Adam(learning_rate=3e-4, gradient_clip=None)
    every: int = 1

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        """The networks that this update adds to the agent, with weights drawn from ``seed``."""
        raise NotImplementedError

    def prepare(self, agent: Agent, data: Transitions) -> None:
        """Offline: what it takes from the whole data set, once."""

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        """What to minimise on a batch [N]; only the trained network receives the gradient."""
        raise NotImplementedError

    def finish(self, agent: Agent) -> None:
        """After all updates on a batch: where a target network follows."""


@dataclass(frozen=True, kw_only=True)
class Critic(Update):
    """Twin Q-functions towards a target under their slowly following copy."""

    trains: ClassVar[str] = "critic"
    model: QFunctions = QFunctions()
    gamma: float = 0.99
    polyak: float = 0.005

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0 or not 0.0 < self.polyak <= 1.0:
            raise ValueError(f"gamma and polyak are shares, from 0 to 1, got {self.gamma:g} and {self.polyak:g}")

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        sizes = problem.spaces.observation, problem.spaces.action
        target = self.model.build(*sizes, seed).requires_grad_(False)
        return {"critic": self.model.build(*sizes, seed), "target": target}

    def target(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Tensor:
        """What the values should be, [N], without gradient."""
        raise NotImplementedError

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        values = agent["critic"](batch.observation, batch.action)
        loss = regression(values, self.target(agent, batch, rng))
        return Loss(loss, {"loss/value": loss.detach(), "value/mean": values.detach().mean()})

    def finish(self, agent: Agent) -> None:
        polyak(agent["target"], agent["critic"], self.polyak)


@dataclass(frozen=True, kw_only=True)
class SoftCritic(Critic):
    """Towards the soft target of the policy's next action."""

    def next_action(self, agent: Agent, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the policy would do next: actions [N, A] and their log-probabilities [N]."""
        action, logp = network(agent, "actor", SoftActor).sample(observation, rng)
        return action, logp

    @torch.no_grad()
    def target(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Tensor:
        """What the values should be, [N]."""
        action, logp = self.next_action(agent, batch.next_observation, rng)
        values = agent["target"](batch.next_observation, action)
        return soft_target(batch.reward, batch.terminated, values, logp, agent["temperature"](), self.gamma)


@dataclass(frozen=True, kw_only=True)
class SmoothedCritic(Critic):
    """Towards the value of the target actor's next action with clipped noise; the target follows with the actor's."""

    noise: float = 0.2
    clip: float = 0.5

    def next_action(self, agent: Agent, observation: Tensor, rng: torch.Generator) -> Tensor:
        """The target actor's actions [N, A], smoothed."""
        action: Tensor = agent["actor_target"](observation)
        return smoothed(action, self.noise * torch.randn(action.shape, generator=rng), self.clip)

    @torch.no_grad()
    def target(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Tensor:
        action = self.next_action(agent, batch.next_observation, rng)
        values = agent["target"](batch.next_observation, action)
        return batch.reward + self.gamma * (~batch.terminated) * values.amin(0)

    def finish(self, agent: Agent) -> None:
        """Nothing: ``DeterministicPolicy`` moves both targets."""


@dataclass(frozen=True, kw_only=True)
class SoftPolicy(Update):
    """The tanh-Gaussian actor towards high values and entropy; ``critic`` names the network that judges its actions."""

    trains: ClassVar[str] = "actor"
    model: TanhGaussian = TanhGaussian()
    critic: str = "critic"

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"actor": self.model.build(problem.spaces.observation, problem.spaces.action, seed)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        action, logp = network(agent, "actor", SoftActor).sample(batch.observation, rng)
        values = agent[self.critic](batch.observation, action)
        temperature = network(agent, "temperature", LogTemperature)
        loss = soft_policy_loss(values, logp, temperature().detach())
        temperature.drawn = logp.detach()
        return Loss(loss, {"loss/policy": loss.detach(), "policy/entropy": -logp.detach().mean()})

    def finish(self, agent: Agent) -> None:
        network(agent, "temperature", LogTemperature).drawn = None


@dataclass(frozen=True, kw_only=True)
class DeterministicPolicy(Update):
    """The actor towards high values of the first Q-function, on every second batch; both targets follow then.

    ``value_weight`` divides the values by their mean size: −(weight / mean |Q|) · mean Q; None takes −mean Q. A
    ``regularizer`` keeps the actor near the data. Raises ValueError for a weight that isn't positive.
    """

    trains: ClassVar[str] = "actor"
    model: Bounded = Bounded()
    every: int = 2
    polyak: float = 0.005
    value_weight: float | None = None
    regularizer: BehaviourRegularizer | None = None

    def __post_init__(self) -> None:
        if self.value_weight is not None and not self.value_weight > 0.0:
            raise ValueError(f"value_weight must be positive, got {self.value_weight:g}")

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        sizes = problem.spaces.observation, problem.spaces.action
        actor, target = self.model.build(*sizes, seed), self.model.build(*sizes, seed).requires_grad_(False)
        others = {} if self.regularizer is None else self.regularizer.target.modules(problem, seed)
        return {"actor": actor, "actor_target": target, **others}

    def prepare(self, agent: Agent, data: Transitions) -> None:
        if self.regularizer is not None:
            self.regularizer.target.prepare(agent, data)

    def action(self, agent: Agent, observation: Tensor) -> Tensor:
        """What the actor would do, [N, A], with gradient."""
        action: Tensor = agent["actor"](observation)
        return action

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        action = self.action(agent, batch.observation)
        values = first_values(agent, batch.observation, action)
        scale = 1.0 if self.value_weight is None else value_scale(values, self.value_weight)
        loss = -(scale * values.mean())
        metrics = {"policy/value": values.detach().mean()}
        if self.regularizer is not None:
            distance = self.regularizer(agent, batch, action, rng)
            loss, metrics["loss/behaviour"] = loss + distance, distance.detach()
        return Loss(loss, {"loss/policy": loss.detach(), **metrics})

    def finish(self, agent: Agent) -> None:
        polyak(agent["actor_target"], agent["actor"], self.polyak)
        polyak(agent["target"], agent["critic"], self.polyak)


def first_values(agent: Agent, observation: Tensor, action: Tensor) -> Tensor:
    """Values [N] of the first Q-function."""
    return network(agent, "critic", QEnsemble).first(observation, action)


class LogTemperature(nn.Module):
    """The temperature α as the exponential of a trained number.

    ``drawn`` [N] are the log-probabilities of what the policy's update has drawn on the present batch, if it has.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))
        self.drawn: Tensor | None = None

    def forward(self) -> Tensor:
        return self.log.exp()


@dataclass(frozen=True, kw_only=True)
class Temperature(Update):
    """The temperature that keeps the policy's entropy at a target; None: minus one for each action dimension.

    The entropy is that of the actions which the policy's update drew on the batch, where it came before, or of fresh ones.
    """

    trains: ClassVar[str] = "temperature"
    initial: float = 1.0
    target_entropy: float | None = None

    def __post_init__(self) -> None:
        if not self.initial > 0.0:
            raise ValueError(f"the initial temperature must be positive, got {self.initial:g}")

    def modules(self, problem: Any, seed: int) -> dict[str, nn.Module]:
        return {"temperature": LogTemperature(self.initial)}

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        actor, temperature = network(agent, "actor", SoftActor), network(agent, "temperature", LogTemperature)
        logp = temperature.drawn
        if logp is None:
            with torch.no_grad():
                _, logp = actor.sample(batch.observation, rng)
        wanted = -float(actor.action_size) if self.target_entropy is None else self.target_entropy
        loss = temperature_loss(temperature.log, logp, wanted)
        return Loss(loss, {"policy/temperature": temperature().detach()})


@dataclass(frozen=True, kw_only=True)
class Round(Part):
    """Updates on one batch, in this order, ``repeat`` times with a fresh batch each."""

    updates: tuple[Update, ...]
    repeat: int = 1

    def __post_init__(self) -> None:
        if not self.updates or self.repeat < 1:
            raise ValueError(f"a round needs at least one update and one repetition, got repeat={self.repeat}")


@dataclass(frozen=True, kw_only=True)
class OffPolicy:
    """A method that learns from remembered transitions.

    Each step collects once, and then goes through the ``rounds`` on batches of ``batch`` transitions, once the
    collector's warm-up is over. Without a collector the memory holds the problem's ``transitions()``, their observations
    standardized and their rewards scaled where ``standardize`` and ``rewards`` say how, drawn uniformly or as ``sampling``
    says. Actions lie in [−1, 1]^A.
    Raises ValueError where two updates train the same network.
    """

    rounds: tuple[Round, ...] = (Round(updates=(SoftCritic(), SoftPolicy(), Temperature())),)
    acting: Acting = Acting()
    collector: Interaction | None = Interaction()
    batch: int = 256
    capacity: int = 1_000_000
    standardize: Standardize | None = None
    rewards: ScaledReward | None = None
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if self.collector is not None and any((self.standardize, self.rewards, self.sampling)):
            raise ValueError(
                "observations and rewards are scaled, and rows weighted, where they are a data set's: that needs "
                "collector=None"
            )
        if idle := [update for update in self.updates() if update.every < 1]:
            raise ValueError(f"every must be a positive number of batches, got {idle[0].every} for {idle[0].trains}")
        if self.batch < 1:
            raise ValueError(f"batch must be a positive number of transitions, got {self.batch}")
        trained = Counter(update.trains for update in self.updates())
        if twice := [name for name, count in trained.items() if count > 1]:
            raise ValueError(f"{trained[twice[0]]} updates train the network {twice[0]!r}: each may be trained by one")

    def updates(self) -> Iterator[Update]:
        return (update for one in self.rounds for update in one.updates)

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> OffPolicyLearner:
        return OffPolicyLearner(self, problem, policy, seed, budget)


class OffPolicyLearner:
    """The live method: agent, optimizers, memory, running environments, clock."""

    def __init__(self, method: OffPolicy, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        spaces = getattr(problem, "spaces", None)
        if spaces is None or spaces.objectives or spaces.discrete != method.acting.discrete:
            kind, such = ("discrete", "four-rooms") if method.acting.discrete else ("continuous", "gym:Pendulum-v1")
            raise ValueError(
                f"{getattr(problem, 'name', problem)!r} does not fit: this method needs a control problem with {kind} actions "
                f"and one reward, such as {such}"
            )
        self.method, self.problem, self.budget = method, problem, budget
        self.clock = Clock(seed=seed)
        self.agent = nn.ModuleDict(method.acting.modules(problem, policy))
        for update in method.updates():
            draw = generator(seed, update.trains)
            self.agent.update(update.modules(problem, int(torch.randint(2**62, (), generator=draw))))
        self.policy = method.acting.policy(self.agent)
        self.running = None if method.collector is None else method.collector.memory()
        self.memory = Replay(method.capacity) if self.running is not None else self._data()
        self.trainable = {k: [p for p in net.parameters() if p.requires_grad] for k, net in self.agent.items()}
        self.optimizers = {u.trains: u.optimizer.build(self.agent[u.trains].parameters()) for u in method.updates()}

    def _data(self) -> Replay:
        """The problem's data as memory; updates and policy are prepared for them."""
        data = checked(self.problem)
        weights = None if self.method.sampling is None else self.method.sampling.probabilities(data)
        if self.method.standardize is not None:
            standardization = self.method.standardize.fit(data.observation)
            data = data.replace(
                observation=standardization(data.observation), next_observation=standardization(data.next_observation)
            )
            self.agent["standardization"] = standardization
            self.policy = StandardizedPolicy(self.policy, standardization)
        if self.method.rewards is not None:
            data = data.replace(reward=self.method.rewards.scale * data.reward + self.method.rewards.shift)
        for update in self.method.updates():
            update.prepare(self.agent, data)
        memory = Replay.of(data)
        if weights is not None:
            memory.weigh(weights)
        return memory

    def step(self) -> dict[str, Tensor | float]:
        """Collect once, then all rounds."""
        metrics: dict[str, Tensor | float] = {}
        collector = self.method.collector
        if collector is not None:
            collected = collector(self.policy, self.problem, self.clock, self.running)
            self.memory.add(collected.batches["transitions"])
            metrics |= collected.metrics
        if collector is None or not collector.warming_up(self.clock):
            rng = self.clock.generator("updates")
            for one in self.method.rounds:
                metrics |= self._round(one, rng)
        self.clock.advance(metrics, self.budget)
        return metrics

    def _round(self, one: Round, rng: torch.Generator) -> dict[str, Tensor | float]:
        """The means of its metrics over the repetitions. Raises NonFinite at the end; no weights are lost till then."""
        sums: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()
        for i in range(one.repeat):
            batch = self.memory.sample(self.method.batch, rng)
            due = [update for update in one.updates if (self.clock.step * one.repeat + i + 1) % update.every == 0]
            for update in due:
                for name, value in self._update(update, batch, rng).items():
                    sums[name] = sums[name] + value if name in sums else value
                    counts[name] += 1
            for update in due:
                update.finish(self.agent)
        for update in one.updates:
            self.optimizers[update.trains].check(self.clock)
        return {name: value / counts[name] for name, value in sums.items()}

    def _update(self, update: Update, batch: Transitions, rng: torch.Generator) -> dict[str, Tensor]:
        optimizer = self.optimizers[update.trains]
        others = [p for name, own in self.trainable.items() if name != update.trains for p in own]
        for parameter in others:  # no gradient is computed that nobody takes
            parameter.requires_grad = False
        loss = update.loss(self.agent, batch, rng)
        loss.value.backward(inputs=optimizer.parameters)
        for parameter in others:
            parameter.requires_grad = True
        optimizer.attempt(loss.value.detach(), self.clock)
        return loss.metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "clock": self.clock.state_dict(),
            "agent": self.agent.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "memory": None if self.running is None else self.memory.state_dict(),  # a data set is the problem's
            "running": None if self.running is None else self.running.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock.load_state_dict(state["clock"])
        self.agent.load_state_dict(state["agent"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.running is not None:
            self.memory.load_state_dict(state["memory"])
            self.running.load_state_dict(state["running"])
