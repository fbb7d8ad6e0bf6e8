"""How far fitted Q evaluation is from the truth, on simulators whose truth can be played.

    python benchmarks/fitted_q_error.py [--seeds 1] [--updates 5000]

Three policies (straight to the goal in steps of three sizes) are evaluated from logs of behaviours that are mostly random,
both as the undiscounted return of episodes with a time limit and as the discounted value without one. Writes
docs/fitted-q.svg, and one line of JSON: the mean error, the mean absolute error as a share of what lies between the policies,
and the share of intervals that hold the truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from policyopt.learners.fitted_q import Estimate, FittedQ
from policyopt.problems.control import checker, mixed_walks
from policyopt.reports.figures import save_svg
from policyopt.rollouts.logs import logged
from policyopt.types import Transitions, generator

SIZES = (0.4, 0.7, 1.0)
STARTS, LONG, GAMMA = 2000, 600, 0.97


@dataclass(frozen=True)
class Straight:
    """Towards the goal in steps of this size; with a share of random actions where it isn't greedy."""

    way: Callable[..., Any]
    size: float = 1.0
    random: float = 0.0

    def act(self, observation: Any, memory: Any, rng: Any, greedy: bool = False) -> tuple[Any, dict[str, Any], Any]:
        action = self.size * torch.from_numpy(self.way(observation.numpy().astype(np.float64))).float()
        uniform = 2.0 * torch.rand(action.shape, generator=rng) - 1.0
        explores = torch.rand(len(action), 1, generator=rng) < (0.0 if greedy else self.random)
        return torch.where(explores, uniform, action), {}, memory


def of_checker(random: float) -> Callable[[int], Transitions]:
    behaviour = Straight(checker.towards_goal, random=random)
    return lambda seed: logged(behaviour, checker.Checker(), 5000, seed, generator(seed, "log"), lambda _: None)


LOGS: dict[str, tuple[Any, Callable[..., Any], Callable[[int], Transitions]]] = {
    "checker, 90% random": (checker.Checker(), checker.towards_goal, of_checker(0.9)),
    "checker, 50% random": (checker.Checker(), checker.towards_goal, of_checker(0.5)),
    "mixed-walks, 95% random": (
        mixed_walks.MixedWalks(),
        mixed_walks.to_the_centre,
        lambda seed: mixed_walks.MixedWalks(seed=seed).transitions(),
    ),
}


def truth(problem: Any, policy: Straight, settings: FittedQ) -> float:
    """The mean over starts of what the policy earns: within the horizon, or discounted as if there were no limit."""
    environments, rng = problem.make(STARTS, 2**20), generator(0, "truth")
    alive, total, factor = np.ones(STARTS, bool), np.zeros(STARTS), 1.0
    for _ in range(settings.horizon or LONG):
        if settings.horizon is None:
            environments.elapsed[:] = 0  # so that no limit cuts
        step = environments.step(policy.act(torch.from_numpy(environments.observations), None, rng, True)[0].numpy())
        total += factor * alive * step.rewards
        factor *= 1.0 if settings.horizon else settings.gamma
        alive &= ~(step.terminated | step.truncated)
    return float(total.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--updates", type=int, default=FittedQ.updates)
    parser.add_argument("--out", type=Path, default=Path("docs/fitted-q.svg"))
    given = parser.parse_args()
    settings = FittedQ(updates=given.updates)
    kinds = {
        "return of 40 steps": replace(settings, horizon=40),
        "discounted, no limit": replace(settings, gamma=GAMMA),
    }
    drawn = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes, shares, errors, held = drawn.subplots(1, 2), [], [], []
    for one, (kind, how) in zip(axes, kinds.items(), strict=True):
        for i, (name, (problem, way, log)) in enumerate(LOGS.items()):
            found: list[tuple[float, Estimate]] = []
            truths = {size: truth(problem, Straight(way, size), how) for size in SIZES}
            for seed in range(given.seeds):
                data = log(seed)
                for size in SIZES:
                    estimate = how(data, Straight(way, size), problem.spaces, seed)
                    found.append((truths[size], estimate))
                    error = estimate.value - truths[size]
                    errors.append(error)
                    shares.append(abs(error) / (max(truths.values()) - min(truths.values())))
                    held.append(estimate.low <= truths[size] <= estimate.high)
                    print(
                        f"{kind}; {name}; step {size}; seed {seed}: {estimate.value:.2f} [{estimate.low:.2f}, "
                        f"{estimate.high:.2f}], truth {truths[size]:.2f}, outside {estimate.outside:.0%}",
                        flush=True,
                    )
            x = [true for true, _ in found]
            bars = np.array([[e.value - e.low, e.high - e.value] for _, e in found]).T
            one.errorbar(x, [e.value for _, e in found], bars, fmt="o", ms=4, color=f"C{i}", lw=0.8, label=name)
        ends = one.get_xlim()
        one.plot(ends, ends, color="black", lw=0.8)
        one.set(xlabel="truth, played", ylabel="estimate from logged data", title=kind)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_svg(drawn, given.out)
    record = {
        "benchmark": "fitted-q-error",
        "mean_error": round(float(np.mean(errors)), 3),
        "absolute_error_share": round(float(np.mean(shares)), 3),
        "intervals_that_hold": round(float(np.mean(held)), 3),
        "estimates": len(errors),
        "updates": given.updates,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
