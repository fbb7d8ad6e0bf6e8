"""RPO's claim: where preferences cover few actions, imitating the chosen ones keeps DPO from over-optimizing the others.

Log-linear policies on bandits of which the data, and mostly the reference, know five of twenty actions in each context; the
others are bad, which nothing says. As a counter-case the reward is linear everywhere, so that extrapolating is right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import dpo, rpo
from policyopt.models.log_linear import LogLinearPolicy
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.decision.bandit import Bandit
from policyopt.rollouts.bandit import LoggedPairs
from policyopt.studies.bandits import BanditArm, covered_mass, partly_covered
from policyopt.studies.claim import Claim, Metrics, paired_difference

UPDATES = 1000


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The bandit of a seed."""

    linear_everywhere: bool = False

    def __call__(self, seed: int) -> Bandit:
        return partly_covered(seed, linear_everywhere=self.linear_everywhere)


def measure(bandit: Bandit, policy: LogLinearPolicy) -> Metrics:
    probability, logp = policy().detach(), policy.log_probability().detach()
    context, winner, _ = bandit.pairs.unbind(1)
    return {
        "reward": float(bandit.value(probability)),
        "divergence": float(bandit.divergence(probability)),
        "log-probability of the chosen": float(logp[context, winner].mean()),
        "covered": covered_mass(probability),
    }


def arm(objective: Preference, linear_everywhere: bool = False) -> BanditArm:
    method: OnPolicy = replace(
        dpo.method(),
        collector=LoggedPairs(),
        annotators=(Reference(),),
        objective=objective,
        optimizer=Adam(learning_rate=0.05, gradient_clip=None),
    )
    draw = Draw(linear_everywhere=linear_everywhere)
    return BanditArm(problem=draw, method=method, updates=UPDATES, measure=measure)


DPO, RPO = Preference(loss=Sigmoid(beta=1.0)), rpo.cumulative(eta=0.5, beta=0.3)
PLAIN_DPO, PLAIN_RPO = Preference(loss=Sigmoid(beta=0.1)), rpo.cumulative(eta=0.5, beta=0.1)

claim = Claim(
    slug="rpo",
    paper="2405.16436",
    text="With preferences that cover a part of the actions, adding the likelihood of the chosen ones gives DPO a higher true "
    "reward and keeps their log-probability from falling.",
    arms={
        "rpo": arm(RPO),
        "dpo": arm(DPO),
        "rpo, beta 0.1": arm(PLAIN_RPO),
        "dpo, beta 0.1": arm(PLAIN_DPO),
        "rpo, linear everywhere": arm(RPO, linear_everywhere=True),
        "dpo, linear everywhere": arm(DPO, linear_everywhere=True),
    },
    gates=(
        paired_difference("reward", "rpo", "dpo", above=0.0),
        paired_difference("log-probability of the chosen", "rpo", "dpo", above=0.0),
        paired_difference("reward", "rpo, beta 0.1", "dpo, beta 0.1", above=0.0, required=False),
        paired_difference("covered", "rpo", "dpo", above=0.0, required=False),
        paired_difference("divergence", "rpo", "dpo", below=0.0, required=False),
        paired_difference("reward", "rpo, linear everywhere", "dpo, linear everywhere", above=0.0, required=False),
    ),
    seeds=range(10),
    budget=f"{UPDATES} full-batch updates on 150 pairs an arm and seed",
    tuning="on seeds 100 and 101, six tries each: β of DPO among 0.03, 0.1, 0.3, 1, 3, 10; (β, η) of RPO among (0.1, 0.5), "
    "(0.3, 0.5), (1, 0.1), (1, 0.5), (1, 2), (3, 0.5)",
)
