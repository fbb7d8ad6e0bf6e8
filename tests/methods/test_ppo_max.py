"""PPO-max (arXiv 2307.04964): advantages and moments by hand, invariances, the value clip, the stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from policyopt import registry
from policyopt.credit.returns import GeneralizedAdvantage, ReferencePenalty, RewardAtEnd, generalized_advantage
from policyopt.credit.scaling import RewardMoments, RunningReward
from policyopt.learners.critic_training import CriticTraining
from policyopt.methods import ppo_max
from policyopt.models.reward_model import RewardModel
from policyopt.objectives.value import clipped_value_loss
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.types import Budget, Clock, Rollouts

LOGP = torch.tensor([[-0.4, -0.3, -0.9, -0.2]])


def row(reward: float = 1.0, reference: torch.Tensor = LOGP) -> Rollouts:
    return Rollouts(
        actions=torch.zeros(1, 4, dtype=torch.int64),
        mask=torch.ones(1, 4, dtype=torch.bool),
        behaviour_logp=LOGP,
        ref_logp=reference,
        scores=TensorDict({"reward": torch.tensor([reward])}, [1]),
        batch_size=[1],
    )


def test_advantages_by_hand() -> None:
    rewards, value = torch.tensor([[-0.01, 0.02, 0.0, 1.5]]), torch.tensor([[0.5, 0.6, 0.8, 1.0]])
    following = torch.tensor([[0.6, 0.8, 1.0, 0.0]])
    discount, continues = torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.tensor([[True, True, True, False]])
    advantage = generalized_advantage(rewards, value, following, discount, continues, 0.95)
    torch.testing.assert_close(advantage, torch.tensor([[0.908187, 0.861250, 0.675000, 0.500000]]), atol=1e-6, rtol=0)
    want = torch.tensor([[1.408188, 1.461250, 1.475000, 1.500000]])
    torch.testing.assert_close(advantage + value, want, atol=1e-6, rtol=0)


def test_running_moments_by_hand() -> None:
    memory = RewardMoments()
    assert memory.add(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx((2.0, 1.0))
    assert memory.add(torch.tensor([5.0, 5.0])) == pytest.approx((3.2, 1.788854), abs=1e-6)
    assert RewardMoments().add(torch.tensor([7.0])) == (7.0, 1.0)  # one reward has no deviation
    part, fresh = RunningReward(clip=0.8), RewardMoments()
    fresh.add(torch.tensor([1.0, 2.0, 3.0]))
    batch = row()[torch.tensor([0, 0])].replace(scores=TensorDict({"reward": torch.tensor([5.0, 5.0])}, [2]))
    torch.testing.assert_close(part(batch, fresh).scores["reward"], torch.tensor([0.8, 0.8]))


def test_without_penalty_and_critic_the_advantage_is_the_reward_less_the_value() -> None:
    batch = ReferencePenalty(coefficient=0.0)(RewardAtEnd()(row(2.0)))
    value = torch.tensor([[0.5, 0.6, 0.8, 1.0]])
    following = torch.cat([value[:, 1:], torch.zeros(1, 1)], 1)
    batch = GeneralizedAdvantage(lam=1.0, whiten=False)(batch.replace(value=value, next_value=following))
    torch.testing.assert_close(batch.advantage, 2.0 - value)


def test_at_the_reference_only_the_last_token_is_rewarded() -> None:
    rewards = ReferencePenalty(coefficient=0.05)(RewardAtEnd()(row(1.5))).rewards
    torch.testing.assert_close(rewards, torch.tensor([[0.0, 0.0, 0.0, 1.5]]))


def test_an_affine_change_of_the_reward_changes_nothing() -> None:
    rewards = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    part, found = RunningReward(clip=0.8), []
    for scale, shift in ((1.0, 0.0), (7.0, -20.0)):
        memory = RewardMoments()
        for batch in rewards:
            rows = row()[torch.zeros(16, dtype=torch.int64)]
            rows = rows.replace(scores=TensorDict({"reward": scale * batch + shift}, [16]))
            found.append(part(rows, memory).scores["reward"])
    for one, other in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_value_clip_by_hand() -> None:
    loss = clipped_value_loss(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(1.0), 0.2)
    assert float(loss) == pytest.approx(1.62)


def small(name: str):
    method = registry.method(name)
    two = Budget(updates=2)
    return replace(method, stages=tuple(replace(stage, until=stage.until and two) for stage in method.stages))


def setting():
    problem = Bigrams(train_size=64, test_size=8, letters=6, length=5)
    return problem, registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")


def test_the_policy_waits_for_its_critic() -> None:
    problem, policy = setting()
    before = [p.detach().clone() for p in policy.parameters()]
    learner = small("ppo-max").learner(problem, policy, seed=0, budget=Budget(updates=6))
    for _ in range(4):
        metrics = learner.step()
    assert learner.position == 1 and "loss/value" in metrics and "loss/policy" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    trained = [p.detach().clone() for p in learner.current.critic.model.parameters()]
    learner.step()
    assert learner.position == 2 and not all(
        torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True)
    )
    assert len(trained) == len(list(learner.current.critic.model.parameters()))


def test_a_critic_from_a_reward_model_says_at_the_end_what_it_says() -> None:
    problem, policy = setting()
    model = RewardModel(policy, seed=0)
    batch = Groups(prompts=8, samples=1)(policy, problem, Clock(seed=0)).batches["rollouts"]
    model.standardize(batch, 4096)
    longer = batch.replace(
        actions=torch.cat([batch.actions, torch.zeros(8, 1, dtype=torch.int64)], 1), length=batch.length + 1
    )
    steps = torch.arange(longer.actions.shape[1])
    behind = longer.replace(mask=steps == batch.length[:, None])
    value = model.critic(0).value(behind).sum(1)
    torch.testing.assert_close(value.detach(), model.score(batch, 4096), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["", *(f":{name}" for name in ppo_max.VARIANTS)])
def test_all_variants_train(variant: str) -> None:
    problem, policy = setting()
    method = small(f"ppo-max{variant}")
    steps = 2 * len(method.stages)
    learner = method.learner(problem, policy, seed=0, budget=Budget(updates=steps))
    for _ in range(steps):
        metrics = learner.step()
    assert learner.position == len(method.stages) - 1
    assert torch.isfinite(torch.as_tensor(metrics["loss/policy"] + metrics["loss/value"]))


def test_the_first_minibatch_is_on_policy() -> None:
    problem, policy = setting()
    method = small("ppo-max")
    *first, last = method.stages
    once = replace(last, method=replace(last.method, minibatches=1))
    learner = replace(method, stages=(*first, once)).learner(problem, policy, seed=0, budget=Budget(updates=6))
    for _ in range(5):
        metrics = learner.step()
    assert float(metrics["policy/clip_fraction"]) == 0.0 and float(metrics["policy/kl_k3"]) == pytest.approx(
        0.0, abs=1e-6
    )


def test_training_a_critic_needs_one() -> None:
    with pytest.raises(ValueError, match="no critic to train"):
        CriticTraining()
