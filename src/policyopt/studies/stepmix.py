"""StepMix's claim: no episode below the safe value, at little more regret than optimism without a constraint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from policyopt.learners.tabular import OptimisticPlanning
from policyopt.methods import stepmix, ucbvi
from policyopt.problems.decision.tabular import TabularMDP, random_mdp
from policyopt.reports.figures import arm_points
from policyopt.studies.claim import Claim, Gate, Results, every_seed, paired_difference, paired_log_ratio

EPISODES = 3000
SMOKE_EPISODES = 60
RELAXATION = stepmix.KnownBaseline().relaxation


def sparse(seed: int) -> TabularMDP:
    """Half of the rewards are 0, and next states few: what the baseline avoids is seldom seen."""
    return random_mdp(states=5, actions=3, horizon=4, concentration=0.3, reward_share=0.5, seed=seed)


def dense(seed: int) -> TabularMDP:
    """The paper's environment."""
    return random_mdp(states=5, actions=5, horizon=3, concentration=1.0, reward_share=1.0, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Exact:
    """A method judged by the exact value of the policy of every episode; ``late`` is the last sixth of them."""

    method: OptimisticPlanning
    problem: Callable[[int], TabularMDP]

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        problem = self.problem(seed)
        learner = self.method.learner(problem, seed=seed)
        values, on_baseline = np.empty(SMOKE_EPISODES if smoke else EPISODES), 0
        for episode in range(len(values)):
            played = learner.policy
            values[episode] = played.weights @ problem.value(played.probabilities)
            on_baseline += np.array_equal(played.probabilities, learner.safeguard.policy[None])
            learner.step()
        assert problem.baseline is not None
        margin = values - (1.0 - RELAXATION) * float(problem.value(problem.baseline))
        regret = problem.optimal_value - values
        return {
            "violations": float((margin < 0.0).sum()),
            "worst_margin": float(margin.min()),
            "regret": float(regret.sum()),
            "late_regret": float(regret[-len(regret) // 6 :].mean()),
            "baseline_episodes": float(on_baseline),
        }


METHODS = {
    "stepmix": stepmix.method(),
    "epsmix": stepmix.epsmix(),
    "all or nothing": stepmix.all_or_nothing(),
    "ucbvi": ucbvi.method(),
    "stepmix offline": stepmix.offline(),
}
PROBLEMS = {"5×3×4": sparse, "5×5×3": dense}


def gates(on: str) -> tuple[Gate, ...]:
    """The questions asked on one of the problems."""
    safe = "no episode's policy is worth less than the threshold"
    return (
        every_seed("violations", f"stepmix {on}", lambda count: count == 0, safe),
        every_seed("violations", f"epsmix {on}", lambda count: count == 0, safe),
        every_seed("violations", f"ucbvi {on}", lambda count: count > 0, "optimism alone violates"),
        # with dense rewards the naive rule frees itself in some seeds (seen on tuning seeds): reported there
        paired_difference(
            "late_regret", f"all or nothing {on}", f"stepmix {on}", above=0.0, required=PROBLEMS[on] is sparse
        ),
        paired_log_ratio("regret", f"stepmix {on}", f"ucbvi {on}", below=3.0),
        paired_difference("late_regret", f"stepmix {on}", f"ucbvi {on}", below=0.01),
        every_seed("violations", f"stepmix offline {on}", lambda count: count == 0, safe, required=False),
    )


def figure(results: Results) -> Figure:
    """A panel for each problem and metric, the methods side by side."""
    metrics = ("violations", "regret", "late_regret")
    panels = [(metric, on) for on in PROBLEMS for metric in metrics]
    return arm_points(
        {f"{m}, {on}": {name: list(results.values(m, f"{name} {on}")) for name in METHODS} for m, on in panels}
    )


claim = Claim(
    slug="stepmix",
    paper="2306.06265",
    text=(
        "StepMix and EpsMix never play a policy worth less than 90% of the baseline, where UCBVI does. StepMix ends as "
        "good as UCBVI at no more than three times its regret, while the naive rule stays with the baseline."
    ),
    arms={
        f"{name} {on}": Exact(method=method, problem=problem)
        for on, problem in PROBLEMS.items()
        for name, method in METHODS.items()
    },
    gates=tuple(gate for on in PROBLEMS for gate in gates(on)),
    figure=figure,
    seeds=range(10),
    budget="3000 episodes an arm and seed; the offline arm has 500 logged episodes of the baseline besides",
    tuning=(
        "one configuration for all arms (bonus scale 0.1, relaxation 0.1), fixed beforehand and looked at once on "
        "seeds 100 to 102: one try an arm, nothing changed"
    ),
)
