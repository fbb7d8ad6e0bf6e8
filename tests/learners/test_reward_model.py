"""Reward models: the likelihood, learning on known rewards, what the state behind the last token is, rewarding rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.reward_model import (
    BradleyTerry,
    LearnedReward,
    Rewarded,
    calibration_error,
    reward_model,
    with_language_loss,
)
from policyopt.learners.update import Adam
from policyopt.models.language import LanguagePolicy
from policyopt.models.reward_model import RewardModel, load_reward_model
from policyopt.objectives.preference import ranked_rows
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


def test_calibration_by_hand() -> None:
    """Two bins: confidences 0.6, 0.7 (one right) and 0.9 (right): (|1 - 1.3| + |1 - 0.9|) / 3."""
    margin = torch.logit(torch.tensor([0.6, 0.3, 0.9], dtype=torch.float64))
    assert float(calibration_error(margin, bins=2)) == pytest.approx(0.4 / 3)
    assert float(calibration_error(torch.zeros(7))) == 0.0  # says nothing, claims nothing
    assert float(calibration_error(torch.full((8,), 50.0))) == pytest.approx(0.0)  # sure, and right
    assert float(calibration_error(torch.full((8,), -50.0))) == pytest.approx(1.0)  # sure, and wrong
    rng = torch.Generator().manual_seed(0)
    size = 3 * torch.rand(200_000, generator=rng)
    drawn = torch.where(torch.rand(len(size), generator=rng) < size.sigmoid(), size, -size)
    assert float(calibration_error(drawn)) < 0.01 < float(calibration_error(2 * drawn))


def test_evaluation_reports_accuracy_and_calibration() -> None:
    problem = Bigrams(train_size=32, test_size=16, letters=6, length=5)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    learner = BradleyTerry(collector=Rankings(prompts=8)).learner(problem, policy, seed=0)
    found = learner.evaluate()
    assert {"eval/preference_accuracy", "eval/preference_confidence", "eval/calibration"} <= set(found)
    gap = abs(float(found["eval/preference_accuracy"]) - float(found["eval/preference_confidence"]))
    assert gap - 1e-5 <= float(found["eval/calibration"]) <= 1.0  # binned gaps add up to at least the whole one


def test_the_language_loss_is_the_likelihood_of_the_chosen(policy: LanguagePolicy) -> None:
    model = RewardModel(policy, seed=0)
    batch, _ = ranked_responses(policy, Arithmetic(), range(4))
    objective = with_language_loss(0.5).objective
    batch = objective.prepare(batch)
    loss = objective(model.evaluate(batch, objective.want()), batch)
    plain = BradleyTerry().objective
    outputs = model.evaluate(batch, plain.want())
    assert outputs.logp is None
    chosen = ranked_rows(batch)[:, 0]
    likelihood = model.body.evaluate(batch).logp.sum(1)[chosen].mean()
    torch.testing.assert_close(loss.value, plain(outputs, batch).value - 0.5 * likelihood)
    loss.value.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_a_saved_model_scores_alike_and_rewards_rollouts(tmp_path) -> None:
    problem = Bigrams(train_size=32, test_size=8, letters=6, length=5)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    model = RewardModel(policy, seed=3)
    batch, _ = ranked_responses(policy, problem, range(8))
    model.standardize(batch, 4096)
    model.save(tmp_path)
    loaded = load_reward_model(tmp_path, "cpu")
    torch.testing.assert_close(loaded.score(batch, 4096), model.score(batch, 4096))
    part = LearnedReward(saved=str(tmp_path))
    rewarded = part(batch, policy, part.build(policy, 0), 4096)
    torch.testing.assert_close(rewarded.scores["reward"], model.score(batch, 4096))
    with pytest.raises(ValueError, match="holds no reward model"):
        load_reward_model(tmp_path / "elsewhere")


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
