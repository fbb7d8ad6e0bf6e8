"""Trajectory weighting's claim: few good episodes among many bad ones are enough where they are drawn more often.

The data are 500 walks to the centre of a box, a small share of an expert's and the rest of random actions, from uniform
starts. TD3+BC and IQL learn from the same data with rows drawn uniformly, by return, by advantage, or from the best tenth;
networks, rate, batches and updates are the same. Scores: 0 is the return of random actions, 100 the straight way's, from
50 starts that are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from policyopt.credit.episodes import episode_lengths, episode_returns, first_rows
from policyopt.learners.data import Standardize
from policyopt.learners.off_policy import OffPolicy
from policyopt.methods import iql, td3_bc
from policyopt.methods.trajectory_weighting import SAMPLINGS, positive_sided_variance, weighted_return
from policyopt.problems.control.environments import Act
from policyopt.problems.control.environments import episode_returns as played
from policyopt.problems.control.mixed_walks import MixedWalks, to_the_centre
from policyopt.rollouts.logs import UniformPolicy
from policyopt.studies.claim import Claim, Effect, Gate, Metrics, Results, decide, lower_bound, paired_difference
from policyopt.studies.offline import reduced
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, Transitions, generator

UPDATES, RATE = 2000, 1e-3
STARTS, STARTS_SEED = 50, 2**20
TD3_BC, IQL = (replace(reduced(method, RATE), standardize=Standardize()) for method in (td3_bc.method(), iql.method()))


def scored(act: Act, repeat: int = 1) -> float:
    """The mean return from the 50 starts, each played ``repeat`` times."""
    environments = (MixedWalks().make(STARTS, STARTS_SEED) for _ in range(repeat))
    rng = generator(0, "starts")
    return float(np.mean([played(environment, act, rng)[0].mean() for environment in environments]))


def references() -> tuple[float, float]:
    """The mean returns of random actions and of the straight way."""
    uniform = UniformPolicy(MixedWalks().spaces)
    straight = scored(lambda seen, memory, *_: (torch.from_numpy(to_the_centre(seen.numpy())), {}, memory))
    return scored(lambda seen, memory, rng, _: uniform.act(seen, memory, rng), repeat=20), straight


def behaviour(data: Transitions, name: str) -> tuple[float, float]:
    """What episodes return on average as they are drawn, and how many transitions the draws are worth (1 / Σ p²)."""
    each, first = SAMPLINGS[name].probabilities(data), first_rows(data.episode)
    returns, lengths = episode_returns(data.reward, data.episode), episode_lengths(data.episode)
    return weighted_return(each[first], lengths, returns), float(1.0 / each.square().sum())


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A method on a data set with this share of expert episodes, drawn as ``sampling`` says."""

    method: OffPolicy
    sampling: str
    expert: float = 0.05

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        problem = MixedWalks(seed=seed, expert=self.expert, logged=100 if smoke else MixedWalks.logged)
        method = replace(self.method, sampling=SAMPLINGS[self.sampling])
        budget = Budget(updates=20 if smoke else UPDATES)
        learner = run(method, problem, budget=budget, seed=seed, cadence=Cadence(evaluations=1)).learner
        low, high = references()
        data = problem.transitions()
        drawn, worth = behaviour(data, self.sampling)
        return {
            "score": 100.0 * (scored(learner.policy.act) - low) / (high - low),
            "drawn_score": 100.0 * (drawn - low) / (high - low),
            "effective_rows": worth,
            "positive_variance": positive_sided_variance(episode_returns(data.reward, data.episode)),
        }


def _gain_and_variance(results: Results) -> Effect:
    """Seed by seed, the correlation over the four shares of (advantage-weighted − uniform) with the variance."""
    gains = np.stack([np.subtract(*results.pairs("score", f"TD3+BC, AW{s}", f"TD3+BC, uniform{s}")) for s in SHARES])
    variances = np.stack([results.values("positive_variance", f"TD3+BC, AW{s}") for s in SHARES])
    pairs = zip(gains.T, variances.T, strict=True)
    return decide(np.array([np.corrcoef(gain, variance)[0, 1] for gain, variance in pairs]), above=0.0)


SHARES = {", 1%": 0.01, "": 0.05, ", 10%": 0.1, ", 50%": 0.5}
NAMES = {"uniform": "uniform", "RW": "return-weighted", "AW": "advantage-weighted", "top tenth": "top-fraction"}
BASES = {"TD3+BC": TD3_BC, "IQL": IQL}

claim = Claim(
    slug="trajectory-weighting",
    paper="2306.13085",
    text=(
        "With 5% expert episodes among random ones, TD3+BC and IQL earn more where episodes are drawn by their advantage than "
        "where rows are drawn uniformly, and about as much as with the best tenth or more."
    ),
    arms={
        **{
            f"{base}, {short}": Weighted(method=method, sampling=name)
            for base, method in BASES.items()
            for short, name in NAMES.items()
            if (base, short) != ("IQL", "RW")
        },
        **{
            f"TD3+BC, {short}{label}": Weighted(method=TD3_BC, sampling=NAMES[short], expert=share)
            for label, share in SHARES.items()
            for short in ("uniform", "AW")
        },
    },
    gates=(
        *(paired_difference("score", f"{base}, AW", f"{base}, uniform", above=0.0) for base in BASES),
        *(paired_difference("score", f"{base}, AW", f"{base}, top tenth", above=-5.0) for base in BASES),
        paired_difference("score", "TD3+BC, AW", "TD3+BC, RW", above=0.0, required=False),
        paired_difference("score", "TD3+BC, AW, 50%", "TD3+BC, uniform, 50%", above=-5.0, required=False),
        lower_bound("drawn_score", "TD3+BC, AW", above=80.0, required=False),
        Gate(
            name="gain and positive-sided variance are correlated",
            text="the mean over seeds of the correlation, over four shares, of the gain with the positive-sided variance > 0",
            test=_gain_and_variance,
            required=False,
            metric="score",
            arms=tuple(f"TD3+BC, {short}{label}" for label in SHARES for short in ("uniform", "AW")),
        ),
    ),
    seeds=range(5),
    budget="500 logged episodes and 2000 updates with batches of 128 an arm and seed",
    tuning=(
        "none, for no arm: the paper's temperature (0.1) and share (10%), the authors' weights of TD3+BC (2.5) and IQL (0.7 and "
        "3); networks, rate and budget fixed beforehand"
    ),
)
