"""LiPO's claim: on lists, weighting each pair by the gain in rank that it decides beats all pairs alike.

Strings with a known reward, 600 prompts with lists of eight labelled by their chance to win. ``pairs of two`` sees two responses
to each of the same prompts. The policy is small (one layer), so that it cannot fit every pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import dpo
from policyopt.methods.lipo import Lambda, PointSquare
from policyopt.objectives.preference import ListLoss, PlackettLuce, Preference, Sigmoid
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.preferences import Rankings
from policyopt.studies.claim import Claim, paired_difference
from policyopt.studies.preferences import Strings
from policyopt.types import Budget

UPDATES, BETA = 80, 0.1
LISTS, PAIRS = Bigrams(train_size=600, responses=8), Bigrams(train_size=600, responses=2)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """DPO's training with a loss on lists and a learning rate of its own."""

    loss: ListLoss
    rate: float

    def __call__(self) -> OnPolicy:
        return replace(
            dpo.method(),
            collector=Rankings(prompts=24, held_out_prompts=0),
            objective=Preference(loss=self.loss),
            optimizer=Adam(learning_rate=self.rate),
        )


def arm(loss: ListLoss, rate: float, problem: Bigrams = LISTS) -> Strings:
    return Strings(method=Ranked(loss=loss, rate=rate), budget=Budget(updates=UPDATES), problem=problem, looks=4)


RATE = 1e-2

claim = Claim(
    slug="lipo",
    paper="2402.01878",
    text="On lists of eight ranked responses the lambda loss earns a higher true reward than the logistic loss on all pairs.",
    arms={
        "lambda": arm(Lambda(beta=BETA), RATE),
        "pairs": arm(Sigmoid(beta=BETA), RATE),
        "pairs of two": arm(Sigmoid(beta=BETA), RATE, PAIRS),
        "list_mle": arm(PlackettLuce(beta=BETA), RATE),
        "point_mse": arm(PointSquare(beta=BETA), RATE),
    },
    gates=(
        paired_difference("reward", "lambda", "pairs", above=0.0),
        paired_difference("reward", "pairs", "pairs of two", above=0.0, required=False),
        paired_difference("reward", "pairs", "point_mse", above=0.0, required=False),
        paired_difference("reward", "lambda", "list_mle", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{UPDATES} updates of 24 lists an arm and seed",
    tuning="learning rate of lambda and of pairs on seed 100 among 1e-3, 3e-3 and 1e-2, three tries each, the same one best for "
    "both; the arms that no required gate reads take it too",
    axis="share of the budget",
)
