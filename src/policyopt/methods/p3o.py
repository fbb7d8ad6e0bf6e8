"""P3O: policy gradients on the reward difference of two responses, unmoved by what a prompt adds to rewards (arXiv 2310.00212).

Two responses a prompt; with sequence quantities l = log π - log reference, old ones at sampling, and ratios w = π/π_old,

    q = sg[ r₁ - r₂ - β (l₁ - l₂) ]      the regularized difference, with the CURRENT policy
    separate (V1)   ½ [ max(-q C(w₂) w₁, -q C(w₂) clip(w₁)) + max(q C(w₁) w₂, q C(w₁) clip(w₂)) ]
    method   (V2)   ½ max(-q W d, -q W clamp(d, d_old ± ε)),   d = l₁ - l₂,   W = sg C(w₁ w₂)
    token_clip      V2 with the clamp on each token's log-probability, a mean over the tokens of both responses

C clamps to [1/c, c], without gradient. A reward model is defined up to a constant of the prompt: it cancels in q. Rewards are
divided by the running deviation of reward DIFFERENCES, which a prompt's constant does not move (the authors' code: of rewards).
More than two samples a prompt are all their pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit, group_mean
from policyopt.credit.scaling import RewardMoments, with_scores
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.objectives.policy_gradient import Objective, TokenMean, divergences
from policyopt.objectives.preference import ranked_rows
from policyopt.parallel import all_sum
from policyopt.rollouts.language import Groups
from policyopt.types import Loss, Outputs, Part, Rollouts

FAMILY = "language"
VARIANTS = ("separate", "token_clip")


def guarded(ratio: Tensor, guard: float) -> Tensor:
    """C: the ratio within [1/c, c], without gradient."""
    return ratio.detach().clamp(1.0 / guard, guard)


def larger(plain: Tensor, clipped: Tensor) -> tuple[Tensor, Tensor]:
    """The pessimistic one of both losses, and 1.0 where that is the clipped one."""
    return torch.maximum(plain, clipped), (clipped > plain).float()


def separate_loss(q: Tensor, ratio: tuple[Tensor, Tensor], clip: float, guard: float) -> tuple[Tensor, Tensor]:
    """V1 of each pair, and which share of it is clipped: q and both ratios have one shape."""
    first, second = ratio
    near = [w.clamp(1.0 - clip, 1.0 + clip) for w in ratio]
    left, right = -q * guarded(second, guard), q * guarded(first, guard)
    one, two = larger(left * first, left * near[0]), larger(right * second, right * near[1])
    return 0.5 * (one[0] + two[0]), 0.5 * (one[1] + two[1])


def joint_loss(q: Tensor, difference: Tensor, old_difference: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """V2 of each pair, ½ max(-q W d, -q W clamp(d, d_old ± ε)), and whether it is clipped; W = C(w₁ w₂) has to be in q."""
    near = torch.minimum(torch.maximum(difference, old_difference - clip), old_difference + clip)
    value, clipped = larger(-q * difference, -q * near)
    return 0.5 * value, clipped


@dataclass(frozen=True, kw_only=True)
class PairClip(Part):
    """The loss of pairs (i, j), summed over their rows: ``logp`` and ``old`` [N, T] are log-probabilities, zero outside the
    mask; q [M], i and j [M] row indices. → the losses [M], and how much of each is clipped [M], in what ``divisor`` counts."""

    clip: float = 0.2
    guard: float = 10.0

    def __call__(self, q: Tensor, logp: Tensor, old: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def divisor(self, batch: Rollouts, pairs: int) -> float:
        """What the sum over the minibatch is divided by: its pairs."""
        return float(pairs)


@dataclass(frozen=True, kw_only=True)
class Separate(PairClip):
    """V1: each response's ratio is clipped by itself."""

    def __call__(self, q: Tensor, logp: Tensor, old: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        ratio = (logp - old).sum(1).clamp(-20.0, 20.0).exp()
        return separate_loss(q, (ratio[i], ratio[j]), self.clip, self.guard)


@dataclass(frozen=True, kw_only=True)
class Joint(PairClip):
    """V2: the difference of the log-ratios is clipped."""

    def __call__(self, q: Tensor, logp: Tensor, old: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        change = (logp - old).sum(1)
        weight = guarded((change[i] + change[j]).clamp(-20.0, 20.0).exp(), self.guard)
        total, before = logp.sum(1), old.sum(1)
        return joint_loss(q * weight, total[i] - total[j], before[i] - before[j], self.clip)


@dataclass(frozen=True, kw_only=True)
class TokenClip(PairClip):
    """V2 with the clamp on every token's log-probability; divided by the tokens of both responses."""

    def __call__(self, q: Tensor, logp: Tensor, old: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        change = (logp - old).sum(1)
        weight = (q * guarded((change[i] + change[j]).clamp(-20.0, 20.0).exp(), self.guard))[:, None]
        near = torch.minimum(torch.maximum(logp, old - self.clip), old + self.clip)
        first, one = larger(-weight * logp[i], -weight * near[i])
        second, two = larger(weight * logp[j], weight * near[j])
        return (first + second).sum(1), (one + two).sum(1)

    def divisor(self, batch: Rollouts, pairs: int) -> float:
        size = len(batch) and 2 * pairs / len(batch)  # pairs that a row is in
        return float(batch.mask.sum()) * size


@dataclass(frozen=True, kw_only=True)
class PairwisePolicyGradient(Objective):
    """The mean over all pairs of each prompt's responses of a clipped loss of their regularized reward difference."""

    whole_groups: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("scores", "group", "ref_logp", "behaviour_logp")
    clip: PairClip = Joint()
    beta: float = 0.05

    def prepare(self, batch: Rollouts) -> Rollouts:
        lists = ranked_rows(batch)
        pairs = len(lists) * lists.shape[1] * (lists.shape[1] - 1) // 2
        share = 1.0 / float(all_sum(torch.tensor(self.clip.divisor(batch, pairs))))
        counts = TokenMean()(batch)
        return batch.replace(share=torch.stack([torch.full_like(counts, share), counts], -1))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        assert outputs.logp is not None
        logp, old = outputs.logp * batch.mask, (batch.old_logp if batch.old_logp is not None else batch.behaviour_logp)
        old = old * batch.mask
        lists = ranked_rows(batch)
        a, b = torch.triu_indices(lists.shape[1], lists.shape[1], 1, device=lists.device)
        i, j = lists[:, a].flatten(), lists[:, b].flatten()
        ratio = logp.detach().sum(1) - (batch.ref_logp * batch.mask).sum(1)
        reward = batch.scores["reward"]
        q = reward[i] - reward[j] - self.beta * (ratio[i] - ratio[j])
        loss, clipped = self.clip(q, logp, old, i, j)
        value = (batch.share[i, 0, 0] * loss).sum()
        metrics = {
            "loss/policy": value.detach(),
            "policy/clip_fraction": (batch.share[i, 0, 0] * clipped).sum(),
            **divergences(outputs.logp.detach(), batch, batch.share[..., 1]),
        }
        return Loss(value, metrics)


@dataclass(frozen=True, kw_only=True)
class DifferenceScaling(Credit):
    """reward / running deviation of the rewards from their prompt's mean (with the factor of the group's size)."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    gives: ClassVar[tuple[str, ...]] = ("scores",)

    def memory(self) -> RewardMoments:
        return RewardMoments()

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        assert isinstance(memory, RewardMoments)
        reward = batch.scores["reward"]
        memory.add(reward - group_mean(reward, batch.group))
        size = len(batch) / len(batch.group.unique())
        variance = float(memory.state["squares"] / memory.state["count"]) * size / (size - 1)
        return with_scores(batch, reward=reward / max(variance**0.5, 1e-6))


def pairwise(clip: PairClip) -> OnPolicy:
    """Pairs of responses, four passes over a batch, clipped by ``clip``."""
    return OnPolicy(
        collector=Groups(prompts=64, samples=2),
        annotators=(Reference(),),
        credit=(DifferenceScaling(),),
        objective=PairwisePolicyGradient(clip=clip),
        epochs=4,
        minibatches=4,
    )


def method() -> OnPolicy:
    return pairwise(Joint())


def separate() -> OnPolicy:
    return pairwise(Separate())


def token_clip() -> OnPolicy:
    return pairwise(TokenClip())
