"""RSO's claim: pairs drawn by rejection sampling from the policy that is to be learned beat given pairs and plain samples.

Strings with a known reward. The given pairs come from random strings, the reference imitates better ones; the reward model is
fitted to the given pairs and is therefore imperfect. All arms take equally many steps on equally many pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policyopt.credit.groups import Credit
from policyopt.credit.outcomes import Constant
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.stages import Stages
from policyopt.learners.update import Adam
from policyopt.methods import dpo, rso, sft
from policyopt.methods.rso import Best, RejectionSampled
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.kept import Kept
from policyopt.rollouts.preferences import Rankings
from policyopt.studies.claim import Claim, paired_difference
from policyopt.studies.preferences import Strings
from policyopt.types import Budget

FITTING, GATHERING, UPDATES = 60, 6, 60
PROMPTS, SAMPLES, KEPT = 32, 32, 8
GAMMA, BETA = 0.1, 1.0
RANDOM = Bigrams(train_size=PROMPTS * GATHERING * KEPT // 2, skill=0.0)
BETTER = Bigrams(train_size=4000, skill=0.3)
ADAM = Adam(learning_rate=1e-3)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The three stages with a selection; with imitation of what is selected in the place of pairs."""

    selection: Credit
    imitation: bool = False

    def __call__(self) -> Stages:
        training: OnPolicy = replace(rso.on_pairs(Preference(loss=Sigmoid(beta=GAMMA))), optimizer=ADAM)
        if self.imitation:
            training = replace(sft.method(), collector=Kept(groups=64), credit=(Constant(),), optimizer=ADAM)
        made = rso.rejection_sampled(
            self.selection,
            training,
            reward=Budget(updates=FITTING),
            gathering=Budget(updates=GATHERING),
            prompts=PROMPTS,
            samples=SAMPLES,
        )
        first, *rest = made.stages
        fit = replace(
            first.method, collector=Rankings(prompts=64, held_out_prompts=0), optimizer=Adam(learning_rate=2e-3)
        )
        return replace(made, stages=(replace(first, method=fit), *rest))


def direct() -> OnPolicy:
    return replace(
        dpo.method(),
        collector=Rankings(prompts=64, held_out_prompts=0),
        objective=Preference(loss=Sigmoid(beta=GAMMA)),
        optimizer=ADAM,
    )


def arm(selection: Credit, imitation: bool = False) -> Strings:
    return Strings(
        method=Sampled(selection=selection, imitation=imitation),
        budget=Budget(updates=FITTING + GATHERING + UPDATES),
        problem=RANDOM,
        demonstrated=BETTER,
        looks=4,
    )


claim = Claim(
    slug="rso",
    paper="2309.06657",
    text="DPO's loss on pairs from statistical rejection sampling earns a higher true reward than on the given pairs and than on "
    "pairs of plain samples.",
    arms={
        "rso": arm(RejectionSampled(keep=KEPT, beta=BETA)),
        "given pairs": Strings(
            method=direct, budget=Budget(updates=UPDATES), problem=RANDOM, demonstrated=BETTER, looks=4
        ),
        "plain samples": arm(RejectionSampled(keep=KEPT, beta=None)),
        "raft": arm(Best(), imitation=True),
    },
    gates=(
        paired_difference("reward", "rso", "given pairs", above=0.0),
        paired_difference("reward", "rso", "plain samples", above=0.0),
        paired_difference("reward", "rso", "raft", above=0.0, required=False),
        paired_difference("within 5 nats", "rso", "plain samples", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{UPDATES} updates of 64 pairs an arm and seed on {RANDOM.train_size} pairs; {FITTING} of the reward model",
    tuning="one setting for all arms (rates 1e-3 and 2e-3, γ = 0.1, β = 1), fixed beforehand: one try an arm",
    axis="share of the budget",
)
