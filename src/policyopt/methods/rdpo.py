"""rDPO: DPO that is unbiased under a known rate of flipped labels (arXiv 2403.00409).

With L±(h) = -log σ(±β h) and a share ε < 1/2 of the labels flipped,

    loss = mean of [(1 - ε) L+ - ε L-] / (1 - 2ε) = L+ - ε/(1 - 2ε) β h,

whose expectation over the flips is DPO's loss on clean labels: DPO with a bonus linear in the margin. Label smoothing (cDPO)
is biased. ε is taken as known; the loss is unbounded below, so few pairs, a large network and many epochs need early stopping
or weight decay.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import dpo
from policyopt.objectives.preference import PairLoss, Preference, robust_loss

FAMILY = "preferences"


@dataclass(frozen=True, kw_only=True)
class Robust(PairLoss):
    """DPO's loss corrected for a share ``flip`` of flipped labels. Raises ValueError where it isn't below one half."""

    flip: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.flip < 0.5:
            raise ValueError(f"flip is the share of flipped labels, from 0 to below 0.5, got {self.flip}")

    def pair(self, difference: Tensor) -> Tensor:
        return robust_loss(self.beta * difference, self.flip)


def method() -> OnPolicy:
    return replace(dpo.method(), objective=Preference(loss=Robust(beta=0.1, flip=0.1)))
