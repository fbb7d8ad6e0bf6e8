"""HyPO's claim: the divergence on the policy's own samples keeps DPO from what its data don't cover.

The bandits of RPO's study: five of twenty actions covered, the others bad. HyPO samples eight actions in each of 64 contexts a
step, whose reward is never looked at.
"""

from __future__ import annotations

from dataclasses import replace

from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import hypo
from policyopt.rollouts.bandit import LoggedPairs, Played
from policyopt.studies import rpo
from policyopt.studies.bandits import BanditArm
from policyopt.studies.claim import Claim, paired_difference

COEFFICIENT = 0.05


def arm(beta: float, linear_everywhere: bool = False) -> BanditArm:
    made = hypo.hybrid(LoggedPairs(), Played(prompts=64, samples=8), beta=beta, coefficient=COEFFICIENT)
    method: OnPolicy = replace(made, annotators=(Reference(),), optimizer=Adam(learning_rate=0.05, gradient_clip=None))
    return replace(rpo.arm(rpo.DPO, linear_everywhere), method=method)


claim = Claim(
    slug="hypo",
    paper="2406.01462",
    text="With preferences that cover a part of the actions, HyPO earns a higher true reward than DPO at a smaller reverse "
    "divergence from the reference.",
    arms={
        "hypo": arm(1.0),
        "dpo": rpo.arm(rpo.DPO),
        "hypo, beta 0.1": arm(0.1),
        "dpo, beta 0.1": rpo.arm(rpo.PLAIN_DPO),
        "hypo, linear everywhere": arm(1.0, linear_everywhere=True),
        "dpo, linear everywhere": rpo.arm(rpo.DPO, linear_everywhere=True),
    },
    gates=(
        paired_difference("reward", "hypo", "dpo", above=0.0),
        paired_difference("divergence", "hypo", "dpo", below=0.0),
        paired_difference("reward", "hypo, beta 0.1", "dpo, beta 0.1", above=0.0, required=False),
        paired_difference("divergence", "hypo, beta 0.1", "dpo, beta 0.1", below=0.0, required=False),
        paired_difference("covered", "hypo", "dpo", above=0.0, required=False),
        paired_difference("reward", "hypo, linear everywhere", "dpo, linear everywhere", above=0.0, required=False),
    ),
    seeds=range(10),
    budget=f"{rpo.UPDATES} updates on all 150 pairs an arm and seed, HyPO's with 512 online samples each",
    tuning="on seeds 100 and 101: β of DPO among 0.03, 0.1, 0.3, 1, 3, 10 (six tries); (β, λ) of HyPO among (0.1, 0.02), "
    "(0.1, 0.05), (0.1, 0.2), (0.1, 0.5), (1, 0.02), (1, 0.05), (1, 0.2) (seven)",
)
