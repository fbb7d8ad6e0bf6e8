"""The on-policy learner: collect, annotate, give credit, update. Most methods are a configuration of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.learners.annotators import Annotator, evaluated
from policyopt.learners.columns import check_columns
from policyopt.learners.critic import Critic
from policyopt.learners.update import Adam, divided, mean_metrics, minibatches
from policyopt.models.mlp import Architecture
from policyopt.objectives.policy_gradient import Objective, PolicyGradient
from policyopt.rollouts.language import Groups
from policyopt.types import Budget, Clock, Collector, Loss, Part, Rollouts


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """A method that learns from what the current policy just did.

    collector gathers named batches; annotators add columns that need a network; the critic, where there is one, adds values;
    credit turns rewards into advantages; the objective is minimised over ``epochs`` passes of ``minibatches`` pieces each.
    objectives holds those of further named batches (``{"demonstrations": …}``), added to the main one in every update.
    micro_batch is the number of tokens (steps, in control) that go through a network at once; it bounds memory and does
    not change the result. None chooses it from the size of the model. ``policy`` builds one where none is given (control).
    """

    policy: Architecture | None = None
    collector: Collector = Groups()
    annotators: tuple[Annotator, ...] = ()
    critic: Critic | None = None
    credit: tuple[Credit, ...] = ()
    objective: Objective = PolicyGradient()
    objectives: Mapping[str, Objective] = field(default_factory=dict, hash=False)
    optimizer: Adam = Adam()
    epochs: int = 1
    minibatches: int = 1
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.minibatches < 1:
            raise ValueError(f"epochs and minibatches must be positive, got {self.epochs} and {self.minibatches}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be a positive number of tokens, got {self.micro_batch}")

    def stages(self) -> tuple[Part, ...]:
        """Its parts in the order in which they work."""
        critic = () if self.critic is None else (self.critic,)
        return (self.collector, *self.annotators, *critic, *self.credit, self.objective)

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> OnPolicyLearner:
        return OnPolicyLearner(self, problem, policy, seed, budget)


def default_learning_rate(policy: Any) -> float:
    """What the policy says suits it, 1e-3 where it says nothing."""
    suggested = getattr(policy, "default_learning_rate", None)
    return 1e-3 if suggested is None else float(suggested())


class OnPolicyLearner:
    """The live method: policy, critic, optimizers, memories, clock."""

    def __init__(self, method: OnPolicy, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        check_columns(method.stages())
        if policy is None:
            if method.policy is None:
                raise ValueError(
                    "this method trains a language policy that it is given (--policy), on a language problem; for control "
                    "there are methods that make their own, such as ppo and trpo"
                )
            policy = method.policy.build(problem, seed)
        self.method, self.problem, self.policy, self.budget = method, problem, policy, budget
        self.clock = Clock(seed=seed)
        sampling = getattr(method.collector, "sampling", None)
        if sampling is not None:
            policy.temperature = sampling.temperature or 1.0
        self.objectives = {"rollouts": method.objective, **method.objectives}
        self.limit = method.micro_batch or policy.default_micro_batch()
        self.models = {f"annotators.{i}": part.build(policy, seed) for i, part in enumerate(method.annotators)}
        self.critic = None if method.critic is None else method.critic.build(policy, seed)
        self.optimizer = method.optimizer.build(policy.parameters(), default_learning_rate(policy))
        named = {"annotators": method.annotators, "credit": method.credit}
        parts: dict[str, Part] = {f"{name}.{i}": part for name, many in named.items() for i, part in enumerate(many)}
        parts["collector"] = method.collector
        self.memories = {path: memory for path, part in parts.items() if (memory := part.memory()) is not None}

    def step(self) -> dict[str, Tensor | float]:
        """Collect once, then all updates on what was collected."""
        collected = self.method.collector(self.policy, self.problem, self.clock, self.memories.get("collector"))
        batches = dict(collected.batches)
        for name, objective in self.method.objectives.items():
            batches[name] = self._annotated(batches[name], objective.needs)
        batches["rollouts"] = self._credited(batches["rollouts"])
        metrics = {**collected.metrics, **self._improve(batches)}
        if self.critic is not None:
            passes = self.method.epochs, self.method.minibatches
            metrics |= self.critic.train(batches, *passes, self.clock, self.limit)
        self.clock.advance(metrics, self.budget)
        return metrics

    def _annotated(self, batch: Rollouts, wanted: Sequence[str] | None = None) -> Rollouts:
        """With the columns of all annotators, or of those that give a column that is ``wanted``."""
        for i, annotator in enumerate(self.method.annotators):
            path = f"annotators.{i}"
            if wanted is None or set(annotator.gives) & set(wanted):
                batch = annotator(batch, self.policy, self.models[path], self.limit, self.memories.get(path))
        return batch

    def _credited(self, batch: Rollouts) -> Rollouts:
        batch = self._annotated(batch)
        if self.critic is not None:
            batch = self.critic.annotate(batch, self.limit)
        for i, credit in enumerate(self.method.credit):
            batch = credit(batch, self.memories.get(f"credit.{i}"))
        return batch

    def _improve(self, batches: dict[str, Any]) -> dict[str, Tensor | float]:
        """The policy's updates on what was collected."""
        updates, whole = [], self.method.objective.whole_groups
        batches = {name: batch for name, batch in batches.items() if name in self.objectives}
        for epoch in range(self.method.epochs):
            order = self.clock.generator(f"minibatches-{epoch}")
            pieces = minibatches(batches, self.method.minibatches, order, whole)
            updates += [self._update(piece, f"{epoch}-{i}") for i, piece in enumerate(pieces)]
        return mean_metrics(updates)

    def _update(self, pieces: dict[str, Any], number: str) -> dict[str, Tensor | float]:
        """One optimizer step on the sum of the objectives of the named minibatches.

        ``number`` tells the updates of a step apart.
        """
        total = Loss(torch.zeros((), device=self.policy.device))
        for name, objective in self.objectives.items():
            batch = objective.prepare(pieces[name])
            if objective.measures:
                logp = evaluated(self.policy, batch, "logp", self.limit)
                batch = objective.measure(logp, batch, self.clock.generator(f"measure-{name}-{number}"))
            for micro in divided(batch, self._pieces(objective, batch)):
                loss = objective(self.policy.evaluate(micro, objective.want()), micro)
                loss.value.backward()
                total += Loss(loss.value.detach(), loss.metrics)
        return {**total.metrics, "gradient/norm": self.optimizer.step(total.value, self.clock)}

    def _pieces(self, objective: Objective, batch: Rollouts) -> list[Tensor]:
        """The rows of the micro-batches."""
        pieces: list[Tensor] = (
            self.policy.micro_batches(batch, self.limit, whole=True)
            if objective.whole_groups
            else self.policy.micro_batches(batch, self.limit)
        )
        return pieces

    @torch.no_grad()
    def evaluate(self) -> dict[str, Tensor | float]:
        """The objective's metrics on held-out data, ``eval/<name>``, where the collector has such data."""
        held_out = self.method.collector.held_out(self.policy, self.problem)
        if held_out is None:
            return {}
        objective = self.method.objective
        batch = objective.prepare(self._annotated(held_out))
        sums: dict[str, Tensor | float] = {}
        for rows in self._pieces(objective, batch):
            micro = batch[rows]
            for key, value in objective(self.policy.evaluate(micro, objective.want()), micro).metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        return {f"eval/{key.replace('/', '_')}": value for key, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "clock": self.clock.state_dict(),
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic": None if self.critic is None else self.critic.state_dict(),
            "models": {path: model.state_dict() for path, model in self.models.items() if model is not None},
            "memories": {path: memory.state_dict() for path, memory in self.memories.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock.load_state_dict(state["clock"])
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        for path, model in state["models"].items():
            self.models[path].load_state_dict(model)
        for path, memory in state["memories"].items():
            self.memories[path].load_state_dict(memory)
