"""Bandits with known rewards: exact values, the law of logged comparisons, what is refused."""

from __future__ import annotations

import pytest
import torch

from policyopt.models.log_linear import LogLinearPolicy
from policyopt.problems.decision.bandit import Bandit, logged, tabular
from policyopt.rollouts.bandit import LoggedPairs, Played, PlayedPairs
from policyopt.types import Clock, generator

REWARD = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]], dtype=torch.float64)


def test_exact_quantities() -> None:
    bandit = tabular(REWARD)
    uniform = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    assert float(bandit.value(uniform)) == pytest.approx((0.0 + 2 / 3) / 2)
    assert float(bandit.divergence(uniform)) == pytest.approx(0.0, abs=1e-12)
    best = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert float(bandit.divergence(best)) == pytest.approx(float(torch.tensor(3.0).log()), abs=1e-6)
    assert bandit.evaluate(lambda: uniform, generator(0, "x")) == {
        "eval/return": pytest.approx(1 / 3),
        "eval/divergence": pytest.approx(0.0, abs=1e-12),
    }


def test_comparisons_are_bradley_terry_with_flips() -> None:
    bandit, rng = tabular(REWARD[:1]), generator(0, "law")
    sampler = torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64)
    for flips in (0.0, 0.3):
        pairs = logged(bandit, sampler, 20_000, rng, flips=flips, distinct=True)
        right = float((pairs[:, 1] == 0).double().mean())
        truth = float(torch.tensor(2.0).sigmoid())
        assert right == pytest.approx(truth * (1 - flips) + (1 - truth) * flips, abs=0.012)
    assert set(pairs.flatten().tolist()) == {0, 2} | {0}


def test_collectors_give_pairs_and_groups() -> None:
    bandit = tabular(REWARD, pairs=torch.tensor([[1, 1, 0], [0, 0, 2]]))
    policy, clock = LogLinearPolicy(bandit), Clock(seed=0)
    batch = LoggedPairs()(policy, bandit, clock).batches["rollouts"]
    assert batch.actions.flatten().tolist() == [1, 0, 0, 2] and batch.scores["reward"].tolist() == [1.0, 0.0] * 2
    assert len(LoggedPairs(pairs=5)(policy, bandit, clock).batches["rollouts"]) == 10
    played = PlayedPairs(pairs=7)(policy, bandit, clock).batches["rollouts"]
    torch.testing.assert_close(policy.evaluate(played).logp.detach(), played.behaviour_logp)
    group = Played(prompts=3, samples=4)(policy, bandit, clock).batches["rollouts"]
    assert group.group.unique(return_counts=True)[1].tolist() == [4, 4, 4]
    torch.testing.assert_close(group.scores["reward"].double(), REWARD[group.prompt_id, group.actions[:, 0]])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must agree in contexts and actions"):
        Bandit(reward=REWARD, features=torch.zeros(2, 4, 5), reference=REWARD)
