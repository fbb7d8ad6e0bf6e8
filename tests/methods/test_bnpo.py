"""BNPO (arXiv 2506.02864): the fitted Beta, its density and the advantages by hand; its special cases; the variance theorem."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import beta as beta_function
from torch import Tensor

from policyopt import registry
from policyopt.credit.groups import group_mean
from policyopt.methods.bnpo import BetaDecomposed, BetaNormalized, beta_density, beta_normalized, beta_parameters
from policyopt.models.language import LanguagePolicy
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.types import Rollouts


def rewards(successes: list[int], samples: int = 4) -> tuple[Tensor, Tensor]:
    """``samples`` rewards a prompt, the first ``successes[i]`` of prompt i right."""
    reward = torch.cat([(torch.arange(samples) < s).float() for s in successes])
    return reward, torch.arange(len(successes)).repeat_interleave(samples)


def test_fit_and_advantages_by_hand() -> None:
    success = torch.tensor([0.25, 0.5, 0.75, 0.5])
    assert beta_parameters(success) == pytest.approx((1.8333333, 1.8333333), abs=1e-6)
    density = beta_density(torch.tensor([0.25, 0.5]), 11 / 6, 11 / 6)
    torch.testing.assert_close(density, torch.tensor([1.1237998, 1.4282510]).double(), atol=1e-6, rtol=0)
    advantage = beta_normalized(*rewards([1, 2, 3, 2]))
    assert float(advantage[0]) == pytest.approx(0.6673787, abs=1e-6)  # right, p = 1/4
    assert float(advantage[1]) == pytest.approx(-0.2224596, abs=1e-6)
    assert float(advantage[4]) == pytest.approx(0.3500785, abs=1e-6)  # right, p = 1/2


def test_uniform_density_is_reinforce_with_the_group_baseline() -> None:
    torch.testing.assert_close(beta_density(torch.tensor([0.0, 0.3, 1.0]), 1.0, 1.0), torch.ones(3).double())


def test_three_halves_is_grpo_up_to_a_factor() -> None:
    p = torch.tensor([0.25, 0.5, 0.9])
    want = 8 / math.pi * (p * (1 - p)).sqrt().double()
    torch.testing.assert_close(beta_density(p, 1.5, 1.5), want, atol=1e-6, rtol=1e-6)
    assert float(beta_density(torch.tensor(0.25), 1.5, 1.5)) == pytest.approx(1.1026578, abs=1e-6)
    reward, group = rewards([1, 2, 3])
    mean = group_mean(reward, group)
    population = (mean * (1 - mean)).sqrt()
    mine = (reward - mean) / beta_density(mean, 1.5, 1.5).float()
    torch.testing.assert_close(mine, math.pi / 8 * (reward - mean) / population)


def variance(a: float, b: float, alpha: float, beta: float) -> float:
    """E over Beta(a, b) of p(1-p) / f(p; α, β)², by quadrature with the density under test."""

    def integrand(p: float) -> float:
        density = float(beta_density(torch.tensor(p, dtype=torch.float64), alpha, beta))
        return p**a * (1 - p) ** b / beta_function(a, b) / density**2

    return float(quad(integrand, 0, 1, epsabs=1e-9, limit=200)[0])


@pytest.mark.parametrize(
    ("a", "b", "reinforce", "grpo", "bnpo"),
    [(0.5, 2.0, 0.1142857, 0.1542126, 0.0858994), (3.0, 1.0, 0.15, 0.1542126, 0.0996265)],
)
def test_variance_functional(a: float, b: float, reinforce: float, grpo: float, bnpo: float) -> None:
    assert variance(a, b, 1.0, 1.0) == pytest.approx(reinforce, rel=2e-4)
    assert variance(a, b, 1.5, 1.5) == pytest.approx(grpo, rel=2e-4)
    assert variance(a, b, 1 + a / 3, 1 + b / 3) == pytest.approx(bnpo, rel=2e-4)


def test_the_chosen_density_minimises_the_variance() -> None:
    best = variance(2.0, 1.2, 1 + 2.0 / 3, 1.4)
    for alpha, beta in ((1.5, 1.4), (1.8, 1.4), (1 + 2 / 3, 1.3), (1 + 2 / 3, 1.5)):
        assert variance(2.0, 1.2, alpha, beta) > best
    assert variance(1.5, 1.5, 1.5, 1.5) == pytest.approx(0.1542126, rel=2e-4)  # here it is GRPO's


def test_advantages_of_a_prompt_sum_to_zero() -> None:
    reward, group = rewards([1, 2, 3, 0, 4, 2])
    total = torch.zeros(6).index_add_(0, group, beta_normalized(reward, group))
    torch.testing.assert_close(total, torch.zeros(6), atol=1e-6, rtol=0)


def batch(scores: dict[str, Tensor], group: Tensor) -> Rollouts:
    blank = torch.zeros(len(group), 1, dtype=torch.int64)
    return Rollouts(actions=blank, mask=blank == 0, group=group, scores=scores, batch_size=[len(group)])


def test_affine_rewards_give_the_same_advantages() -> None:
    reward, group = rewards([1, 2, 3, 2])
    plain = BetaNormalized()(batch({"reward": reward}, group)).advantage
    signed = BetaNormalized(low=-1.0, high=1.0)(batch({"reward": 2 * reward - 1}, group)).advantage
    torch.testing.assert_close(plain, signed)


def test_identical_components_decompose_to_the_single_advantage() -> None:
    reward, group = rewards([1, 2, 3, 2])
    scores = {"reward": reward, "accuracy": reward, "format": reward}
    plain, decomposed = BetaNormalized()(batch(scores, group)), BetaDecomposed()(batch(scores, group))
    torch.testing.assert_close(decomposed.advantage, plain.advantage)


def test_edge_cases_are_guarded() -> None:
    for successes in ([2, 2, 2], [0, 4, 0], [3]):  # no variance over prompts; all groups decided; one prompt
        reward, group = rewards(successes)
        advantage = beta_normalized(reward, group)
        assert bool(torch.isfinite(advantage).all())
    reward, group = rewards([2, 2, 2])
    torch.testing.assert_close(beta_normalized(reward, group), reward - 0.5)
    assert beta_parameters(torch.tensor([0.0, 1.0, 0.0, 1.0])) == (1.0, 1.0)  # variance above μ(1-μ): clamped
    with pytest.raises(ValueError, match="at least 2 samples a prompt"):
        beta_normalized(torch.ones(3), torch.arange(3))


def test_rewards_outside_their_range_are_refused() -> None:
    reward, group = rewards([1, 2])
    with pytest.raises(ValueError, match=r"rewards lie in \[0, 2\].*credit\.0\.high"):
        BetaNormalized()(batch({"reward": 2 * reward}, group))


@pytest.mark.parametrize("name", ["bnpo", "bnpo:decomposed"])
def test_it_trains(policy: LanguagePolicy, name: str) -> None:
    learner = registry.method(name).learner(Arithmetic(terms=2), policy, seed=0)
    assert math.isfinite(float(learner.step()["loss/policy"]))
