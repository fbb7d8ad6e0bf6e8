"""CAMEL: hand-written or generated policies mask the actions of TD3 early in training (arXiv 2502.11896).

A suboptimal policy p(s), asked of a language model once or written down, says where to look: in state s the action is kept
within an interval [L(s), U(s)] around p(s). TD3 learns in the knowledge of the mask, and a share ε of it falls from 1 to
0, so that the final agent owes the prior nothing. With all actions in the box [-1, 1]^A:

    interval   L = max(-1, p - δ),  U = min(1, p + δ)      envelope   L = min_m p_m,  U = max_m p_m, at least 2 δ_min wide
    map        rescale  (L+U)/2 + a (U-L)/2                clip       min(max(a, L), U)
    share      interpolate  L ← ε L - (1-ε), U ← ε U + (1-ε)      bernoulli  masked with probability ε
    target     y = r + γ (1 - d) min_j Q̄_j(s', map(π̄(s') + clipped noise; s'))
    actor      maximise Q_1(s, map(π(s); s)), less c · mean[(L - a)₊² + (a - U)₊²] with ``clip``, whose gradient vanishes outside

The paper's formulas could not be read: it names the four ingredients (a written policy, a mask from it, optimization that
knows the mask, a share that falls) and TD3; how each is done here is our reconstruction. What is remembered is the action
that was executed; masks are computed again from the states, with the present ε. Evaluation is without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.learners.acting import Agent, Exploring, ExploringPolicy, network
from policyopt.learners.off_policy import (
    DeterministicPolicy,
    OffPolicy,
    OffPolicyLearner,
    Round,
    SmoothedCritic,
    first_values,
)
from policyopt.models.action_mask import ActionMask, Bernoulli, Clip, Interval, Rescale, Share
from policyopt.models.priors import Batched, PriorPolicy, UniformPolicy, load
from policyopt.problems.control.rules import RULES
from policyopt.types import Budget, Clock, Loss, Part, Transitions, generator

FAMILY = "control"
VARIANTS = ("clip", "bernoulli", "adaptive")


@dataclass(frozen=True, kw_only=True)
class Annealing(Part):
    """ε over time; here constant. Raises ValueError where it isn't a share."""

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon <= 1.0:
            raise ValueError(f"epsilon is a share, from 0 to 1, got {self.epsilon:g}")

    def prepare(self, mask: ActionMask, problem: Any, seed: int) -> None:
        """Before the first step, where ε begins at ``epsilon``."""
        mask.epsilon.fill_(self.epsilon)

    def __call__(self, mask: ActionMask, clock: Clock) -> float:
        """The ε of the step to come."""
        return self.epsilon

    def observe(self, mask: ActionMask, episode: float) -> None:
        """The return of an episode that has ended."""


@dataclass(frozen=True, kw_only=True)
class LinearAnnealing(Annealing):
    """From ``epsilon`` to 0 while the first ``until`` (a share) of the budget is spent, and 0 after it."""

    until: float = 0.3

    def __call__(self, mask: ActionMask, clock: Clock) -> float:
        return self.epsilon * max(0.0, 1.0 - clock.share / self.until)


@dataclass(frozen=True, kw_only=True)
class AdaptiveAnnealing(Annealing):
    """Lower by ``decrement`` with every episode after which the moving average of training returns exceeds what the prior
    itself earns, never raised. The prior's return is that of the problem's evaluation, whose steps aren't counted."""

    decrement: float = 0.1
    rate: float = 0.3

    def prepare(self, mask: ActionMask, problem: Any, seed: int) -> None:
        super().prepare(mask, problem, seed)
        act = PriorPolicy(mask.priors[0], mask.spaces).act
        mask.prior_return.fill_(problem.evaluate(act, generator(seed, "prior"))["eval/return"])

    def __call__(self, mask: ActionMask, clock: Clock) -> float:
        return float(mask.epsilon)

    def observe(self, mask: ActionMask, episode: float) -> None:
        before = float(mask.moving_return)
        mask.moving_return.fill_(episode if before != before else before + self.rate * (episode - before))
        if mask.moving_return > mask.prior_return:
            mask.epsilon.sub_(self.decrement).clamp_(min=0.0)


