"""RSO (arXiv 2309.06657): the sampler by hand, in its limits and in law, pairs, and the three stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.gathering import GatheringLearner
from policyopt.methods import rso
from policyopt.methods.rso import Best, RejectionSampled, as_pairs, first_round, knockout, rejection_sample
from policyopt.objectives.preference import hinge_loss, sigmoid_loss
from policyopt.rollouts.language import Groups
from policyopt.types import Budget, generator


def test_acceptance_by_hand() -> None:
    """The shares of first sweeps that accept each of three candidates, and the law of what they accept."""
    rewards, beta = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), 0.5
    acceptance = ((rewards - rewards.max()) / beta).exp()
    torch.testing.assert_close(
        acceptance, torch.tensor([0.01831564, 0.13533528, 1.0], dtype=torch.float64), atol=1e-8, rtol=0
    )
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    target = reference * (rewards / beta).exp()
    torch.testing.assert_close(
        target / target.sum(),
        torch.tensor([0.03666671, 0.16255943, 0.80077385], dtype=torch.float64),
        atol=1e-8,
        rtol=0,
    )
    assert float((reference * acceptance).sum()) == pytest.approx(0.24975840, abs=1e-8)
    draws = [rejection_sample([0.0, 1.0, 2.0], 3, beta, generator(i, "test")) for i in range(4000)]
    second = sum(order[0] == 1 for order in draws) / len(draws)  # accepted before the third in the first sweep: 0.135
    assert second == pytest.approx(0.13533528 * (1 - 0.01831564), abs=0.02)


def test_the_limits_of_the_temperature() -> None:
    rewards = [0.3, 2.0, -1.0, 1.0, 0.9]
    assert rejection_sample(rewards, 3, 1e6, generator(0, "a")) == [0, 1, 2]
    assert rejection_sample(rewards, 3, torch.inf, generator(0, "a")) == [0, 1, 2]
    assert rejection_sample(rewards, 3, 1e-6, generator(0, "a")) == [1, 3, 4]


def test_size_distinctness_and_shift() -> None:
    rewards = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    kept = rejection_sample(rewards, 8, 0.5, generator(1, "b"))
    assert len(kept) == len(set(kept)) == 8
    assert rejection_sample([r + 5.0 for r in rewards], 8, 0.5, generator(1, "b")) == kept
    with pytest.raises(ValueError, match="9 of 8 candidates"):
        rejection_sample([0.0] * 8, 9, 0.5, generator(0, "c"))


def test_the_first_accepted_follows_the_optimal_policy() -> None:
    """In a space of 200 responses, duplicates kept: total variation at the noise floor of 4000 repetitions."""
    rng = torch.Generator().manual_seed(0)
    reference, reward = torch.randn(200, generator=rng).softmax(0), 0.5 * torch.randn(200, generator=rng)
    target = reference * (reward / 0.5).exp()
    target = target / target.sum()
    counts = torch.zeros(200)
    for i in range(4000):
        candidates = torch.multinomial(reference, 512, replacement=True, generator=rng)
        first = rejection_sample(reward[candidates].tolist(), 1, 0.5, generator(i, "law"))[0]
        counts[candidates[first]] += 1
    assert float((counts / 4000 - target).abs().sum() / 2) < 0.12


def test_losses_are_dpos_and_slics() -> None:
    z = torch.tensor(0.15, dtype=torch.float64)
    assert float(sigmoid_loss(z)) == pytest.approx(0.62095705, abs=1e-8) and float(hinge_loss(z)) == pytest.approx(0.85)
    assert float(torch.logit(torch.tensor(0.73, dtype=torch.float64))) == pytest.approx(0.99462258, abs=1e-8)


def test_slic_ignores_the_reference(lists) -> None:
    objective = rso.slic().stages[-1].method.objective
    values = []
    for reference in ([[-1.0, -1.0]], [[-9.0, -3.0]]):
        outputs, batch = lists([[-10.0, -12.0]], reference, [[1.0, 0.0]])
        values.append(float(objective(outputs, objective.prepare(batch)).value))
    assert values[0] == values[1] == pytest.approx(1 - 0.05 * 2.0)


def test_pairs_of_a_round_and_of_a_tournament() -> None:
    rewards = [0.1, 0.5, 0.9, 0.3]
    assert first_round(rewards) == [(1, 0), (2, 3)]
    assert knockout(rewards) == [(1, 0), (2, 3), (2, 1)]
    assert len(first_round([0.0] * 8)) == 4 and len(knockout([0.0] * 8)) == 7


def test_selected_rows_become_pairs(lists) -> None:
    _, batch = lists(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 4.0, 7.0, 6.0]]))
    batch = batch.replace(actions=torch.arange(8)[:, None], length=torch.ones(8, dtype=torch.int64))
    part = RejectionSampled(keep=4, beta=1e-6)
    pairs = part(batch, part.memory())
    assert pairs.actions.flatten().tolist() == [1, 3, 2, 0, 6, 7, 4, 5]  # best against second best, third against last
    assert pairs.scores["reward"].tolist() == [1.0, 0.0] * 4 and pairs.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert Best()(batch).actions.flatten().tolist() == [1, 6]
    assert len(as_pairs(batch.replace(actions=torch.zeros_like(batch.actions)), [(0, 1)])) == 0  # equal responses


@pytest.mark.parametrize("variant", ["", *(f":{name}" for name in rso.VARIANTS)])
def test_the_stages_hand_on(variant: str) -> None:
    problem = registry.problem("bigrams:train_size=32,test_size=8")
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    method = registry.method(f"rso{variant}")
    reward, gathering, training = method.stages
    sampler = replace(gathering.method, collector=Groups(prompts=4, samples=16))
    method = replace(
        method,
        stages=(
            replace(reward, until=Budget(updates=1)),
            replace(gathering, method=sampler, until=Budget(updates=2)),
            training,
        ),
    )
    learner = method.learner(problem, policy, seed=0, budget=Budget(updates=5))
    before = [p.detach().clone() for p in policy.parameters()]
    for _ in range(3):
        learner.step()
    assert isinstance(learner.current, GatheringLearner)
    assert all(
        torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True)
    )  # the sampler is not trained
    metrics = learner.step()
    assert torch.isfinite(torch.as_tensor(metrics["loss/policy"])) and learner.position == 2
