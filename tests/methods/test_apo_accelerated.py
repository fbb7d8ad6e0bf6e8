"""APO (arXiv 2410.06293): extrapolation by hand, ideal dynamics, exactness for log-linear policies, resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from policyopt.learners.update import Adam
from policyopt.methods import apo_accelerated
from policyopt.methods.apo_accelerated import Accelerated, WinRate, extrapolated
from policyopt.models.log_linear import LogLinearPolicy
from policyopt.problems.decision.bandit import tabular
from policyopt.rollouts.bandit import PlayedPairs


def bandit():
    return tabular(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double())


def method(alpha: float) -> Accelerated:
    return replace(
        apo_accelerated.method(),
        collector=PlayedPairs(pairs=200),
        optimizer=Adam(learning_rate=0.05),
        epochs=3,
        minibatches=2,
        alpha=alpha,
    )


def test_extrapolation_by_hand() -> None:
    last, before = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.5, 0.5]).log()
    (logits,) = extrapolated([last], [before], 0.5)
    want = torch.tensor([0.64752955, 0.35247045])
    torch.testing.assert_close(logits.softmax(0), want, atol=1e-6, rtol=0)


def test_ideal_dynamics() -> None:
    """Each proximal step adds the reward once (in units of r/β); the extrapolated policy is where it starts from."""
    proximal, before, extrapolations = torch.zeros(1), torch.zeros(1), []
    coefficients = []
    for _ in range(5):
        (start,) = extrapolated([proximal], [before], 0.5)
        before, proximal = proximal, start + 1.0
        coefficients.append(float(proximal))
        extrapolations.append(float(extrapolated([proximal], [before], 0.5)[0]))
    assert coefficients == [1.0, 2.5, 4.25, 6.125, 8.0625]
    assert extrapolations == [1.5, 3.25, 5.125, 7.0625, 9.03125]
    increments = [b - a for a, b in pairwise(coefficients)]
    assert increments[-1] == pytest.approx(2.0, abs=0.1)  # → 1 / (1 - α)


def test_without_momentum_the_policy_goes_on_from_where_it_is() -> None:
    learner = method(0.0).learner(bandit(), LogLinearPolicy(bandit()), seed=0)
    learner.step()
    reached = learner.policy.u.detach().clone()
    learner.step()
    torch.testing.assert_close(learner.before[0], reached)


def test_the_first_iteration_knows_no_momentum() -> None:
    found = []
    for alpha in (0.0, 0.5):
        learner = method(alpha).learner(bandit(), LogLinearPolicy(bandit()), seed=0)
        learner.step()
        found.append(learner.policy.u.detach())
    assert torch.equal(*found)


def test_parameters_extrapolate_logits_of_a_log_linear_policy() -> None:
    features = torch.randn(2, 3, 5).double()
    one, two = torch.randn(2, 5).double()
    (moved,) = extrapolated([one], [two], 0.3)
    torch.testing.assert_close(features @ moved, features @ one + 0.3 * (features @ one - features @ two))


def test_resume_goes_on_with_the_same_bits() -> None:
    whole = method(0.5).learner(bandit(), LogLinearPolicy(bandit()), seed=0)
    for _ in range(2):
        whole.step()
    again = method(0.5).learner(bandit(), LogLinearPolicy(bandit()), seed=0)
    again.load_state_dict(whole.state_dict())
    whole.step(), again.step()
    assert torch.equal(whole.policy.u, again.policy.u)


def test_sppo_regresses_on_the_rate_of_wins() -> None:
    scores, labels = torch.tensor([[0.3, -0.1]]), torch.tensor([[1.0, 0.0]])
    assert float(WinRate(beta=0.5)(scores, labels)) == pytest.approx((0.3 - 1.0) ** 2 + (-0.1 + 1.0) ** 2)
    assert apo_accelerated.sppo().objective.loss == WinRate(beta=0.1)


def test_momentum_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to below 1"):
        Accelerated(alpha=1.0)
