"""INPO (arXiv 2407.00617): the loss by hand, its equivalence to the exact one, mirror-descent steps, the duality gap."""

from __future__ import annotations

import pytest
import torch

from policyopt import registry
from policyopt.methods import inpo
from policyopt.methods.inpo import MixedReference, Tournament, mirror_descent, play_tournament
from policyopt.problems.decision.bandit import tabular
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.bandit import PlayedPairs

CYCLE = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)


def game(preference: torch.Tensor, reference: torch.Tensor | None = None):
    size = len(preference)
    return tabular(torch.zeros(1, size).double(), reference, preference=preference[None])


def mirror_step(
    policy: torch.Tensor, reference: torch.Tensor, wins: torch.Tensor, eta: float, tau: float
) -> torch.Tensor:
    logits = wins / eta + tau / eta * reference.log() + (1 - tau / eta) * policy.log()
    return logits.softmax(0)


def test_the_loss_by_hand(lists) -> None:
    outputs, batch = lists([[-1.0, -2.0]], [[-1.2, -1.9]], [[1.0, 0.0]])
    batch = batch.replace(behaviour_logp=torch.tensor([[-1.1], [-1.8]], dtype=torch.float64))
    method = mirror_descent(PlayedPairs(), eta=0.5, tau=0.1)
    batch = method.credit[0](batch)
    value = method.objective(outputs, method.objective.prepare(batch)).value
    assert float(value) == pytest.approx((0.3 - 1.0) ** 2)


def test_it_equals_the_exact_loss_up_to_a_constant() -> None:
    """Proposition 6: the difference of the two population losses is the same for every policy."""
    rng = torch.Generator().manual_seed(0)
    upper = torch.rand(4, 4, generator=rng).double().triu(1)
    wins = upper + (1 - upper).T.tril(-1) + 0.5 * torch.eye(4).double()
    present, reference = (torch.rand(2, 4, generator=rng).double() + 0.1).softmax(1).unbind(0)
    eta, tau, differences = 0.5, 0.1, []
    rate = wins @ present
    for _ in range(5):
        policy = torch.randn(4, generator=rng).double().softmax(0)
        centre = tau / eta * reference.log() + (1 - tau / eta) * present.log()
        s = policy.log() - centre
        h, weight = s[:, None] - s[None, :], present[:, None] * present[None, :]
        exact = (weight * (h - (rate[:, None] - rate[None, :]) / eta).square()).sum()
        binary = (weight * (wins * (h - 0.5 / eta).square() + (1 - wins) * (-h - 0.5 / eta).square())).sum()
        differences.append(float(exact - binary))
    assert max(differences) - min(differences) < 1e-12


def test_a_mirror_descent_step_by_hand() -> None:
    present, uniform = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    wins = CYCLE @ present
    torch.testing.assert_close(wins, torch.tensor([0.45, 0.65, 0.40], dtype=torch.float64))
    want = torch.tensor([0.41218317, 0.40862888, 0.17918795], dtype=torch.float64)
    torch.testing.assert_close(mirror_step(present, uniform, wins, 0.5, 0.1), want, atol=1e-7, rtol=0)


def test_the_reference_mixes_at_its_ends(lists) -> None:
    _, batch = lists([[0.0, 0.0]], [[-1.2, -1.9]], [[1.0, 0.0]])
    batch = batch.replace(behaviour_logp=torch.tensor([[-1.1], [-1.8]], dtype=torch.float64))
    torch.testing.assert_close(MixedReference(share=1.0)(batch).ref_logp, batch.ref_logp)  # τ = η
    torch.testing.assert_close(MixedReference(share=0.0)(batch).ref_logp, batch.behaviour_logp)  # τ = 0
    assert inpo.no_divergence().credit == (MixedReference(share=0.0),)
    with pytest.raises(ValueError, match="0 <= tau <= eta"):
        mirror_descent(PlayedPairs(), eta=0.1, tau=0.2)


def test_with_the_policy_at_the_reference_it_is_ipo(lists) -> None:
    outputs, batch = lists([[-1.0, -2.0]], [[-1.2, -1.9]], [[1.0, 0.0]])
    method = mirror_descent(PlayedPairs(), eta=0.5, tau=0.1)
    value = method.objective(outputs, method.objective.prepare(method.credit[0](batch))).value
    assert float(value) == pytest.approx((0.3 - 1.0) ** 2)  # h = 0.2 + 0.1


def test_the_gap_is_zero_at_nash_and_never_negative() -> None:
    bandit = game(CYCLE)
    assert float(bandit.duality_gap(torch.full((1, 3), 1 / 3, dtype=torch.float64), 0.1)) == pytest.approx(
        0.0, abs=1e-9
    )
    for seed in range(10):
        random = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)).double().softmax(1)
        assert float(bandit.duality_gap(random, 0.1)) >= 0.0


def test_a_tournament_finds_best_and_worst() -> None:
    strength = [3, 7, 1, 5, 0, 6, 2, 4]
    matches = []

    def beats(a: list[int], b: list[int]) -> list[bool]:
        matches.extend(zip(a, b, strict=True))
        return [strength[i] > strength[j] for i, j in zip(a, b, strict=True)]

    assert play_tournament(8, beats) == (1, 4, True) and len(matches) == 11
    with pytest.raises(ValueError, match="2, 4, 8"):
        Tournament(samples=6)


@pytest.mark.parametrize("variant", ["", *(f":{name}" for name in inpo.VARIANTS)])
def test_all_variants_train(variant: str) -> None:
    problem = Bigrams(train_size=64, test_size=8, letters=6, length=5)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    metrics = registry.method(f"inpo{variant}").learner(problem, policy, seed=0).step()
    assert torch.isfinite(torch.as_tensor(metrics["loss/policy"]))
