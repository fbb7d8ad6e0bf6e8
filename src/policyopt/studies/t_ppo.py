"""T-PPO's claim: less time to a given accuracy than PPO that waits for whole responses, at no loss of final accuracy.

Running sums modulo 10, most of them short and some long. All arms are T-PPO with another window, from one warm-started policy
and one critic that was trained under it beforehand; with a window as long as a response it is PPO with a critic of its own.

Time is simulated: 1 for each position that the decoder steps through, however many slots are busy, and ``PER_TOKEN`` for each
token that goes through a network in training, former tokens of unfinished responses included. ``PER_TOKEN`` is what one core
takes for such a token, forward and backward, over what it takes for a position of 64 slots (57 µs and 9 ms).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

from policyopt import registry
from policyopt.learners.critic_training import CriticTraining
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import t_ppo
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.problems.language.arithmetic import Arithmetic, Chain
from policyopt.rollouts.evaluate import held_out
from policyopt.rollouts.windows import Windows
from policyopt.studies.claim import Claim, Metrics, paired_difference, paired_log_ratio
from policyopt.types import Clock, generator

SLOTS, LIMIT = 64, 48
PER_TOKEN = 0.006
TIME, LOOKS, TARGET = 1800.0, 18, 0.8
WARM_UP = 20  # updates of the critic before the first of the policy
LONGEST, MEAN_EXTRA = 12, 2.5


@lru_cache
def _sums(terms: int, seed: int) -> Arithmetic:
    return Arithmetic(operations="+", terms=terms, seed=seed, max_new_tokens=LIMIT)


@dataclass(frozen=True, kw_only=True)
class HeavyTailed(Arithmetic):
    """Sums of 2 terms and an exponentially distributed number more, at most 12."""

    operations: str = "+"
    terms: int | tuple[int, int] = (2, LONGEST)
    max_new_tokens: int = LIMIT
    evaluation_size: int = 512

    def chains(self, ids: Sequence[int], split: str = "train") -> list[Chain]:
        return [_sums(self._terms(i, split), self.seed).chains([i], split)[0] for i in ids]

    def _terms(self, index: int, split: str) -> int:
        extra = Random(f"terms {self.seed} {split} {index}").expovariate(1 / MEAN_EXTRA)
        return min(2 + int(extra), LONGEST)


def windowed(window: int, bootstrap: Any = "prev") -> OnPolicy:
    adam = Adam(learning_rate=5e-4)
    method = t_ppo.method()
    assert method.critic is not None
    return replace(
        method,
        collector=Windows(slots=SLOTS, window=window),
        critic=replace(method.critic, optimizer=adam),
        credit=(t_ppo.ExtendedAdvantage(bootstrap=bootstrap),),
        optimizer=adam,
        epochs=2,
        minibatches=2,
    )


def warmed(problem: Arithmetic, policy: LanguagePolicy, seed: int, updates: int) -> Any:
    """A critic trained under the initial policy: a start of critics."""
    whole = windowed(LIMIT)
    alone = CriticTraining(**{name: getattr(whole, name) for name in ("collector", "critic", "credit", "epochs")})
    learner = alone.learner(problem, policy, seed=seed + 1000)
    for _ in range(updates):
        learner.step()
    return learner.critic


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Training until the simulated time is over, with ``LOOKS`` looks at held-out accuracy on the way.

    ``longest`` cuts responses there for good: they are scored as they stand, and nothing continues them.
    """

    window: int
    bootstrap: str = "prev"
    longest: int | None = None

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        problem = HeavyTailed(seed=seed)
        policy = registry.policy("tiny", problem, seed=seed, device="cpu")
        method = windowed(self.window, self.bootstrap)
        start = warmed(problem, policy, seed, 1 if smoke else WARM_UP)
        assert method.critic is not None and isinstance(method.collector, Windows)
        collector = replace(method.collector, sampling=Sampling(max_new_tokens=self.longest))
        learner = replace(method, critic=replace(method.critic, start=start), collector=collector).learner(
            problem, policy, seed=seed
        )
        end, looks = (TIME / 40, 2) if smoke else (TIME, LOOKS)
        x, y = [0.0], [self._accuracy(policy, problem)]
        while x[-1] < end:
            while (now := spent_time(learner.clock, method.epochs)) < len(x) * end / looks:
                learner.step()
            x.append(now)
            y.append(self._accuracy(policy, problem))
        spent = learner.clock.spent
        return {
            "accuracy": sum(y[-3:]) / len(y[-3:]),
            "time to target": time_to(TARGET, x, y),
            "area": sum((b - a) * (u + v) / 2 for a, b, u, v in zip(x, x[1:], y, y[1:], strict=False)) / x[-1],
            "utilisation": spent["tokens"] / (SLOTS * spent["positions"]),
            "steps": spent["updates"],
            "trained tokens": method.epochs * spent["tokens"],
            "curve/x": x,
            "curve/accuracy": y,
        }

    def _accuracy(self, policy: LanguagePolicy, problem: Arithmetic) -> float:
        return float(held_out(policy, problem, generator(problem.seed, "looks"), 1, greedy=False).mean())


def spent_time(clock: Clock, epochs: int) -> float:
    """Positions decoded, and tokens through both networks: the policy's with their prefixes, the critic's without prompts."""
    spent = clock.spent
    trained = epochs * (spent.get("forward_tokens", 0.0) + spent.get("tokens", 0.0))
    return spent.get("positions", 0.0) + PER_TOKEN * trained


def time_to(target: float, x: Sequence[float], y: Sequence[float]) -> float:
    """When the curve first reaches ``target``, between looks by a straight line; the whole time where it never does."""
    for (a, u), (b, v) in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=True), strict=False):
        if v >= target:
            return max(a + (b - a) * (target - u) / (v - u) if v > u else b, 1.0)
    return x[-1]


claim = Claim(
    slug="t-ppo",
    paper="2506.15050",
    text="With windows of a sixth of the longest response T-PPO reaches a given accuracy in at most 1/1.2 of the simulated "
    "time that PPO on whole responses takes, and ends no more than 0.03 below it.",
    arms={
        "ppo": Timed(window=LIMIT),
        "t-ppo": Timed(window=8),
        "t-ppo, next value": Timed(window=8, bootstrap="next"),
        "cut for good": Timed(window=8, longest=8),
    },
    gates=(
        paired_log_ratio("time to target", "ppo", "t-ppo", above=1.2),
        paired_difference("accuracy", "t-ppo", "ppo", above=-0.03),
        paired_difference("utilisation", "t-ppo", "ppo", above=0.3, required=False),
        paired_difference("accuracy", "t-ppo", "cut for good", above=0.0, required=False),
        paired_log_ratio("time to target", "ppo", "t-ppo, next value", above=1.2, required=False),
    ),
    seeds=range(5),
    budget=f"{TIME:.0f} positions of simulated time an arm and seed, {SLOTS} slots; a run that never reaches {TARGET} counts "
    "with all of it",
    tuning="one setting for all arms (rate 5e-4, two epochs, two minibatches), target and time fixed beforehand, without a run",
    axis="simulated time (positions)",
)
