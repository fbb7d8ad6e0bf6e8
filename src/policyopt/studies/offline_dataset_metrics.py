"""The claim of the data set measures: quality says how well imitation will do, coverage how well value learning will do.

A tabular online learner on a grid of four rooms gives five data sets a seed, all of the same size: random actions, random
and then expert actions, what the learner saw, its final policy with a fifth of random actions, and its final policy. BC,
DQN, BCQ and CQL learn from each. Their performance (0: the random data's return, 100: the learner's best) is related over
all data sets to trajectory quality TQ and coverage SACo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from policyopt.learners.off_policy import OffPolicy, Round
from policyopt.learners.update import Adam
from policyopt.methods import dqn
from policyopt.methods.offline_dataset_metrics import mixed, performance, summary
from policyopt.models.choices import Choices
from policyopt.problems.control.environments import Array, Transition, episode_returns
from policyopt.problems.control.four_rooms import SIZE, FourRooms, Walkers
from policyopt.rollouts.logs import logged
from policyopt.studies.claim import Claim, Effect, Gate, Metrics, Results, paired_difference
from policyopt.types import Transitions, generator

STEPS, UPDATES, EVALUATIONS = 1000, 1500, 5
GAMMA, POLYAK = 0.95, 0.05
EXPLORATION, BACKUPS = 0.1, 10
SETS = ("random", "mixed", "replay", "noisy", "expert")


class TabularLearner:
    """Optimistic Q-learning that goes over what it has seen; random choices with the probability of ``exploration``."""

    def __init__(self, values: Array, exploration: float, seed: int) -> None:
        self.values, self.exploration, self.rng = values, exploration, np.random.default_rng([seed, 1])
        self.seen: dict[tuple[int, ...], tuple[float, tuple[int, ...] | None]] = {}

    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Choices [N]."""
        values = self.values[tuple(cells(observation.numpy()).T)]
        best = (values + 1e-6 * self.rng.random(values.shape)).argmax(-1)  # ties are broken at random
        explores = self.rng.random(len(best)) < (0.0 if greedy else self.exploration)
        return torch.from_numpy(np.where(explores, self.rng.integers(4, size=len(best)), best)), {}, memory

    def learn(self, place: Array, action: int, result: Transition) -> None:
        """From one transition, and from some of those before it again."""
        key = (*place.tolist(), action)
        following = None if result.terminated[0] else tuple(cells(result.next_observations)[0].tolist())
        self.seen[key] = float(result.rewards[0]), following
        keys = list(self.seen)
        for one in [key, *(keys[i] for i in self.rng.integers(len(keys), size=BACKUPS))]:
            reward, after = self.seen[one]
            self.values[one] = reward + (0.0 if after is None else GAMMA * self.values[after].max())


class Taught(Walkers):
    """A walker that tells a learner of its steps."""

    learner: TabularLearner

    def step(self, actions: Array) -> Transition:
        place = self.cell[0].copy()
        result = super().step(actions)
        self.learner.learn(place, int(actions[0]), result)
        return result


@dataclass(frozen=True, kw_only=True)
class Teaching(FourRooms):
    """Rooms in which every step that is logged teaches ``learner``."""

    learner: TabularLearner

    def make(self, n: int, seed: int) -> Walkers:
        made = Taught(n, seed)
        made.learner = self.learner
        return made


@dataclass(frozen=True, kw_only=True)
class FromLog(FourRooms):
    """The problem with a data set."""

    data: Transitions

    def transitions(self) -> Transitions:
        return self.data


def cells(observation: Array) -> Array:
    """Observations [N, S] → (row, column) [N, 2]."""
    return np.stack(np.divmod(observation.argmax(1), SIZE), 1)


def success(act: Callable[..., Any], episodes: int, seed: int) -> float:
    """The share of episodes that reach the corner."""
    returns, _ = episode_returns(FourRooms().make(episodes, 2**20 + seed), act, generator(seed, "play"))
    return float(returns.mean())


