"""Fitted Q evaluation: what a policy is worth, from logged data alone (Le, Voloshin and Yue, arXiv 1903.08738).

    Q_k(s, a) ← r + γ (1 − terminated) Q̄_k(s', a'),   a' ~ π(s'),   value_k = mean of Q_k(s_0, a_0) over first observations

Each head k of the ensemble has a data set of its own, in which episodes are drawn with replacement, and the spread of the
heads' values is the interval. A step that was cut is no end: only a termination stops the sum. So without ``horizon`` the
value is discounted and knows no time limit. With it the value is the undiscounted return of episodes that are cut after so
many steps, as evaluations play them: Q_k gets the number n of steps to go as an input, drawn anew for every row, and

    Q_k(s, a, n) ← r + (1 − terminated) [n > 1] Q̄_k(s', a', n − 1)

Actions of the policy in the data's states are computed once. Where they lie further from the data than the data's
own pairs from each other, values are extrapolated: ``outside`` is the share of such states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from policyopt.credit.episodes import complete_episodes, first_rows
from policyopt.learners.off_policy import polyak, regression
from policyopt.learners.update import Adam, Cosine
from policyopt.models.mlp import Standardization
from policyopt.models.q_functions import QFunctions
from policyopt.types import Clock, Part, Transitions, generator

ROWS_AT_ONCE = 8192
PAIRS = 2000  # whose distance to the data is measured
FAR = 0.99  # quantile of the data's own distances beyond which an action is outside
ALARM = 0.1  # share of actions outside from which on the estimate comes with a warning


class Estimate(NamedTuple):
    """A value with its interval (95%, over bootstrapped episodes), each head's value [K], and the share of the data's states
    in which the policy acts outside the data."""

    value: float
    low: float
    high: float
    heads: Tensor
    outside: float

    @property
    def warning(self) -> str | None:
        """What to say of an estimate that rests on extrapolation."""
        if self.outside <= ALARM:
            return None
        return (
            f"in {self.outside:.0%} of the data's states the policy acts further from the data than 99% of the data's own pairs "
            "lie from each other: values there are extrapolated, and the interval does not know it"
        )


@dataclass(frozen=True, kw_only=True)
class FittedQ(Part):
    """How a policy is evaluated. ``samples`` actions are drawn in each state, of which one is taken at a time; 0: the greedy
    one. Raises ValueError for settings that make no sense."""

    model: QFunctions = QFunctions(heads=10, width=64)
    optimizer: Adam = Adam(learning_rate=1e-3, gradient_clip=None, schedule=Cosine())
    gamma: float = 0.99
    horizon: int | None = None
    samples: int = 0
    updates: int = 5000
    batch: int = 128
    polyak: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < 1.0 or not 0.0 < self.polyak <= 1.0:
            raise ValueError(f"gamma is from 0 to below 1 and polyak a share, got {self.gamma:g} and {self.polyak:g}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"a horizon is a positive number of steps, got {self.horizon}")
        if min(self.updates, self.batch) < 1 or self.samples < 0:
            raise ValueError(f"updates and batch must be positive and samples not negative, got {self}")

    def __call__(
        self, data: Transitions, policy: Any, spaces: Any, seed: int, progress: Callable[[int], None] = lambda _: None
    ) -> Estimate:
        """The value of the policy on the log ``data``, which has episodes. Raises ValueError where none is complete."""
        if data.episode is None:
            raise ValueError("fitted Q evaluation begins with first observations: the data need the column episode")
        first = first_rows(data.episode)[complete_episodes(data)]
        if not len(first):
            raise ValueError(
                "fitted Q evaluation begins with first observations, and no episode of the data is complete"
            )
        fitting = Fitting(self, data, policy, spaces, seed)
        for _ in range(self.updates):
            fitting.step()
            progress(1)
        values = fitting.values(first)
        spread = 1.96 * float(values.std()) if len(values) > 1 else float("nan")
        value = float(values.mean())
        return Estimate(value, value - spread, value + spread, values, fitting.outside())


class Fitting:
    """The live evaluation: ensemble and target, optimizer, each head's weights of the rows, and what the policy does."""

    def __init__(self, settings: FittedQ, data: Transitions, policy: Any, spaces: Any, seed: int) -> None:
        self.settings, self.clock = settings, Clock(seed=seed)
        self.discrete, self.choices = spaces.discrete, spaces.action
        self.standardize = Standardization(data.observation.shape[1], limit=float("inf"))
        self.standardize.fit(data.observation, 1e-3)
        self.seen, self.following = self.standardize(data.observation), self.standardize(data.next_observation)
        self.done, self.continues = self._encoded(data.action), (~data.terminated).float()
        self.next_action = self._acts(policy, data.next_observation, "next")
        self.action = self._acts(policy, data.observation, "now")
        horizon = settings.horizon or 1.0 / (1.0 - settings.gamma)
        steps = float(torch.bincount(data.episode).double().mean())
        self.scale = float(data.reward.abs().mean()) * min(horizon, steps) or 1.0
        self.reward = data.reward / self.scale
        sizes = self.seen.shape[1] + (settings.horizon is not None), self.done.shape[1]
        self.q = settings.model.build(*sizes, seed)
        self.target = settings.model.build(*sizes, seed).requires_grad_(False)
        self.optimizer = settings.optimizer.build(self.q.parameters())
        episodes = int(data.episode[-1]) + 1
        drawn = torch.randint(episodes, (self.q.heads, episodes), generator=generator(seed, "bootstrap"))
        self.counts = torch.stack([one.bincount(minlength=episodes) for one in drawn]).double()  # [K, E]
        self.episode, self.cumulative = data.episode, self.counts[:, data.episode].cumsum(1)

    def _encoded(self, action: Tensor) -> Tensor:
        """Actions [N, A], choices as one-hot rows."""
        return functional.one_hot(action, self.choices).float() if self.discrete else action

    def _acts(self, policy: Any, observation: Tensor, stream: str) -> Tensor:
        """What the policy does, [M, N, A]: its samples, or the greedy action alone."""
        rng, greedy = generator(self.clock.seed, stream), self.settings.samples == 0
        drawn = [
            torch.cat([policy.act(part, None, rng, greedy)[0] for part in observation.split(ROWS_AT_ONCE)])
            for _ in range(max(self.settings.samples, 1))
        ]
        return torch.stack([self._encoded(action) for action in drawn])

    def _inputs(self, observation: Tensor, to_go: Tensor | None) -> Tensor:
        """Observations […, S] with the share of the horizon that is to go, in [−1, 1]."""
        if to_go is None or self.settings.horizon is None:
            return observation
        return torch.cat((observation, (2.0 * to_go / self.settings.horizon - 1.0)[..., None]), -1)

    def step(self) -> None:
        """One update of all heads, each on rows [K, B] of its own."""
        rng, settings, shape = self.clock.generator("rows"), self.settings, (self.q.heads, self.settings.batch)
        point = torch.rand(shape, generator=rng, dtype=torch.float64) * self.cumulative[:, -1:]
        row = torch.searchsorted(self.cumulative, point, right=True).clamp(max=len(self.reward) - 1)
        to_go, gamma = None, settings.gamma * self.continues[row]
        if settings.horizon is not None:
            to_go = torch.randint(1, settings.horizon + 1, shape, generator=rng)
            gamma = self.continues[row] * (to_go > 1)
        which = torch.randint(len(self.next_action), shape, generator=rng)
        with torch.no_grad():
            before = None if to_go is None else to_go - 1
            following = self.target(self._inputs(self.following[row], before), self.next_action[which, row])
            wanted = self.reward[row] + gamma * following
        loss = regression(self.q(self._inputs(self.seen[row], to_go), self.done[row]), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(loss.detach(), self.clock)
        polyak(self.target, self.q, settings.polyak)
        self.clock.advance({}, None)
        self.clock.share = self.clock.step / settings.updates

    @torch.no_grad()
    def values(self, first: Tensor) -> Tensor:
        """Each head's value [K]: the mean over the first rows [E] of its episodes, in the rewards' units."""
        to_go = None if self.settings.horizon is None else torch.full((len(first),), self.settings.horizon)
        inputs = self._inputs(self.seen[first], to_go)
        each = torch.stack([self.target(inputs, action[first]) for action in self.action]).mean(0)  # [K, E]
        counts = self.counts[:, self.episode[first]].float()
        return self.scale * (each * counts).sum(1) / counts.sum(1).clamp(min=1.0)

    def outside(self) -> float:
        """The share of states in which the policy's pair is further from the data than 99% of the data's own from each other."""
        rng = np.random.default_rng(self.clock.seed)
        rows = rng.permutation(len(self.reward))[:PAIRS]
        pairs = np.concatenate((self.seen.numpy(), self.done.numpy()), 1)
        tree = cKDTree(pairs)
        own = tree.query(pairs[rows], k=[2])[0][:, 0]
        acted = self.action[rng.integers(len(self.action), size=len(rows)), rows].numpy()
        away = tree.query(np.concatenate((self.seen[rows].numpy(), acted), 1))[0]
        return float((away > np.quantile(own, FAR)).mean())
