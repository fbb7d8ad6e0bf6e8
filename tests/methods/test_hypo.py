"""HyPO (arXiv 2406.01462): the divergence's gradient by hand and in expectation, the baseline, and what DPO can't see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import dpo, hypo
from policyopt.methods.hypo import ReverseDivergence, divergence_weights
from policyopt.models.log_linear import LogLinearPolicy
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.decision.bandit import tabular
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.bandit import LoggedPairs, Played, decisions
from policyopt.types import Budget

POLICY, REFERENCE = (
    torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64),
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
)


def surrogate_gradient(
    logits: torch.Tensor, actions: torch.Tensor, groups: torch.Tensor, baseline: bool
) -> torch.Tensor:
    """Of the objective on these sampled actions, by the logits of a one-context bandit."""
    bandit = tabular(torch.zeros(1, 3).double(), REFERENCE.log()[None])
    policy = LogLinearPolicy(bandit)
    policy.u.data = logits - REFERENCE.log()
    batch = decisions(torch.zeros_like(actions), actions, torch.zeros(len(actions)), groups)
    batch = batch.replace(ref_logp=REFERENCE.log()[actions][:, None])
    objective = ReverseDivergence(coefficient=1.0, baseline=baseline)
    value = objective(policy.evaluate(batch), objective.prepare(batch)).value
    return torch.autograd.grad(value, policy.u)[0]


def test_divergence_and_gradient_by_hand() -> None:
    ratio = (POLICY / REFERENCE).log()
    divergence = float((POLICY * ratio).sum())
    assert divergence == pytest.approx(0.08512283, abs=1e-8)
    want = torch.tensor([0.17594459, -0.09811759, -0.07782700], dtype=torch.float64)
    torch.testing.assert_close(POLICY * (ratio - divergence), want, atol=1e-8, rtol=0)


@pytest.mark.parametrize("baseline", [False, True])
def test_the_expected_gradient_is_the_divergences(baseline: bool) -> None:
    """Enumerated over all pairs of samples with their probabilities."""
    total = torch.zeros(3).double()
    for a in range(3):
        for b in range(3):
            gradient = surrogate_gradient(
                POLICY.log(), torch.tensor([a, b]), torch.zeros(2, dtype=torch.int64), baseline
            )
            total += POLICY[a] * POLICY[b] * gradient
    want = torch.tensor([0.17594459, -0.09811759, -0.07782700], dtype=torch.float64)
    torch.testing.assert_close(total, want, atol=1e-6, rtol=0)


def test_weights_of_two_samples_by_hand() -> None:
    ratio = (POLICY / REFERENCE).log()[[0, 2]]
    weights = divergence_weights(ratio, torch.zeros(2, dtype=torch.int64), baseline=True)
    torch.testing.assert_close(weights, torch.tensor([1.02961942, -1.02961942], dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        divergence_weights(ratio + 5.0, torch.zeros(2, dtype=torch.int64), baseline=True), weights
    )


def test_at_the_reference_nothing_pulls() -> None:
    gradient = surrogate_gradient(REFERENCE.log(), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64), False)
    torch.testing.assert_close(gradient, torch.zeros(3).double(), atol=1e-7, rtol=0)


def bandit_method(coefficient: float) -> OnPolicy:
    method = hypo.hybrid(LoggedPairs(), Played(prompts=64, samples=8), beta=0.1, coefficient=coefficient)
    return replace(method, annotators=(Reference(),), optimizer=Adam(learning_rate=0.05))


def test_an_uncovered_action_moves_only_under_the_divergence() -> None:
    pairs = torch.tensor([[0, 0, 1]] * 20)
    bandit = tabular(torch.zeros(1, 3).double(), pairs=pairs)
    moved = {}
    for name, method in {"dpo": bandit_method(0.0), "hypo": bandit_method(0.5)}.items():
        policy = LogLinearPolicy(bandit)
        learner = method.learner(bandit, policy, seed=0)
        for _ in range(20):
            learner.step()
        moved[name] = float(policy.u[2].detach())
    assert moved["dpo"] == 0.0 and abs(moved["hypo"]) > 1e-3


def test_without_the_divergence_it_is_dpo() -> None:
    problem = Bigrams(train_size=64, test_size=8, letters=6, length=5)
    method = hypo.hybrid(dpo.method().collector, hypo.method().collector.others["online"], beta=0.1, coefficient=0.0)
    plain = replace(dpo.method(), objective=Preference(loss=Sigmoid(beta=0.1)))
    found = []
    for one in (method, plain):
        policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
        learner = one.learner(problem, policy, seed=0, budget=Budget(updates=2))
        learner.step(), learner.step()
        found.append([p.detach() for p in policy.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_divergence_is_logged_as_itself() -> None:
    problem = Bigrams(train_size=64, test_size=8, letters=6, length=5)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    metrics = hypo.method().learner(problem, policy, seed=0).step()
    assert float(metrics["policy/reference_kl"]) == pytest.approx(0.0, abs=1e-5)
