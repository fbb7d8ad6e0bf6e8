"""MPO (arXiv 2403.19443): the split by hand, that it is a partition, stages, the two-source optimum, the token reward's sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from policyopt import registry
from policyopt.credit.returns import ReferencePenalty, RewardAtEnd
from policyopt.methods import mpo
from policyopt.methods.mpo import Selected, easy_pairs, reward_gaps
from policyopt.models.reward_model import RewardModel
from policyopt.problems.language.subset import subset
from policyopt.types import Budget, Rollouts

GAPS = torch.tensor([2.0, 0.3, -0.5, 1.1])


@pytest.mark.parametrize(
    ("threshold", "absolute", "easy"),
    [
        (1.0, False, [0, 3]),
        (0.4, True, [0, 2, 3]),
        (0.4, False, [0, 3]),
        (-torch.inf, False, [0, 1, 2, 3]),
        (torch.inf, False, []),
    ],
)
def test_the_split_by_hand(threshold: float, absolute: bool, easy: list[int]) -> None:
    assert easy_pairs(GAPS, threshold, absolute).nonzero().squeeze(1).tolist() == easy


def small(name: str):
    """The method with two updates a stage."""
    method = registry.method(name)
    two = Budget(updates=2)
    return replace(method, stages=tuple(replace(stage, until=stage.until and two) for stage in method.stages))


def setting():
    problem = registry.problem("bigrams:train_size=40,test_size=8")
    return problem, registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")


@pytest.mark.parametrize("variant", ["", *(f":{name}" for name in mpo.VARIANTS if name != "ppo_alone")])
def test_the_stages_divide_the_prompts(variant: str) -> None:
    problem, policy = setting()
    learner = small(f"mpo{variant}").learner(problem, policy, seed=0, budget=Budget(updates=6))
    parts = []
    for _ in range(6):
        metrics = learner.step()
        parts.append(learner.current)
    assert learner.position == 2 and "loss/value" in metrics
    if "unselected" not in variant:
        easy, hard = set(parts[2].problem.ids), set(parts[4].problem.ids)
        assert easy | hard == set(range(40)) and not easy & hard and len(easy) == 20


def test_the_first_step_of_ppo_is_unpenalised() -> None:
    problem, policy = setting()
    method = small("mpo")
    *first, last = method.stages
    once = replace(last, method=replace(last.method, epochs=1, minibatches=1))
    learner = replace(method, stages=(*first, once)).learner(problem, policy, seed=0, budget=Budget(updates=6))
    for _ in range(5):
        metrics = learner.step()
    assert learner.position == 2 and float(metrics["policy/clip_fraction"]) == 0.0
    assert float(metrics["policy/kl_k3"]) == pytest.approx(0.0, abs=1e-6)


def test_the_penalty_may_be_to_the_initial_policy() -> None:
    problem, policy = setting()
    start = [p.detach().clone() for p in policy.parameters()]
    learner = small("mpo:toward_initial").learner(problem, policy, seed=0, budget=Budget(updates=6))
    for _ in range(5):
        learner.step()
    reference = learner.current.models["annotators.1"]
    assert learner.position == 2
    assert all(torch.equal(a, b) for a, b in zip(start, reference.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start, learner.policy.parameters(), strict=True))


def test_ppo_alone_starts_from_the_given_policy() -> None:
    problem, policy = setting()
    learner = small("mpo:ppo_alone").learner(problem, policy, seed=0, budget=Budget(updates=4))
    for _ in range(3):
        metrics = learner.step()
    assert learner.position == 1 and "loss/value" in metrics and learner.current.problem is problem


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_parts_have_pairs(share: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Selected(name="easy", method=None, share=share)


def test_the_optimum_has_both_rewards() -> None:
    sft, guide, reward = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    product = sft * (guide + reward).exp()
    torch.testing.assert_close(product / product.sum(), torch.tensor([0.57236012, 0.34341607, 0.08422381]))


def test_token_rewards_sum_to_the_reward_less_the_penalty() -> None:
    batch = Rollouts(
        actions=torch.zeros(1, 3, dtype=torch.int64),
        mask=torch.tensor([[True, True, True]]),
        behaviour_logp=torch.tensor([[-1.0, -0.5, -0.2]]),
        ref_logp=torch.tensor([[-1.5, -0.4, -0.8]]),
        scores=TensorDict({"reward": torch.tensor([2.0])}, [1]),
        batch_size=[1],
    )
    rewards = ReferencePenalty(coefficient=0.05)(RewardAtEnd()(batch)).rewards
    assert float(rewards.sum()) == pytest.approx(2.0 - 0.05 * (0.5 - 0.1 + 0.6))


def test_gaps_are_the_models() -> None:
    problem, policy = setting()
    gaps = reward_gaps(RewardModel(policy, seed=0), problem)
    assert gaps.shape == (40,) and gaps.isfinite().all() and float(gaps.std()) > 0


def test_an_empty_part_is_an_error() -> None:
    problem, _ = setting()
    with pytest.raises(ValueError, match="no training prompt of bigrams is left"):
        subset(problem, [])
    assert Selected(name="x", method=None).share == 0.5
