"""INPO: the Nash policy of a preference game by online mirror descent, without estimating win rates (arXiv 2407.00617).

Preferences may be intransitive, so that no reward explains them. Each step samples pairs from the present policy π_t, asks
for one binary preference a pair, and minimises

    ( h_t - 1/(2η) )²,   h_t = Δ log π - (τ/η) Δ log reference - (1 - τ/η) Δ log π_t,   Δ = chosen minus rejected,

whose minimiser is the mirror-descent step π_{t+1} ∝ exp(P(y ≻ π_t)/η) reference^(τ/η) π_t^(1 - τ/η). One learner step is one
such iteration: ``epochs`` and ``minibatches`` say how the squared loss is minimised. Pairs of earlier iterations would bias it.

    method         two samples a prompt, one drawn label
    best_worst     the best and the worst of eight by reward, as in the paper's experiments (departs from the derivation)
    tournament     of eight by pairwise preferences: winners meet winners, losers losers; the last two are compared once more
    no_divergence  τ = 0: the reference drops out

η = 0.5 and τ = η/5 suit responses whose log-ratios are of order one; the paper's 8B model has η = 0.005, τ = η/3.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from tensordict import TensorDict

from policyopt.credit.groups import Credit
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.models.language import LanguagePolicy
from policyopt.objectives.preference import Preference, Square
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import BestAndWorst, LabelledPairs
from policyopt.types import Clock, Collected, Collector, Rollouts

FAMILY = "preferences"
VARIANTS = ("best_worst", "tournament", "no_divergence")


@dataclass(frozen=True, kw_only=True)
class MixedReference(Credit):
    """``ref_logp`` ← share · reference + (1 - share) · the policy that sampled: the centre of the mirror-descent step."""

    needs: ClassVar[tuple[str, ...]] = ("ref_logp", "behaviour_logp")
    gives: ClassVar[tuple[str, ...]] = ("ref_logp",)
    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"the reference's share τ/η lies from 0 to 1, got {self.share}")

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(ref_logp=self.share * batch.ref_logp + (1.0 - self.share) * batch.behaviour_logp)


def play_tournament(size: int, beats: Callable[[list[int], list[int]], list[bool]]) -> tuple[int, int, bool]:
    """(best, worst, whether the best wins their last match) of ``size`` = 2^n players.

    ``beats(a, b)`` plays a[i] against b[i]. After the first round winners play winners and losers play losers.
    """
    winners, losers = _round(list(range(size)), beats)
    while len(winners) > 1:
        winners, _ = _round(winners, beats)
        _, losers = _round(losers, beats)
    return winners[0], losers[0], beats(winners, losers)[0]


def _round(players: list[int], beats: Callable[[list[int], list[int]], list[bool]]) -> tuple[list[int], list[int]]:
    first, second = players[::2], players[1::2]
    won = beats(first, second)
    winners = [a if w else b for a, b, w in zip(first, second, won, strict=True)]
    losers = [b if w else a for a, b, w in zip(first, second, won, strict=True)]
    return winners, losers


@dataclass(frozen=True, kw_only=True)
class Tournament(Groups):
    """Best and worst of each prompt's ``samples`` = 2^n responses by drawn preferences; a prompt whose winner loses the
    last match is left out (ties go to the first)."""

    samples: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.samples & (self.samples - 1):
            raise ValueError(f"a tournament needs 2, 4, 8, … samples a prompt, got {self.samples}")

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        collected = super().__call__(policy, problem, clock)
        batch, rng = collected.batches["rollouts"], clock.generator("tournament")
        texts = policy.decode(batch.actions, batch.length)
        rows: list[int] = []
        for start in range(0, len(batch), self.samples):
            prompt, own = int(batch.prompt_id[start]), texts[start : start + self.samples]

            def beats(a: list[int], b: list[int], prompt: int = prompt, own: list[str] = own) -> list[bool]:
                chance = problem.preferred([prompt] * len(a), [own[i] for i in a], [own[i] for i in b])
                won: list[bool] = (torch.rand(len(a), generator=rng) < chance).tolist()
                return won

            best, worst, holds = play_tournament(self.samples, beats)
            rows += [start + best, start + worst] if holds and own[best] != own[worst] else []
        if not rows:
            raise ValueError("no prompt's winner won its last match: give more prompts a step")
        return Collected({"rollouts": _decided(batch[torch.tensor(rows)])}, collected.metrics)


def _decided(pairs: Rollouts) -> Rollouts:
    won = torch.tensor([1.0, 0.0], device=pairs.mask.device).repeat(len(pairs) // 2)
    return pairs.replace(scores=TensorDict({**dict(pairs.scores.items()), "reward": won}, [len(pairs)]))


def mirror_descent(collector: Collector, eta: float, tau: float) -> OnPolicy:
    """One iteration a step, by four passes over what was sampled."""
    if not 0.0 <= tau <= eta:
        raise ValueError(f"mirror descent needs 0 <= tau <= eta, got tau={tau} and eta={eta}")
    return OnPolicy(
        collector=collector,
        annotators=(Reference(),),
        credit=(MixedReference(share=tau / eta),),
        objective=Preference(loss=Square(beta=eta)),
        epochs=4,
        minibatches=4,
    )


def method() -> OnPolicy:
    return mirror_descent(LabelledPairs(prompts=256, samples=2), eta=0.5, tau=0.1)


def best_worst() -> OnPolicy:
    return replace(method(), collector=BestAndWorst(prompts=64, samples=8))


def tournament() -> OnPolicy:
    return replace(method(), collector=Tournament(prompts=64, samples=8))


def no_divergence() -> OnPolicy:
    return mirror_descent(LabelledPairs(prompts=256, samples=2), eta=0.5, tau=0.0)