class MaskedPolicy:
    """The actor's mode with Gaussian noise, or uniform actions, through the mask; without noise and mask where greedy."""

    def __init__(self, agent: Agent, deviation: float) -> None:
        actor: Any = agent["actor"]
        self.exploring, self.mask = ExploringPolicy(actor, deviation), network(agent, "mask", ActionMask)

    @torch.no_grad()
    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N, A] for observations [N, S]."""
        action, _, memory = self.exploring.act(observation, memory, rng, greedy)
        return action if greedy else self._masked(action, observation), {}, memory

    def warm_up(self, observation: Tensor, memory: Any, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Any]:
        action, _, memory = self.exploring.warm_up(observation, memory, rng)
        return self._masked(action, observation), {}, memory

    def _masked(self, action: Tensor, observation: Tensor) -> Tensor:
        seed, window = self.mask.draws
        masked: Tensor = self.mask(action, observation, generator(seed, "mask", window))
        return masked


@dataclass(frozen=True, kw_only=True)
class Masked(Exploring):
    """Acts through the mask. ``priors`` are functions of an observation, ``Batched`` ones of many, or the names of such
    functions (``file.py:function``); none: the rule that ships for the problem. Raises ValueError where there is none."""

    priors: tuple[Any, ...] = ()
    interval: Interval = Interval()
    map: Rescale = Rescale()
    share: Share = Share()

    def modules(self, problem: Any, policy: Any) -> dict[str, nn.Module]:
        found = tuple(load(prior) if isinstance(prior, str) else prior for prior in self.priors)
        if not found and problem.name not in RULES:
            raise ValueError(
                f"no rule ships for {problem.name}, only for {', '.join(RULES)}: write a function that returns an action for "
                "an observation, and name it: --set 'acting.priors=[rule.py:policy]'"
            )
        priors = found or (Batched(RULES[problem.name]),)
        self.interval(torch.zeros(len(priors), 1, problem.spaces.action))  # complains of a number that does not fit
        made = ActionMask(priors, problem.spaces, self.interval, self.map, self.share)
        return {**super().modules(problem, policy), "mask": made}

    def policy(self, agent: Agent) -> MaskedPolicy:
        return MaskedPolicy(agent, self.noise)


@dataclass(frozen=True, kw_only=True)
class MaskedCritic(SmoothedCritic):
    """Towards the value of the next action as it would be executed."""

    def next_action(self, agent: Agent, observation: Tensor, rng: torch.Generator) -> Tensor:
        raw = super().next_action(agent, observation, rng)
        return network(agent, "mask", ActionMask)(raw, observation, rng)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class MaskedActor(DeterministicPolicy):
    """Towards high values of its actions as they would be executed. Raises ValueError for what TD3's actor hasn't either."""

    def __post_init__(self) -> None:
        if self.value_weight is not None or self.regularizer is not None:
            raise ValueError("a masked actor has no value_weight and no regularizer: they belong to offline learning")

    def loss(self, agent: Agent, batch: Transitions, rng: torch.Generator) -> Loss:
        mask, seen, penalty = network(agent, "mask", ActionMask), batch.observation, torch.zeros(())
        action = self.action(agent, seen)
        if mask.epsilon > 0.0:
            bounds = mask.bounds(seen, rng)
            penalty = mask.map.penalty(action, *bounds)
            action = mask.map(action, *bounds)
        values = first_values(agent, seen, action)
        loss = penalty - values.mean()
        return Loss(loss, {"loss/policy": loss.detach(), "policy/value": values.detach().mean()})


@dataclass(frozen=True, kw_only=True)
class MaskedOffPolicy(OffPolicy):
    """Off-policy learning whose mask follows ``annealing``."""

    annealing: Annealing = LinearAnnealing()

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> MaskedLearner:
        return MaskedLearner(self, problem, policy, seed, budget)


class MaskedLearner(OffPolicyLearner):
    """Sets ε before each step, and tells the annealing of episodes that ended."""

    method: MaskedOffPolicy

    def __init__(self, method: MaskedOffPolicy, problem: Any, policy: Any, seed: int, budget: Budget | None) -> None:
        super().__init__(method, problem, policy, seed, budget)
        method.annealing.prepare(network(self.agent, "mask", ActionMask), problem, seed)

    def step(self) -> dict[str, Tensor | float]:
        mask, annealing = network(self.agent, "mask", ActionMask), self.method.annealing
        mask.epsilon.fill_(annealing(mask, self.clock))
        mask.draws = (self.clock.seed, mask.share.window(self.clock.step))
        metrics = {"mask/epsilon": float(mask.epsilon), **super().step()}
        if "episode/return" in metrics:
            annealing.observe(mask, float(metrics["episode/return"]))
        return metrics


def screened(priors: Sequence[Any], problem: Any, seed: int = 0) -> tuple[Any, ...]:
    """Those that never fail in the problem's evaluation episodes and earn at least as much there as uniform actions."""

    def earned(policy: Any) -> float:
        return float(problem.evaluate(policy.act, generator(seed, "screening"))["eval/return"])

    threshold, kept = earned(UniformPolicy(problem.spaces)), []
    for prior in priors:
        played = PriorPolicy(prior, problem.spaces)
        if earned(played) >= threshold and not played.failures:
            kept.append(prior)
    return tuple(kept)


def method() -> MaskedOffPolicy:
    return MaskedOffPolicy(rounds=(Round(updates=(MaskedCritic(), MaskedActor())),), acting=Masked())


def clip() -> MaskedOffPolicy:
    return replace(method(), acting=Masked(map=Clip()))


def bernoulli() -> MaskedOffPolicy:
    return replace(method(), acting=Masked(share=Bernoulli()))


def adaptive() -> MaskedOffPolicy:
    return replace(method(), annealing=AdaptiveAnnealing())
