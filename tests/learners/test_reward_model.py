"""Reward models: the likelihood, learning on known rewards, what the state behind the last token is, rewarding rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.reward_model import BradleyTerry, LearnedReward, Rewarded, reward_model
from policyopt.learners.update import Adam
from policyopt.models.language import LanguagePolicy
from policyopt.models.reward_model import RewardModel
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import Rankings, ranked_responses
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, Clock


def test_the_score_is_on_the_state_behind_the_last_token(policy: LanguagePolicy) -> None:
    model = RewardModel(policy, seed=0)
    batch, _ = ranked_responses(policy, Arithmetic(), [0, 1])
    got = model.evaluate(batch).value
    for i in range(len(batch)):
        tokens = torch.cat([batch.prompt[i, : batch.prompt_length[i]], batch.actions[i, : batch.length[i]]])
        hidden, _, _ = policy.engine.prefill([tokens])
        torch.testing.assert_close(got[i], model.head(hidden)[0, 0], atol=1e-5, rtol=0)


def test_pieces_and_standardization(policy: LanguagePolicy) -> None:
    model = RewardModel(policy, seed=0)
    batch, _ = ranked_responses(policy, Arithmetic(), range(8))
    torch.testing.assert_close(model.score(batch, 30), model.score(batch, 4096), atol=1e-5, rtol=0)
    model.standardize(batch, 4096)
    score = model.score(batch, 4096)
    assert float(score.mean()) == pytest.approx(0.0, abs=1e-4) and float(score.std()) == pytest.approx(1.0, abs=1e-4)


def test_it_learns_a_known_reward_and_leaves_the_policy_alone() -> None:
    problem = Bigrams(train_size=800, test_size=200, letters=6, length=6, scale=1.0)
    policy = registry.policy("fresh:layers=1,width=32", problem, seed=0, device="cpu")
    before = [p.detach().clone() for p in policy.parameters()]
    method = BradleyTerry(collector=Rankings(prompts=64), optimizer=Adam(learning_rate=5e-3))
    result = run(method, problem, policy, budget=Budget(updates=60), seed=0, cadence=Cadence(evaluations=1))
    accuracy = result.curve("eval/preference_accuracy")[1]
    assert accuracy[-1] > accuracy[0] + 0.1 and accuracy[-1] > 0.65
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_rollouts_are_rewarded_by_the_model() -> None:
    problem = Bigrams(train_size=32, test_size=8, letters=6, length=5)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    batch = Groups(prompts=4, samples=2)(policy, problem, Clock(seed=0)).batches["rollouts"]
    model = RewardModel(policy, seed=0)
    rewarded = LearnedReward(model=model)(batch, policy, model, 4096)
    torch.testing.assert_close(rewarded.scores["reward"], model.score(batch, 4096))
    torch.testing.assert_close(rewarded.scores["problem_reward"], batch.scores["reward"])


def test_a_learned_reward_needs_a_fitted_model() -> None:
    with pytest.raises(ValueError, match="put a stage with BradleyTerry"):
        LearnedReward().build(None, 0)
    with pytest.raises(ValueError, match="no stage named 'reward' fitted"):
        reward_model({}, "reward")
    with pytest.raises(ValueError, match="from a language policy, got NoneType"):
        BradleyTerry().learner(Bigrams(), None, seed=0)
    assert Rewarded(name="x", method=None).by == "reward"


def test_resume_is_bit_identical() -> None:
    problem = Bigrams(train_size=32, test_size=8, letters=6, length=5)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    method = replace(BradleyTerry(), collector=Rankings(prompts=8))
    whole = method.learner(problem, policy, seed=0, budget=Budget(updates=4))
    whole.step()
    again = method.learner(problem, policy, seed=0, budget=Budget(updates=4))
    again.load_state_dict(whole.state_dict())
    whole.step(), again.step()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
