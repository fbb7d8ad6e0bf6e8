"""Clip-Cov and KL-Cov (arXiv 2505.22617): covariances and picks by hand, the entropy's change, gradients, the law."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from policyopt import registry
from policyopt.learners.on_policy import OnPolicyLearner
from policyopt.methods import cov_entropy
from policyopt.methods.cov_entropy import (
    CovarianceWindow,
    LargestCovariance,
    Undecided,
    covariance,
    entropy_law,
)
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, TokenMean
from policyopt.objectives.selection import SelectedPolicyGradient, WithoutSelected
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.language import Groups
from policyopt.types import Outputs, Rollouts, generator

LOGP = torch.tensor([[0.9, 0.5, 0.2, 0.01]], dtype=torch.float64).log()
ADVANTAGE = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)


def batch(old: torch.Tensor = LOGP) -> Rollouts:
    return Rollouts(
        actions=torch.zeros(1, 4, dtype=torch.int64),
        mask=torch.ones(1, 4, dtype=torch.bool),
        old_logp=old,
        behaviour_logp=old,
        advantage=ADVANTAGE,
        batch_size=[1],
    )


def evaluated(objective: PolicyGradient, rows: Rollouts, logp: torch.Tensor = LOGP):
    variable = logp.clone().requires_grad_()
    prepared = objective.prepare(rows)
    if objective.measures:
        prepared = objective.measure(logp, prepared, generator(0, "test"))
    loss = objective(Outputs(logp=variable), prepared)
    return float(loss.value), torch.autograd.grad(loss.value, variable)[0], loss.metrics


def test_covariances_and_picks_by_hand() -> None:
    found = covariance(LOGP, ADVANTAGE, batch().mask)
    torch.testing.assert_close(
        found, torch.tensor([[1.6479, -1.0601, 0.1438, 2.8519]], dtype=torch.float64), atol=1e-4, rtol=0
    )
    assert float(found.mean()) == pytest.approx(0.8959, abs=1e-4)
    active = torch.ones(1, 4, dtype=torch.bool)
    largest = LargestCovariance(share=0.25)(LOGP, batch(), active, generator(0, "x"))
    assert largest.tolist() == [[False, False, False, True]]
    window = CovarianceWindow(share=1.0)(LOGP, batch(), active, generator(0, "x"))
    assert window.tolist() == [[True, False, False, True]]
    one = CovarianceWindow(share=0.25)(LOGP, batch(), active, generator(0, "x"))
    assert int(one.sum()) == 1 and bool((one & window).any())


def test_the_covariance_is_what_the_entropy_loses() -> None:
    z = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    policy, advantage, eta = z.softmax(0), torch.tensor([0.439117, -1.060883, -0.360883], dtype=torch.float64), 1e-4

    def entropy(logits: torch.Tensor) -> torch.Tensor:
        return -(logits.softmax(0) * logits.log_softmax(0)).sum()

    for step, exact, formula in ((policy * advantage, -1.23707e-5, -1.23705e-5), (advantage, -3.24624e-5, -3.24609e-5)):
        change = float(entropy(z + eta * step) - entropy(z))
        logp = policy.log()
        cov = (policy * (logp - (policy * logp).sum()) * (step - (policy * step).sum())).sum()
        assert change == pytest.approx(exact, rel=1e-4) and -eta * float(cov) == pytest.approx(formula, rel=1e-4)


def test_without_candidates_it_is_grpos_surrogate() -> None:
    clip = RatioClip(low=0.2, high=0.28)
    nothing = CovarianceWindow(low=100.0, high=200.0)
    empty = SelectedPolicyGradient(stabilization=WithoutSelected(inner=clip), aggregation=TokenMean(), selector=nothing)
    plain = PolicyGradient(stabilization=clip, aggregation=TokenMean())
    old = LOGP + torch.tensor([[0.3, -0.4, 0.05, 0.1]], dtype=torch.float64)
    for got, want in zip(evaluated(empty, batch(old))[:2], evaluated(plain, batch(old))[:2], strict=True):
        torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want))


def test_dropped_tokens_have_no_gradient_and_still_divide() -> None:
    objective = SelectedPolicyGradient(
        stabilization=WithoutSelected(inner=RatioClip(low=1.0, high=1.0)),
        aggregation=TokenMean(),
        selector=CovarianceWindow(share=1.0),
    )
    value, gradient, metrics = evaluated(objective, batch())
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.25, -0.25, 0.0]], dtype=torch.float64))
    assert value == pytest.approx(0.0) and float(metrics["policy/selected"]) == pytest.approx(0.5)


def test_constants_change_no_covariance() -> None:
    want = covariance(LOGP, ADVANTAGE, batch().mask)
    torch.testing.assert_close(covariance(LOGP + 3.0, ADVANTAGE - 2.0, batch().mask), want)


def test_on_fresh_samples_the_pull_is_nothing() -> None:
    objective = cov_entropy.kl_cov().objective
    value, gradient, _ = evaluated(objective, batch())
    assert value == pytest.approx(float(-ADVANTAGE.mean()))
    torch.testing.assert_close(gradient, -ADVANTAGE / 4)
    moved = evaluated(objective, batch(LOGP - 0.5))[1]  # the ratio is exp(0.5), and one token is pulled back
    torch.testing.assert_close(
        moved, -ADVANTAGE / 4 * torch.tensor(0.5).exp() + torch.tensor([[0.0, 0.0, 0.0, 0.25]]).double()
    )


def test_an_exact_law_is_found() -> None:
    entropy = [0.1, 0.4, 0.9, 1.3]
    law = entropy_law(entropy, [-0.1 * torch.tensor(h).double().exp().item() + 0.6 for h in entropy])
    assert (law.a, law.b, law.ceiling, law.r_squared) == pytest.approx((0.1, 0.6, 0.5, 1.0), abs=1e-6)
    with pytest.raises(ValueError, match="three points or more"):
        entropy_law([0.1], [0.2])


def test_decided_groups_neither_count_nor_divide() -> None:
    rows = Rollouts(
        actions=torch.zeros(4, 1, dtype=torch.int64),
        mask=torch.ones(4, 1, dtype=torch.bool),
        group=torch.tensor([0, 0, 1, 1]),
        scores=TensorDict({"reward": torch.tensor([1.0, 1.0, 1.0, 0.0])}, [4]),
        batch_size=[4],
    )
    assert Undecided()(rows).weight.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    assert Undecided()(rows[:2]).weight.flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["cov-entropy", "cov-entropy:kl_cov"])
def test_micro_batches_change_nothing(policy, name: str) -> None:
    """Picks are of the whole minibatch, so the weights after a step do not depend on the pieces."""
    start = {k: v.clone() for k, v in policy.state_dict().items()}
    found = []
    for limit in (64, 100_000):
        policy.load_state_dict(start)
        method = replace(
            registry.method(name), collector=Groups(prompts=4, samples=4), minibatches=1, epochs=2, micro_batch=limit
        )
        learner: OnPolicyLearner = method.learner(Arithmetic(terms=2, reward_weights={"format": 1.0}), policy, seed=0)
        learner.step()
        found.append([p.detach().clone() for p in policy.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)
