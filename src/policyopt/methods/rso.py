"""RSO: preference pairs from the policy that is to be learned, by statistical rejection sampling (arXiv 2309.06657).

The likelihood of the optimal policy π ∝ reference exp(r/β) wants pairs drawn from it. A reward model is fitted to the given
preferences; of N responses of the reference to each prompt, rejection sampling keeps n:

    sweep over the remaining candidates, accept c with probability exp((r_c - max r)/β); the maximum is that of the sweep's start

and pairs of them, labelled by the reward model, are learned from with z = γ h:

    method         -log σ(z), first-round pairs (n/2 disjoint ones)      tournament    winners go on: n - 1 pairs
    hinge          max(0, 1 - z)                                        slic          the hinge loss without a reference
    sft_samples    pairs of plain samples, none rejected                raft          imitation of each prompt's best sample

DPO on the given preferences is ``dpo``. The reward model is pointwise (Bradley-Terry), so a baseline response cancels. Equal
responses are kept apart: merging them, as the published listing does, biases the law where the response space is small.
Candidates are sampled at temperature 1 (0.7 with top-k 40 in the paper), so that they come from the reference itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any, ClassVar

import torch
from tensordict import TensorDict

from policyopt.credit.groups import Credit
from policyopt.credit.outcomes import Constant
from policyopt.learners.annotators import Reference
from policyopt.learners.gathering import Gathering, Learning
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.reward_model import BradleyTerry, Rewarded
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import sft
from policyopt.objectives.preference import Hinge, Likelihood, Preference, Sigmoid
from policyopt.rollouts.kept import Kept
from policyopt.rollouts.language import Groups
from policyopt.types import Budget, Rollouts, generator

FAMILY = "preferences"
VARIANTS = ("tournament", "hinge", "slic", "sft_samples", "raft")


def rejection_sample(rewards: Sequence[float], count: int, beta: float, rng: torch.Generator) -> list[int]:
    """Indices of ``count`` accepted candidates, in the order of acceptance (Algorithm 1, duplicates kept apart).

    β → ∞ accepts the first ones, β → 0 the best ones. Raises ValueError where there are fewer candidates than ``count``.
    """
    if count > len(rewards):
        raise ValueError(f"{count} of {len(rewards)} candidates can't be accepted: sample more of them")
    accepted: list[int] = []
    remaining = list(range(len(rewards)))
    while len(accepted) < count:
        most = max(rewards[c] for c in remaining)
        draws = torch.rand(len(remaining), generator=rng, dtype=torch.float64).tolist()
        swept = [c for c, u in zip(remaining, draws, strict=True) if u < exp((rewards[c] - most) / beta)]
        accepted += swept[: count - len(accepted)]
        taken = set(accepted)
        remaining = [c for c in remaining if c not in taken]
    return accepted


def first_round(rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Disjoint pairs (winner, loser) of neighbours; of an odd number the last is left out."""
    return [(i, i + 1) if rewards[i] >= rewards[i + 1] else (i + 1, i) for i in range(0, len(rewards) - 1, 2)]


def knockout(rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs (winner, loser) of a tournament in which winners go on until one is left: n - 1 of them."""
    players, pairs = list(range(len(rewards))), []
    while len(players) > 1:
        matches = [(players[i], players[i + 1]) for i in range(0, len(players) - 1, 2)]
        results = [(a, b) if rewards[a] >= rewards[b] else (b, a) for a, b in matches]
        pairs += results
        players = [winner for winner, _ in results] + players[2 * len(matches) :]
    return pairs


class Draws:
    """How many groups were drawn for: the next one's random stream."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


@dataclass(frozen=True, kw_only=True)
class RejectionSampled(Credit):
    """Of each group ``keep`` responses by rejection sampling on the reward, as pairs with the scores 1 and 0.

    beta None accepts all alike. ``knockout``: pairs of a tournament in the place of disjoint ones.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    keep: int = 8
    beta: float | None = 0.5
    knockout: bool = False
    seed: int = 0

    def memory(self) -> Draws:
        return Draws()

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        assert isinstance(memory, Draws)
        reward, winners_losers = batch.scores["reward"].tolist(), []
        for group in batch.group.unique().tolist():
            rows = (batch.group == group).nonzero().squeeze(1).tolist()
            rng = generator(self.seed, "rejection", memory.count)
            memory.count += 1
            own = [reward[row] for row in rows]
            kept = rejection_sample(own, self.keep, torch.inf if self.beta is None else self.beta, rng)
            pairs = (knockout if self.knockout else first_round)([own[k] for k in kept])
            winners_losers += [(rows[kept[a]], rows[kept[b]]) for a, b in pairs]
        return as_pairs(batch, winners_losers)


def as_pairs(batch: Rollouts, pairs: Sequence[tuple[int, int]]) -> Rollouts:
    """Rows (winner, loser) as groups of their own with the scores 1 and 0; pairs of equal responses are left out."""
    said = [row[:n] for row, n in zip(batch.actions.tolist(), batch.length.tolist(), strict=True)]
    kept = [row for pair in pairs if said[pair[0]] != said[pair[1]] for row in pair]
    rows = torch.tensor(kept, dtype=torch.int64, device=batch.mask.device)
    won = torch.tensor([1.0, 0.0], device=batch.mask.device).repeat(len(rows) // 2)
    return batch[rows].replace(
        group=torch.arange(len(rows), device=batch.mask.device) // 2, scores=TensorDict({"reward": won}, [len(rows)])
    )


@dataclass(frozen=True, kw_only=True)
class Best(Credit):
    """The best response of each group."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        order = batch.scores["reward"].argsort(descending=True, stable=True)
        order = order[batch.group[order].argsort(stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = batch.group[order][1:] != batch.group[order][:-1]
        return batch[order[first]]


def rejection_sampled(
    selection: Credit, training: OnPolicy, *, reward: Budget, gathering: Budget, prompts: int = 32, samples: int = 64
) -> Stages:
    """Fits a reward model, gathers samples of the policy as it was given, selects, and trains on what was selected."""
    sampler = Gathering(
        collector=Groups(prompts=prompts, samples=samples), annotators=(Reference(),), credit=(selection,)
    )
    return Stages(
        stages=(
            Stage(name="reward", method=BradleyTerry(), until=reward),
            Rewarded(name="gathering", method=sampler, until=gathering),
            Learning(name="training", method=training),
        )
    )


def on_pairs(objective: Preference) -> OnPolicy:
    """Learns from 64 of the selected pairs an update."""
    return OnPolicy(collector=Kept(groups=64), objective=objective)


def _stages(selection: Credit, training: OnPolicy) -> Stages:
    return rejection_sampled(selection, training, reward=Budget(updates=500), gathering=Budget(updates=125))


def method() -> Stages:
    return _stages(RejectionSampled(), on_pairs(Preference(loss=Sigmoid(beta=0.05))))


def tournament() -> Stages:
    return _stages(RejectionSampled(knockout=True), on_pairs(Preference(loss=Sigmoid(beta=0.05))))


def hinge() -> Stages:
    return _stages(RejectionSampled(), on_pairs(Preference(loss=Hinge(beta=0.05))))


def slic() -> Stages:
    return _stages(RejectionSampled(), on_pairs(Preference(score=Likelihood(), loss=Hinge(beta=0.05))))


def sft_samples() -> Stages:
    return _stages(RejectionSampled(beta=None), on_pairs(Preference(loss=Sigmoid(beta=0.05))))


def raft() -> Stages:
    imitation = replace(sft.method(), collector=Kept(groups=64), credit=(Constant(),))
    return _stages(Best(), imitation)