@cache
def data_sets(seed: int, steps: int) -> tuple[dict[str, Transitions], float]:
    """The five data sets, and the online learner's best return in evaluations of ten greedy episodes."""
    learner, evaluations, done = TabularLearner(np.ones((SIZE, SIZE, 4)), EXPLORATION, seed), [0.0], 0

    def evaluate(moved: int) -> None:
        nonlocal done
        done += moved
        if done % (steps // 10) == 0:
            evaluations.append(success(learner.act, 10, seed))

    def played(policy: TabularLearner, problem: FourRooms, progress: Callable[[int], None]) -> Transitions:
        return logged(policy, problem, steps, seed, generator(seed, "log"), progress)

    replay = played(learner, Teaching(learner=learner), evaluate)
    random, noisy, expert = (
        played(TabularLearner(learner.values, share, 100 * seed + i), FourRooms(), lambda _: None)
        for i, share in enumerate((1.0, 0.2, 0.0))
    )
    made = {"random": random, "mixed": mixed(random, expert), "replay": replay, "noisy": noisy, "expert": expert}
    return made, max(evaluations)


@dataclass(frozen=True, kw_only=True)
class OnEach:
    """A method on each of the five data sets of a seed."""

    method: OffPolicy

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        sets, best = data_sets(seed, 300 if smoke else STEPS)
        random = float(summary(sets["random"]).returns.mean())
        found: dict[str, float | list[float]] = {}
        for name, data in sets.items():
            measured = summary(data, random, best, sets["replay"])
            found |= {f"{name}/TQ": measured.quality, f"{name}/SACo": measured.coverage}
            curve = self.trained(data, seed, 20 if smoke else UPDATES)
            found[f"{name}/P"] = performance(curve[None], random, best)
            found[f"{name}/last"] = performance(curve[None, -1:], random, best)
        found["robust"] = float(np.mean([found[f"{name}/P"] for name in ("expert", "noisy", "replay")]))
        return found

    def trained(self, data: Transitions, seed: int, updates: int) -> Array:
        """The shares of successes in five evaluations while it learns; those that act by an actor sample it."""
        learner, shares = self.method.learner(FromLog(data=data), seed=seed), []
        for _ in range(EVALUATIONS):
            for _ in range(updates // EVALUATIONS):
                learner.step()
            shares.append(success(lambda seen, memory, rng, _: learner.policy.act(seen, memory, rng), 50, seed))
        return np.array(shares)


def reduced(method: OffPolicy) -> OffPolicy:
    """The method with two layers of 64 units, batches of 64, a rate of 1e-3 and the discount of the online learner."""
    adam, model = Adam(learning_rate=1e-3, gradient_clip=None), Choices(width=64, layers=2)
    updates: list[Any] = [replace(update, optimizer=adam, model=model) for update in method.updates()]  # type: ignore[call-arg]
    updates = [replace(u, gamma=GAMMA, polyak=POLYAK) if isinstance(u, dqn.DoubleQ) else u for u in updates]
    return replace(method, rounds=(Round(updates=tuple(updates)),), batch=64)


def rank_correlation(results: Results, arm: str, measure: str, seeds: Array) -> float:
    """Spearman's, of performance with a measure, over the data sets of all ``seeds`` (indices, with repetition)."""
    columns = [[results.values(f"{name}/{what}", arm)[seeds] for name in SETS] for what in ("P", measure)]
    performances, measures = (np.concatenate(column) for column in columns)
    constant = np.ptp(performances) == 0 or np.ptp(measures) == 0
    return 0.0 if constant else float(spearmanr(performances, measures).statistic)


def correlation_gate(
    text: str, statistic: Callable[[Results, Array], float], arms: tuple[str, ...], above: float
) -> Gate:
    """``statistic`` over all data sets lies above a threshold; its interval is a bootstrap over data set seeds."""

    def test(results: Results) -> Effect:
        count = len(results.of(arms[0]))
        draws = np.random.default_rng(0).integers(count, size=(BOOTSTRAPS, count))
        low, high = np.quantile([statistic(results, draw) for draw in draws], (0.025, 0.975))
        passed = True if low > above else False if high < above else None
        estimate = statistic(results, np.arange(count))
        return Effect(estimate=estimate, low=float(low), high=float(high), level=0.95, passed=passed)

    return Gate(name=text, text=f"{text}, over all data sets", test=test, metric="expert/P", arms=arms)


def quality_and_cloning(results: Results, seeds: Array) -> float:
    return rank_correlation(results, "BC", "TQ", seeds)


def coverage_and_values(results: Results, seeds: Array) -> float:
    return rank_correlation(results, "DQN", "SACo", seeds) - rank_correlation(results, "BC", "SACo", seeds)


def constrained_and_free(results: Results, seeds: Array) -> float:
    constrained = [results.values("robust", arm)[seeds].mean() for arm in ("BCQ", "CQL")]
    return float(np.mean(constrained) - results.values("robust", "DQN")[seeds].mean())


def figure(results: Results) -> Figure:
    """Performance over quality and over coverage, one point a data set."""
    drawn = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = drawn.subplots(2, len(results.arms), sharey=True)
    for i, measure in enumerate(("TQ", "SACo")):
        for one, arm in zip(axes[i], results.arms, strict=True):
            for name in SETS:
                x, y = (results.values(f"{name}/{what}", arm) for what in (measure, "P"))
                one.scatter(x, y, s=14, label=name)
            one.set(xlabel=measure, title=arm if i == 0 else "")
        axes[i, 0].set_ylabel("performance")
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SETS), frameon=False)
    return drawn


BOOTSTRAPS = 1000

claim = Claim(
    slug="offline-dataset-metrics",
    paper="2111.04714",
    text=(
        "Over data sets of different origin, cloning does as well as trajectory quality says, learning values needs coverage, "
        "and methods that keep to the data do better than DQN where quality or coverage is high."
    ),
    arms={
        "BC": OnEach(method=reduced(dqn.bc())),
        "DQN": OnEach(method=reduced(dqn.method())),
        "BCQ": OnEach(method=reduced(dqn.bcq())),
        "CQL": OnEach(method=reduced(dqn.cql())),
    },
    gates=(
        correlation_gate("rank correlation of BC's performance with TQ > 0.5", quality_and_cloning, ("BC",), 0.5),
        correlation_gate("rank correlation with SACo: DQN's − BC's > 0", coverage_and_values, ("DQN", "BC"), 0.0),
        correlation_gate(
            "performance on expert, noisy and replay: BCQ and CQL − DQN > 0",
            constrained_and_free,
            ("BCQ", "CQL", "DQN"),
            0.0,
        ),
        paired_difference("expert/P", "BC", "DQN", above=0.0, required=False),
    ),
    seeds=range(5),
    budget="1000 logged transitions and 1500 updates with batches of 64 a method, data set and seed",
    tuning=(
        "one setting for all methods: on seed 100, observations (coordinates, one-hot cells) and the rate of the targets (0.01, "
        "0.05, 0.2) were settled so that DQN solves the replay within the budget; the grid and the size of the data sets by "
        "their measures, on seeds 100 to 102, so that random actions cover about 0.6 of what the online learner saw"
    ),
    figure=figure,
)
