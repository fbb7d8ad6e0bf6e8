"""Tabular learning: counts, the model they estimate, confidence bounds on values, and planning by backward induction.

Axes: H steps of an episode, S states, A actions, … further leading axes (candidate policies, say). Nothing loops over
states, actions or candidates; backward induction loops over steps alone. Values are float64: thresholds decide on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from policyopt.types import Budget, Clock, Part

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@runtime_checkable
class EpisodicProblem(Protocol):
    """What is asked of a finite episodic problem: sizes, episodes, and a baseline [H, S, A] with its exact value."""

    @property
    def name(self) -> str: ...
    @property
    def horizon(self) -> int: ...
    @property
    def states(self) -> int: ...
    @property
    def actions(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def baseline(self) -> Floats | None: ...
    def value(self, policies: Floats) -> Floats: ...
    def play(self, act: Any, episodes: int, rng: torch.Generator) -> tuple[Ints, Ints, Floats]: ...


class Counts:
    """How often each transition was seen, and the rewards that came with it.

    ``pairs`` is the shape of what is counted apart, (H, S, A) for an episodic problem or (S, A) for a stationary one.
    ``transitions`` [*pairs, S] and ``rewards`` [*pairs] are sums over the data.
    """

    def __init__(self, pairs: tuple[int, ...], states: int) -> None:
        self.transitions = np.zeros((*pairs, states))
        self.rewards = np.zeros(pairs)

    @property
    def visits(self) -> Floats:
        return np.asarray(self.transitions.sum(-1))

    def add(self, pairs: tuple[Ints, ...], rewards: Floats, next_states: Ints) -> None:
        """Count transitions: an index array per axis of ``pairs``, shaped as ``rewards`` and ``next_states``."""
        np.add.at(self.transitions, (*pairs, next_states), 1.0)
        np.add.at(self.rewards, pairs, rewards)

    def add_episodes(self, states: Ints, actions: Ints, rewards: Floats) -> None:
        """Count complete episodes, states [N, H+1], actions and rewards [N, H], for ``pairs`` of (H, S, A)."""
        steps = np.broadcast_to(np.arange(actions.shape[1]), actions.shape)
        self.add((steps, states[:, :-1], actions), rewards, states[:, 1:])

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in ("transitions", "rewards")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("transitions", "rewards"):
            getattr(self, name)[...] = state[name].numpy()


def draw(probabilities: Floats, rng: torch.Generator) -> Ints:
    """One index from each row of ``probabilities`` [N, K] → [N]."""
    level = torch.rand(len(probabilities), 1, generator=rng, dtype=torch.float64).numpy()
    return np.asarray((probabilities.cumsum(-1)[:, :-1] <= level).sum(-1))


def expected(transitions: Floats, values: Floats) -> Floats:
    """E[V(s')] for transitions [S, A, S] and values [..., S] → [..., S, A]."""
    states, actions, _ = transitions.shape
    flat = values @ transitions.reshape(states * actions, states).T
    return np.asarray(flat.reshape(*values.shape[:-1], states, actions))


def residual_gap(q: Floats, targets: Floats, visits: Floats) -> float:
    """By how much the squared Bellman error of ``q`` on the data exceeds the least that any table attains.

    With ``targets`` the mean regression target of each pair, the gap is Σ n (q − target)²: a hypothesis is in the
    confidence set while it is small, and to be replaced once it has grown large (arXiv 2404.12648, 2505.03710). All
    arrays have one shape.
    """
    return float((visits * (q - targets) ** 2).sum())


@dataclass(frozen=True, kw_only=True)
class Bonus(Part):
    """How far an estimated backup may be from the true one.

    Called with visits [S, A], the variance [..., S, A] of the next value under the estimated model, the horizon (the
    range of values) and the logarithm of the confidence; infinite where a pair was never visited. Raises ValueError
    for a negative scale.
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        if not self.scale >= 0.0:
            raise ValueError(f"the scale of a bonus must not be negative, got {self.scale:g}")

    def __call__(self, visits: Floats, variance: Floats, horizon: int, log_term: float) -> Floats:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Bernstein(Bonus):
    """scale · (√(2 Var L / n) + H L / n): the variance-aware bonus of UCBVI (arXiv 1703.05449), one constant."""

    def __call__(self, visits: Floats, variance: Floats, horizon: int, log_term: float) -> Floats:
        rate = log_term / np.maximum(visits, 1.0)
        return np.where(visits > 0, self.scale * (np.sqrt(2.0 * variance * rate) + horizon * rate), np.inf)


@dataclass(frozen=True, kw_only=True)
class Hoeffding(Bonus):
    """scale · H √(L / n): independent of the values, so that uncapped bounds are linear in the policy of one step."""

    def __call__(self, visits: Floats, variance: Floats, horizon: int, log_term: float) -> Floats:
        width = self.scale * horizon * np.sqrt(log_term / np.maximum(visits, 1.0))
        return np.where(visits > 0, np.broadcast_to(width, variance.shape), np.inf)


@dataclass(frozen=True, kw_only=True)
class Model:
    """An episodic model, transitions [H, S, A, S], rewards and visits [H, S, A], and how far it is to be trusted."""

    transitions: Floats
    rewards: Floats
    visits: Floats
    bonus: Bonus
    log_term: float
    start: int = 0

    @classmethod
    def estimated(cls, counts: Counts, bonus: Bonus, log_term: float, start: int) -> Model:
        """The empirical model; next states of a pair never visited are uniform."""
        visits = counts.visits
        seen = np.maximum(visits, 1.0)
        uniform = 1.0 / counts.transitions.shape[-1]
        transitions = np.where(visits[..., None] > 0, counts.transitions / seen[..., None], uniform)
        rewards = counts.rewards / seen
        return cls(transitions=transitions, rewards=rewards, visits=visits, bonus=bonus, log_term=log_term, start=start)

    def backup(self, h: int, upper: Floats, lower: Floats) -> tuple[Floats, Floats]:
        """Bounds [..., S, A] on the action values of step ``h`` from bounds [..., S] on the values of the next.

        Both use the bonus of the upper value; they stay within [0, H − h], what an episode can still pay.
        """
        horizon = len(self.rewards)
        high, square, low = expected(self.transitions[h], np.stack((upper, upper**2, lower)))
        variance = np.maximum(square - high**2, 0.0)
        width = self.bonus(self.visits[h], variance, horizon, self.log_term)
        high, low = self.rewards[h] + high + width, self.rewards[h] + low - width
        return np.minimum(high, horizon - h), np.maximum(low, 0.0)

    def optimistic_q(self) -> Floats:
        """Upper bounds on the optimal action values, [H, S, A], by value iteration backwards through the steps."""
        q, value = np.empty_like(self.rewards), np.zeros(self.rewards.shape[1])
        for h in reversed(range(len(q))):
            q[h], _ = self.backup(h, value, value)
            value = q[h].max(-1)
        return q

    def bounds(self, policies: Floats) -> tuple[Floats, Floats]:
        """Upper and lower bounds [...] on the values from the start of policies [..., H, S, A]."""
        upper = lower = np.zeros((*policies.shape[:-3], policies.shape[-2]))
        for h in reversed(range(len(self.rewards))):
            q_upper, q_lower = self.backup(h, upper, lower)
            upper = (policies[..., h, :, :] * q_upper).sum(-1)
            lower = (policies[..., h, :, :] * q_lower).sum(-1)
        return upper[..., self.start], lower[..., self.start]


def greedy(q: Floats) -> Floats:
    """The policy [..., A] that takes a best action of ``q`` [..., A], the lowest index where several are."""
    return np.asarray(np.eye(q.shape[-1])[q.argmax(-1)])


@dataclass(frozen=True, kw_only=True, eq=False)
class TabularPolicy:
    """Time-dependent policies [M, H, S, A], one of which is drawn for each episode with ``weights`` [M]."""

    probabilities: Floats
    weights: Floats = field(default_factory=lambda: np.ones(1))

    @classmethod
    def single(cls, probabilities: Floats) -> TabularPolicy:
        """The policy [H, S, A] for every episode."""
        return cls(probabilities=probabilities[None])

    def act(
        self, observation: Ints, memory: Ints | None, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Ints, dict[str, Any], Ints]:
        """Actions [N] for observations (step, state) [N, 2]; the memory [N] is which policy each episode follows."""
        if memory is None:
            memory = draw(np.broadcast_to(self.weights, (len(observation), len(self.weights))), rng)
        probabilities = self.probabilities[memory, observation[:, 0], observation[:, 1]]
        return probabilities.argmax(-1) if greedy else draw(probabilities, rng), {}, memory


class Safeguard(NamedTuple):
    """A policy [H, S, A] known to be safe, and the value that no episode's policy may fall below."""

    policy: Floats
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Requirement(Part):
    """What a run has to respect; the data that it starts from are added to ``counts``."""

    def __call__(self, problem: EpisodicProblem, counts: Counts, seed: int) -> Safeguard:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Unconstrained(Requirement):
    """Any policy is safe, and there are no data."""

    def __call__(self, problem: EpisodicProblem, counts: Counts, seed: int) -> Safeguard:
        uniform = np.full((problem.horizon, problem.states, problem.actions), 1.0 / problem.actions)
        return Safeguard(uniform, -np.inf)


@dataclass(frozen=True, kw_only=True)
class Exploration(Part):
    """What is made of the optimistic policy [H, S, A]: the policy of the next episode."""

    def __call__(self, model: Model, optimistic: Floats, safeguard: Safeguard) -> TabularPolicy:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Optimistic(Exploration):
    """The optimistic policy itself, whatever the safeguard."""

    def __call__(self, model: Model, optimistic: Floats, safeguard: Safeguard) -> TabularPolicy:
        return TabularPolicy.single(optimistic)


@dataclass(frozen=True, kw_only=True)
class OptimisticPlanning:
    """Plan in the optimistic model of all data, play one episode, count, repeat: UCBVI (arXiv 1703.05449) by default.

    ``exploration`` says what is made of the optimistic policy under the ``requirement``; ``episodes`` is how many the
    confidence has to cover, K in the bonus's logarithm L = log(2 S A H K). Raises ValueError when it is not positive.
    """

    exploration: Exploration = Optimistic()
    requirement: Requirement = Unconstrained()
    bonus: Bonus = Bernstein()
    episodes: int = 3000

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"the confidence must cover at least one episode, got episodes={self.episodes}")

    def learner(
        self, problem: EpisodicProblem, policy: Any = None, *, seed: int, budget: Budget | None = None
    ) -> OptimisticLearner:
        """Raises ValueError for another kind of problem, and for an initial policy: one is planned from the data."""
        if not isinstance(problem, EpisodicProblem):
            raise ValueError(
                f"tabular planning needs a finite episodic problem, got {type(problem).__name__}: use tabular"
            )
        if policy is not None:
            raise ValueError("tabular planning makes its own policy: give a safe one as the problem's baseline instead")
        return OptimisticLearner(self, problem, seed, budget)


class OptimisticLearner:
    """One step is one episode. ``policy`` is what the NEXT one follows: a function of the counts, hence never saved."""

    def __init__(self, method: OptimisticPlanning, problem: EpisodicProblem, seed: int, budget: Budget | None) -> None:
        self.method, self.problem, self.budget = method, problem, budget
        self.clock = Clock(seed=seed)
        self.counts = Counts((problem.horizon, problem.states, problem.actions), problem.states)
        self.safeguard = method.requirement(problem, self.counts, seed)
        self.log_term = log(2.0 * self.counts.rewards.size * method.episodes)
        self._plan()

    def _plan(self) -> None:
        model = Model.estimated(self.counts, self.method.bonus, self.log_term, self.problem.start)
        q = model.optimistic_q()
        self.optimistic_value = float(q[0, self.problem.start].max())
        self.policy = self.method.exploration(model, greedy(q), self.safeguard)

    def step(self) -> Mapping[str, float]:
        states, actions, rewards = self.problem.play(self.policy.act, 1, self.clock.generator("episode"))
        metrics = {
            "reward/mean": float(rewards.sum()),
            "value/optimistic": self.optimistic_value,
            "cost/env_steps": float(self.problem.horizon),
        }
        self.counts.add_episodes(states, actions, rewards)
        self._plan()
        self.clock.advance(metrics, self.budget)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"clock": self.clock.state_dict(), "counts": self.counts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock.load_state_dict(state["clock"])
        self.counts.load_state_dict(state["counts"])
        self._plan()
