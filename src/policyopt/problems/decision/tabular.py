"""Tabular episodic Markov decision processes: random instances, sampling, and exact values to judge policies by.

Axes: H steps of an episode, S states, A actions, N episodes. Values are float64: thresholds decide on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from policyopt.problems.language.base import read_options

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Act: TypeAlias = Callable[[Ints, Any, torch.Generator, bool], tuple[Ints, Any, Any]]


class Episodes(NamedTuple):
    """Complete episodes: states [N, H+1], actions [N, H], rewards [N, H]."""

    states: Ints
    actions: Ints
    rewards: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class TabularMDP:
    """An episodic MDP whose transitions and rewards depend on the step.

    transitions [H, S, A, S]; rewards [H, S, A], deterministic, in [0, 1]; every episode begins in ``start``.
    ``baseline`` [H, S, A] is the policy in use before learning, where there is one. An observation is (step, state),
    a row of an array [N, 2]. Raises ValueError on shapes that do not fit, rows that are no distribution, and rewards
    outside [0, 1].
    """

    name: str
    transitions: Floats
    rewards: Floats
    start: int = 0
    baseline: Floats | None = None
    evaluation_size: int = 1000

    def __post_init__(self) -> None:
        if self.transitions.ndim != 4 or self.transitions.shape != (*self.rewards.shape, self.rewards.shape[1]):
            raise ValueError(
                f"transitions must be [H, S, A, S] and rewards [H, S, A], got shapes {self.transitions.shape} and "
                f"{self.rewards.shape}"
            )
        if not (self.rewards.min() >= 0.0 and self.rewards.max() <= 1.0):
            raise ValueError(
                f"rewards must lie in [0, 1], got {self.rewards.min():g} to {self.rewards.max():g}: rescale"
            )
        if not 0 <= self.start < self.states:
            raise ValueError(f"the start state must be one of 0..{self.states - 1}, got {self.start}")
        _require_distributions("transitions", self.transitions)
        if self.baseline is not None:
            if self.baseline.shape != self.rewards.shape:
                raise ValueError(f"the baseline must be [H, S, A] = {self.rewards.shape}, got {self.baseline.shape}")
            _require_distributions("the baseline", self.baseline)

    @property
    def horizon(self) -> int:
        return int(self.rewards.shape[0])

    @property
    def states(self) -> int:
        return int(self.rewards.shape[1])

    @property
    def actions(self) -> int:
        return int(self.rewards.shape[2])

    def value(self, policies: Floats) -> Floats:
        """The exact expected return from the start of policies [..., H, S, A] → [...]."""
        value = np.zeros((*policies.shape[:-3], self.states))
        for h in reversed(range(self.horizon)):
            q = self.rewards[h] + np.einsum("sat,...t->...sa", self.transitions[h], value)
            value = (policies[..., h, :, :] * q).sum(-1)
        return np.asarray(value[..., self.start])

    @cached_property
    def optimal_q(self) -> Floats:
        """The optimal action values, [H, S, A]."""
        q, value = np.empty_like(self.rewards), np.zeros(self.states)
        for h in reversed(range(self.horizon)):
            q[h] = self.rewards[h] + self.transitions[h] @ value
            value = q[h].max(-1)
        return q

    @cached_property
    def _distribution(self) -> Floats:
        """The distribution functions of the next states but the last, [H, S, A, S − 1]."""
        return np.asarray(self.transitions.cumsum(-1)[..., :-1])

    @property
    def optimal_value(self) -> float:
        return float(self.optimal_q[0, self.start].max())

    def play(self, act: Act, episodes: int, rng: torch.Generator) -> Episodes:
        """``episodes`` at once; ``act(observation [N, 2], memory, rng, greedy)`` → actions [N], columns, memory."""
        states = np.full((episodes, self.horizon + 1), self.start)
        actions = np.empty((episodes, self.horizon), np.int64)
        memory = None
        for h in range(self.horizon):
            observation = np.stack((np.full(episodes, h), states[:, h]), axis=-1)
            actions[:, h], _, memory = act(observation, memory, rng, False)
            level = torch.rand(episodes, 1, generator=rng, dtype=torch.float64).numpy()
            states[:, h + 1] = (self._distribution[h, states[:, h], actions[:, h]] <= level).sum(-1)
        return Episodes(states, actions, self.rewards[np.arange(self.horizon), states[:, :-1], actions])

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """Mean return of ``evaluation_size`` episodes, and how far it falls short of the optimal value."""
        mean = float(self.play(act, self.evaluation_size, rng).rewards.sum(-1).mean())
        return {"eval/return": mean, "eval/regret": self.optimal_value - mean}


def random_mdp(
    *,
    states: int = 5,
    actions: int = 3,
    horizon: int = 4,
    concentration: float = 0.3,
    reward_share: float = 0.5,
    inverse_temperature: float = 5.0,
    seed: int = 0,
) -> TabularMDP:
    """Transitions from Dirichlet(``concentration``); rewards uniform on [0, 1], each kept with probability
    ``reward_share`` and else 0; the baseline is the softmax of ``inverse_temperature`` times the optimal action values.

    ``actions=5, horizon=3, concentration=1, reward_share=1`` is the environment of arXiv 2306.06265. Raises
    ValueError when a size is not positive.
    """
    if min(states, actions, horizon) < 1:
        raise ValueError(f"sizes must be positive, got states={states}, actions={actions}, horizon={horizon}")
    rng = np.random.default_rng(seed)
    shape = (horizon, states, actions)
    transitions = rng.dirichlet(np.full(states, concentration), size=shape)
    rewards = rng.random(shape) * (rng.random(shape) < reward_share)
    name = f"tabular-{states}x{actions}x{horizon}-{seed}"
    bare = TabularMDP(name=name, transitions=transitions, rewards=rewards)
    baseline = softmax(inverse_temperature * bare.optimal_q, axis=-1)
    return TabularMDP(name=name, transitions=transitions, rewards=rewards, baseline=baseline)


def parse(text: str = "") -> TabularMDP:
    """``"states=5,actions=3,seed=1"``, the arguments of ``random_mdp`` → the problem."""
    readers = {name: type(parameter.default) for name, parameter in signature(random_mdp).parameters.items()}
    return random_mdp(**read_options(text, readers, ",", "tabular"))


def _require_distributions(what: str, rows: Floats) -> None:
    if not (np.all(rows >= 0.0) and np.allclose(rows.sum(-1), 1.0, atol=1e-9)):
        raise ValueError(f"{what}: every row over the last axis must be non-negative and sum to one")
