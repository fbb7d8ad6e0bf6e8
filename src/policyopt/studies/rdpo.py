"""rDPO's claim: where labels are flipped at a known rate, its correction learns a better policy than DPO and label smoothing.

Log-linear policies on bandits with a linear true reward, 1000 logged comparisons. Every quantity is exact. Without flips
all three losses are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import dpo
from policyopt.methods.rdpo import Robust
from policyopt.models.log_linear import LogLinearPolicy
from policyopt.objectives.preference import ListLoss, Preference, Sigmoid
from policyopt.problems.decision.bandit import Bandit
from policyopt.rollouts.bandit import LoggedPairs
from policyopt.studies.bandits import BanditArm, linear
from policyopt.studies.claim import Claim, Metrics, paired_difference

BETA, UPDATES = 0.1, 400
DECAY = 0.01


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The bandit of a seed, its labels flipped at a rate."""

    flips: float

    def __call__(self, seed: int) -> Bandit:
        return linear(seed, pairs=1000, flips=self.flips)


def measure(bandit: Bandit, policy: LogLinearPolicy) -> Metrics:
    probability = policy().detach()
    greedy = bandit.reward.gather(1, probability.argmax(1, keepdim=True)).mean()
    return {
        "reward": float(bandit.value(probability)),
        "greedy reward": float(greedy),
        "divergence": float(bandit.divergence(probability)),
    }


def arm(loss: ListLoss, flips: float) -> BanditArm:
    method: OnPolicy = replace(
        dpo.method(),
        collector=LoggedPairs(),
        annotators=(Reference(),),
        objective=Preference(loss=loss),
        optimizer=Adam(learning_rate=0.2, weight_decay=DECAY, gradient_clip=None),
    )
    return BanditArm(problem=Draw(flips=flips), method=method, updates=UPDATES, measure=measure)


def arms(flips: float) -> dict[str, BanditArm]:
    return {
        f"rdpo, {flips:.0%} flipped": arm(Robust(beta=BETA, flip=flips), flips),
        f"dpo, {flips:.0%} flipped": arm(Sigmoid(beta=BETA), flips),
        f"cdpo, {flips:.0%} flipped": arm(Sigmoid(beta=BETA, smoothing=flips), flips),
    }


claim = Claim(
    slug="rdpo",
    paper="2403.00409",
    text="With 40% of the labels flipped, rDPO's policy earns a higher true reward than DPO's and than label smoothing's.",
    arms={**arms(0.4), **arms(0.2), **arms(0.0)},
    gates=(
        paired_difference("reward", "rdpo, 40% flipped", "dpo, 40% flipped", above=0.0),
        paired_difference("reward", "rdpo, 40% flipped", "cdpo, 40% flipped", above=0.0),
        paired_difference("reward", "rdpo, 20% flipped", "dpo, 20% flipped", above=0.0, required=False),
        paired_difference("reward", "rdpo, 0% flipped", "dpo, 0% flipped", above=-1e-9, required=False),
    ),
    seeds=range(12),
    budget="400 full-batch updates on 1000 pairs an arm and seed",
    tuning="one setting for all arms, learning rate 0.2 and weight decay 0.01: one try on seed 100",
)
