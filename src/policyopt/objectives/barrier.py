"""The interior-point penalty of constrained policy optimization (IPO, arXiv 1910.09615) on returns that must be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from policyopt.objectives.policy_gradient import PolicyGradient, log_ratio
from policyopt.types import Loss, Outputs, Rollouts


def log_barrier(ratio: Tensor, gain: Tensor, margin: Tensor, t: float, floor: float = 1e-3) -> Tensor:
    """-(1/t) Σ_j log(max(margin_j + mean((ratio - 1) gain_j), floor)), the interior-point penalty.

    ratio [B] (clipped), gain [B, J], margin [J] = G_j - bound_j of the policy that collected. With gain_j = G_j this is the
    margin of ratio · G_j. Below ``floor`` there is no gradient: a constraint that is broken is not mended.
    """
    slack = margin + ((ratio - 1.0)[:, None] * gain).mean(0)
    return -slack.clamp(min=floor).log().sum() / t


@dataclass(frozen=True, kw_only=True)
class Barrier(PolicyGradient):
    """PPO's loss and the log barrier of constraints: ``scores["gain"]`` and ``scores["margin"]`` [N, J] of single steps
    (the margin is the same in all rows), on whole minibatches."""

    needs: ClassVar[tuple[str, ...]] = ("advantage", "scores")
    t: float = 20.0
    clip: float = 0.2

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        assert outputs.logp is not None and batch.share is not None
        if float(batch.share[..., 1].sum()) < 1.0 - 1e-3:
            raise ValueError("the barrier needs a whole minibatch at once: set micro_batch to the minibatch or more")
        loss = super().__call__(outputs, batch)
        ratio = log_ratio(outputs.logp, batch).exp().clamp(1.0 - self.clip, 1.0 + self.clip)[:, 0]
        barrier = log_barrier(ratio, batch.scores["gain"], batch.scores["margin"][0], self.t)
        return Loss(loss.value + barrier, {**loss.metrics, "loss/barrier": barrier.detach()})
