"""TGDPO's claim: token weights from an earlier DPO policy do better than DPO, and better still when training goes on for long.

Strings with a known reward, 1000 pairs of which a quarter have the wrong label, ten epochs. TGDPO pays for its guide: one arm of
DPO has the updates of both stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.stages import Stages
from policyopt.learners.update import Adam
from policyopt.methods import dpo
from policyopt.methods.tgdpo import TokenGuidance, guided
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.preferences import Rankings
from policyopt.studies.claim import Claim, paired_difference
from policyopt.studies.preferences import Strings
from policyopt.types import Budget

GUIDE, UPDATES, BETA = 48, 160, 0.1
STRINGS = Bigrams(train_size=1000, flips=0.25)


def plain() -> OnPolicy:
    return replace(
        dpo.method(),
        collector=Rankings(prompts=64, held_out_prompts=0),
        objective=Preference(loss=Sigmoid(beta=BETA)),
        optimizer=Adam(learning_rate=1e-3),
    )


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Three epochs of DPO, then TGDPO under what they gave."""

    alpha: float = 0.5

    def __call__(self) -> Stages:
        return guided(plain(), TokenGuidance(alpha=self.alpha, beta=BETA), Budget(updates=GUIDE))


claim = Claim(
    slug="tgdpo",
    paper="2506.14574",
    text="After ten epochs on noisy labels TGDPO's policy earns a higher true reward than DPO's.",
    arms={
        "tgdpo": Strings(method=Guided(), budget=Budget(updates=GUIDE + UPDATES), problem=STRINGS),
        "dpo": Strings(method=plain, budget=Budget(updates=UPDATES), problem=STRINGS),
        "dpo, both budgets": Strings(method=plain, budget=Budget(updates=GUIDE + UPDATES), problem=STRINGS),
        "tgdpo, alpha 2": Strings(method=Guided(alpha=2.0), budget=Budget(updates=GUIDE + UPDATES), problem=STRINGS),
    },
    gates=(
        paired_difference("reward", "tgdpo", "dpo", above=0.0),
        paired_difference("reward", "tgdpo", "dpo, both budgets", above=0.0, required=False),
        paired_difference("best", "tgdpo", "dpo", above=0.0, required=False),
        paired_difference("reward", "tgdpo, alpha 2", "dpo", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{UPDATES} updates of 64 pairs an arm and seed, {GUIDE} before them for the guide",
    tuning="α = 0.5 as published; β = 0.1 and learning rate 1e-3 for all arms: one try on seed 100",
    axis="share of the budget",
)
