"""ReMax (arXiv 2310.10505): the return by hand, variances of the one-sample gradient on a two-armed bandit, invariances."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import remax
from policyopt.methods.remax import Cumulative, GreedyBaseline, OneStep, WithGreedy, one_step_return
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.types import Clock, Rollouts


def row(reward: float, greedy: float) -> Rollouts:
    return Rollouts(
        actions=torch.zeros(1, 4, dtype=torch.int64),
        mask=torch.tensor([[True, True, True, False]]),
        behaviour_logp=torch.tensor([[-0.5, -1.0, -0.2, 0.0]]),
        ref_logp=torch.tensor([[-0.7, -0.8, -0.2, 0.0]]),
        scores={"reward": torch.tensor([reward]), "greedy": torch.tensor([greedy])},
        batch_size=[1],
    )


def test_return_by_hand() -> None:
    advantage = OneStep(beta=0.05, gamma=0.99)(row(1.0, 0.4)).advantage
    torch.testing.assert_close(advantage, torch.tensor([[0.5721794, 0.5980600, 0.5940000, 0.0]]), atol=1e-6, rtol=0)


def test_without_discount_and_divergence_all_tokens_share_the_difference() -> None:
    shared = torch.tensor([[0.6, 0.6, 0.6, 0.0]])
    torch.testing.assert_close(OneStep(beta=0.0, gamma=1.0)(row(1.0, 0.4)).advantage, shared)
    torch.testing.assert_close(GreedyBaseline()(row(1.0, 0.4)).advantage, shared)
    torch.testing.assert_close(Cumulative(beta=0.0)(row(1.0, 0.4)).advantage, shared)


def test_cumulative_divergence_by_hand() -> None:
    # k1 = (.2, -.2, 0): later sums -.05 (0, -.2, 0)
    want = torch.tensor([[0.6, 0.61, 0.6, 0.0]])
    torch.testing.assert_close(Cumulative(beta=0.05)(row(1.0, 0.4)).advantage, want)


def test_the_clamp_is_on_the_difference() -> None:
    assert float(OneStep(beta=0.0, gamma=1.0)(row(30.0, 27.0)).advantage[0, 0]) == pytest.approx(3.0)
    assert float(OneStep(beta=0.0, gamma=1.0)(row(30.0, 1.0)).advantage[0, 0]) == pytest.approx(5.0)


def test_a_constant_added_to_all_rewards_changes_nothing() -> None:
    one, two = OneStep()(row(1.0, 0.4)), OneStep()(row(3.0, 2.4))
    torch.testing.assert_close(one.advantage, two.advantage)


def moments(p: float, first: float, second: float, baseline: float) -> tuple[float, float]:
    """Mean and variance over the sample of the one-sample gradient (by the logit difference) of a two-armed bandit, with
    the advantages that the part computes."""
    probability = torch.tensor([p, 1 - p], dtype=torch.float64)
    score = torch.tensor([1 - p, -p], dtype=torch.float64)
    batch = Rollouts(
        actions=torch.zeros(2, 1, dtype=torch.int64),
        mask=torch.ones(2, 1, dtype=torch.bool),
        scores={"reward": torch.tensor([first, second]).double(), "greedy": torch.full((2,), baseline).double()},
        batch_size=[2],
    )
    gradient = GreedyBaseline()(batch).advantage[:, 0] * score
    mean = (probability * gradient).sum()
    return float(mean), float((probability * (gradient - mean) ** 2).sum())


@pytest.mark.parametrize(
    ("p", "plain", "greedy", "mean"),
    [(0.6, 0.4704, 0.0864, 0.24), (0.8, 0.2304, 0.1024, 0.16), (0.9, 0.1089, 0.0729, 0.09)],
)
def test_bandit_variances(p: float, plain: float, greedy: float, mean: float) -> None:
    assert moments(p, 2.0, 1.0, 0.0) == pytest.approx((mean, plain), abs=1e-9)
    assert moments(p, 2.0, 1.0, 2.0) == pytest.approx((mean, greedy), abs=1e-9)


def test_the_greedy_baseline_can_be_worse_late_in_training() -> None:
    """With rewards r1 > r2 > 0 it lowers the variance iff p < 1/2 + r2 / 2(r1 - r2), which is .6 for (3, .5)."""
    assert moments(0.6, 3.0, 0.5, 0.0)[1] == pytest.approx(0.54)
    assert moments(0.6, 3.0, 0.5, 3.0)[1] == pytest.approx(0.54)
    assert moments(0.65, 3.0, 0.5, 0.0)[1] == pytest.approx(0.43012, abs=1e-5)
    assert moments(0.65, 3.0, 0.5, 3.0)[1] == pytest.approx(0.60074, abs=1e-5)


PROBLEM = Arithmetic(terms=3)


def small(method: OnPolicy, **changes: object) -> OnPolicy:
    return replace(method, collector=replace(method.collector, prompts=6, **changes))


def test_the_greedy_score_is_that_of_the_current_policy(policy: LanguagePolicy) -> None:
    collector = WithGreedy(prompts=4, samples=3)
    batch = collector(policy, PROBLEM, Clock(seed=1)).batches["rollouts"]
    for n in range(4):
        prompt = policy.encode(PROBLEM.prompts([int(batch.prompt_id[3 * n])]))
        answer = policy.extend(
            prompt, 1, Sampling(temperature=0), torch.Generator(), max_new_tokens=PROBLEM.max_new_tokens
        )
        text = policy.decode(answer.actions, answer.length)
        want = PROBLEM.score([int(batch.prompt_id[3 * n])], text)["reward"]
        assert torch.equal(batch.scores["greedy"][3 * n : 3 * n + 3], want.expand(3))


def test_the_greedy_response_is_paid_for(policy: LanguagePolicy) -> None:
    collected = WithGreedy(prompts=4, samples=2)(policy, PROBLEM, Clock(seed=1))
    sampled = int(collected.batches["rollouts"].length.sum())
    assert collected.metrics["cost/tokens"] > sampled


def test_equal_rewards_of_both_responses_give_no_gradient(policy: LanguagePolicy) -> None:
    """An untrained policy fails on every prompt, sampled or greedy: without a divergence nothing may move."""
    before = [p.clone() for p in policy.parameters()]
    learner = small(remax.plain()).learner(PROBLEM, policy, seed=0)
    metrics = learner.step()
    assert metrics["reward/mean"] == metrics["reward/greedy"] == 0
    assert float(metrics["gradient/norm"]) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_first_step_has_no_divergence_from_the_reference(policy: LanguagePolicy) -> None:
    learner = small(remax.method()).learner(PROBLEM, policy, seed=0)
    batch = learner._credited(learner.method.collector(policy, PROBLEM, learner.clock).batches["rollouts"])
    torch.testing.assert_close(batch.ref_logp * batch.mask, batch.behaviour_logp * batch.mask, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["remax", "remax:cumulative", "remax:plain"])
def test_variants_train(policy: LanguagePolicy, name: str) -> None:
    learner = small(registry.method(name)).learner(PROBLEM, policy, seed=0)
    for _ in range(2):
        assert torch.isfinite(torch.tensor(float(learner.step()["loss/policy"])))


def test_a_missing_reference_is_named() -> None:
    with pytest.raises(ValueError, match="OneStep reads the column 'ref_logp'"):
        replace(remax.method(), annotators=()).learner(PROBLEM, object(), seed=0)
    assert remax.method().annotators == (Reference(),)


def test_one_step_return_ignores_what_the_policy_did_not_choose() -> None:
    mask = torch.tensor([[True, False, True]])
    k1 = torch.ones(1, 3)
    want = torch.tensor([[0.99**2 - 0.05, 0.0, 0.99 - 0.05]])
    torch.testing.assert_close(one_step_return(torch.ones(1), k1, mask, 0.05, 0.99), want)
