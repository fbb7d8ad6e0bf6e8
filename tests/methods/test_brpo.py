"""BRPO (arXiv 2505.13438): advantages by hand, what they reduce to, and rows of traces and answers that belong together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyopt import registry
from policyopt.methods import brpo
from policyopt.methods.brpo import (
    AnswerAdvantage,
    Anytime,
    Baseline,
    CoupledAnswer,
    GroupOnly,
    NoBaseline,
    OwnOnly,
    ThinkingAdvantage,
    largest,
    own_baseline,
    proportional,
    still_to_come,
    thinking_advantage,
    uniform,
)
from policyopt.models.language import LanguagePolicy
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.problems.language.thinking import Thinking
from policyopt.types import Clock, Rollouts

BUDGETS = (2000, 4000, 6000, 8000)
REWARDS = torch.tensor([[0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.25, 0.0]])
PAIR = torch.zeros(2, dtype=torch.int64)


def advantages(prior: tuple[float, ...], baseline: Baseline, rewards: Tensor = REWARDS) -> Tensor:
    group = torch.zeros(len(rewards), dtype=torch.int64)
    return thinking_advantage(rewards, torch.tensor(prior), group, baseline)


def test_by_hand() -> None:
    want = [[0.21875, 0.2890625, 0.1822917, 0.1383929], [-0.21875, -0.1484375, -0.046875, -0.0580357]]
    torch.testing.assert_close(advantages(uniform(BUDGETS), Baseline()), torch.tensor(want), atol=1e-6, rtol=0)
    last = [[0.5, 0.625, 0.5833333, 0.5535714], [-0.5, -0.375, -0.25, -0.2321429]]
    torch.testing.assert_close(advantages(largest(BUDGETS), Baseline()), torch.tensor(last), atol=1e-6, rtol=0)


def test_the_largest_budget_with_the_groups_mean_is_grpo_without_deviation() -> None:
    want = torch.tensor([[0.5], [-0.5]]).expand(2, 4)
    torch.testing.assert_close(advantages(largest(BUDGETS), GroupOnly()), want)


def test_priors() -> None:
    assert proportional(BUDGETS) == (0.1, 0.2, 0.3, 0.4)
    assert uniform(BUDGETS) == (0.25,) * 4 and largest(BUDGETS) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("prior", [uniform, proportional, largest])
def test_the_first_segment_has_the_groups_baseline_alone(prior: Any) -> None:
    rewards = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    mixed, group = (advantages(prior(BUDGETS), baseline, rewards) for baseline in (Baseline(), GroupOnly()))
    torch.testing.assert_close(mixed[:, 0], group[:, 0])
    assert not torch.allclose(mixed[:, 1], group[:, 1])


def test_a_trace_that_scores_the_same_at_all_budgets_has_nothing_left_to_gain() -> None:
    rewards = torch.tensor([[0.75] * 4, [0.25] * 4])
    own, mixed, group = (advantages(uniform(BUDGETS), b, rewards) for b in (OwnOnly(), Baseline(), GroupOnly()))
    torch.testing.assert_close(own[:, 1:], torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed, group * torch.tensor([4, 3, 2, 1]) / 4)


def test_one_budget_and_one_answer_is_the_reward_minus_the_groups_mean() -> None:
    reward = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0]])
    torch.testing.assert_close(advantages((1.0,), Baseline(), reward), reward - reward.mean())
    assert float(advantages((1.0,), Baseline(), reward[:1])) == 1.0  # a group of one has no baseline
    torch.testing.assert_close(advantages((1.0,), NoBaseline(), reward), reward)


def test_the_own_baseline_knows_nothing_of_what_is_still_to_come() -> None:
    """It is a constant for the segment's actions, so that it biases no gradient; the group's mean holds 1/G of the return."""
    prior = torch.tensor(proportional(BUDGETS))
    rewards = torch.rand(3, 4, requires_grad=True)
    for j in range(4):
        (slope,) = torch.autograd.grad(own_baseline(rewards, prior)[:, j].sum(), rewards)
        assert not slope[:, j:].any() and bool((slope[:, :j] > 0).all())
    mixed = thinking_advantage(rewards, prior, torch.zeros(3, dtype=torch.int64), GroupOnly())
    (slope,) = torch.autograd.grad(mixed[0, 1], rewards)
    torch.testing.assert_close(slope[0, 1:], prior[1:] * 2 / 3)


def test_the_expected_gradient_is_that_of_the_returns() -> None:
    """Two segments of one coin each, r_j the coins so far: enumerated over all pairs of traces, V1 leaves the gradient as it
    is and V2 shrinks it to (G - 1)/G."""
    outcomes = [(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    prior, heads = torch.tensor([0.5, 0.5]), 0.3
    total = {name: torch.zeros(2) for name in ("plain", "own", "group")}
    for first in outcomes:
        for second in outcomes:
            traces = torch.tensor([first, second])
            chance = torch.where(traces == 1, heads, 1 - heads).prod()
            score = traces - heads  # ∇ log π by the coin's logit
            rewards = torch.stack([traces[:, 0], traces.mean(1)], 1)
            for name, part in (("plain", NoBaseline()), ("own", OwnOnly()), ("group", GroupOnly())):
                advantage = thinking_advantage(rewards, prior, PAIR, part)
                total[name] += chance * (score * advantage).mean(0)
    torch.testing.assert_close(total["own"], total["plain"])
    torch.testing.assert_close(total["group"], total["plain"] / 2)
    assert float(total["plain"].min()) > 0.01


@pytest.fixture
def writing(policy: LanguagePolicy) -> LanguagePolicy:
    """Writes digits, commas, ``;`` and its end token alone, so that traces close, end and are cut."""
    with torch.no_grad():
        policy.head.weight.mul_(0.05)
        policy.head.bias = torch.nn.Parameter(torch.full((len(policy.head.weight),), -30.0))
        policy.head.bias[policy.encode(["0123456789,"])[0]] = 0.0
        policy.head.bias[policy.encode([";"])[0]] = 0.5
        policy.head.bias[policy.end_tokens] = -0.5
    return policy


PROBLEM = Arithmetic(terms=(2, 4), max_new_tokens=24)


def collected(policy: LanguagePolicy, **fields: Any) -> Rollouts:
    part = Anytime(**{"prompts": 3, "samples": 4, "budgets": (3, 6, 12), "answers": 2, **fields})
    return part(policy, PROBLEM, Clock(seed=0)).batches["rollouts"]


def test_answers_stand_behind_their_truncated_trace(writing: LanguagePolicy) -> None:
    batch = collected(writing)
    traces, answers = batch[:12], batch[12:]
    assert len(answers) == 12 * 3 * 2
    ends = writing.end_tokens.tolist()
    kinds = set()
    for i in range(len(answers)):
        row, j = i // 6, i % 6 // 2
        trace = traces.actions[row, : traces.length[row]].tolist()
        closed, ended = trace[-1] == int(writing.encode([";"])[0][0]), trace[-1] in ends
        kept = [t for t in trace if t not in ends][: (3, 6, 12)[j]]
        forced = not closed or len(trace) > (3, 6, 12)[j]
        kinds.add((closed, ended, forced))
        prompt = traces.prompt[row, : traces.prompt_length[row]].tolist()
        want = [*prompt, *kept, *([int(writing.encode([";"])[0][0])] if forced else [])]
        assert answers.prompt[i, : answers.prompt_length[i]].tolist() == want
        assert int(answers.segment[i, 0]) == 3 + j and int(answers.length[i]) == 1
        text = writing.decode(torch.tensor([want[len(prompt) :]]), torch.tensor([len(want) - len(prompt)]))[0]
        said = text + writing.decode(answers.actions[i : i + 1], torch.tensor([1]))[0]
        scores = PROBLEM.score([int(answers.prompt_id[i])], [said])
        assert float(scores["reward"]) == float(answers.scores["reward"][i])
    assert len(kinds) >= 4  # closed within the budget and after it, ended, never closed
    means = answers.scores["reward"].view(12, 3, 2).mean(2)
    torch.testing.assert_close(traces.scores["budgets"], means)
    assert traces.segment[0].tolist()[:7] == [0, 0, 0, 1, 1, 1, 2]
    logp = writing.evaluate(batch).logp
    assert logp is not None
    torch.testing.assert_close(batch.behaviour_logp * batch.mask, logp, atol=5e-6, rtol=1e-5)


def credited(batch: Rollouts, answer: AnswerAdvantage | None = None) -> Rollouts:
    size = batch.scores["budgets"].shape[1]
    return (answer or AnswerAdvantage())(ThinkingAdvantage(prior=(1 / size,) * size)(batch))


def random_rewards(batch: Rollouts, traces: int) -> Rollouts:
    rng = torch.Generator().manual_seed(0)
    reward = (torch.rand(len(batch), generator=rng) < 0.5).float()
    budgets = batch.scores["budgets"].clone()
    budgets[:traces] = reward[traces:].view(traces, budgets.shape[1], -1).mean(2)
    scores = {**dict(batch.scores.items()), "reward": reward, "budgets": budgets}
    return batch.replace(scores=scores)


def test_tokens_have_the_advantage_of_their_segment_and_answers_sum_to_zero(writing: LanguagePolicy) -> None:
    batch = random_rewards(collected(writing), 12)
    given = credited(batch)
    traces, answers = given[:12], given[12:]
    each = thinking_advantage(traces.scores["budgets"], torch.full((3,), 1 / 3), traces.group, Baseline())
    for row in range(12):
        for t in range(traces.mask.shape[1]):
            want = float(each[row, (t >= 3) + (t >= 6)]) if t < int(traces.length[row]) else 0.0
            assert float(traces.advantage[row, t]) == pytest.approx(want)
    assert bool((answers.advantage[:, 0] != 0).any()) and not bool(answers.advantage[:, 1:].any())
    for point in answers.group.unique():
        own = answers.group == point
        assert float(answers.advantage[own].sum()) == pytest.approx(0.0, abs=1e-6)
        assert len(answers.prompt_length[own].unique()) == 1
    counts = answers.group.unique(return_counts=True)[1]
    assert set(counts.tolist()) >= {2, 4}  # merged budgets share a truncation point, with two answers each


def test_with_one_answer_the_prompts_other_traces_are_the_baseline(writing: LanguagePolicy) -> None:
    batch = random_rewards(collected(writing, answers=1), 12)
    answers = credited(batch)[12:]
    reward = answers.scores["reward"].view(3, 4, 3)  # prompts, traces, budgets
    want = reward - reward.mean(1, keepdim=True)
    torch.testing.assert_close(answers.advantage[:, 0], want.flatten())


def test_coupled_answers_train_the_last_alone(writing: LanguagePolicy) -> None:
    batch = random_rewards(collected(writing), 12)
    answers = credited(batch, CoupledAnswer())[12:]
    reward = answers.scores["reward"].view(3, 4, 6)
    want = torch.zeros(3, 4, 6)
    want[..., -1] = reward[..., -1] - reward[..., -1].mean(1, keepdim=True)
    torch.testing.assert_close(answers.advantage[:, 0], want.flatten())


def test_a_prior_of_another_size_and_bad_budgets_are_refused(writing: LanguagePolicy) -> None:
    with pytest.raises(ValueError, match="the prior is over 2 budgets, but the traces have 3"):
        ThinkingAdvantage(prior=(0.5, 0.5))(collected(writing))
    with pytest.raises(ValueError, match="budgets must be positive and rise"):
        Anytime(budgets=(8, 4))
    with pytest.raises(ValueError, match="a text that closes the thinking"):
        Anytime(close="")


@pytest.mark.parametrize("name", ["brpo", *(f"brpo:{variant}" for variant in brpo.VARIANTS)])
def test_it_trains(name: str) -> None:
    problem = registry.problem("thinking:terms=2-4,train_size=40,test_size=8")
    policy = registry.policy("tiny", problem, seed=0, device="cpu")
    method = registry.method(name)
    method = replace(method, collector=replace(method.collector, prompts=2, samples=4))
    start = [p.detach().clone() for p in policy.parameters()]
    metrics = method.learner(problem, policy, seed=0).step()
    assert torch.isfinite(torch.as_tensor(metrics["loss/policy"])) and metrics["cost/tokens"] > 8
    assert any(not torch.equal(a, b) for a, b in zip(start, policy.parameters(), strict=True))


def test_still_to_come() -> None:
    got = still_to_come(REWARDS, torch.full((4,), 0.25))
    torch.testing.assert_close(got[0], torch.tensor([0.5, 0.5, 0.375, 0.25]))


def test_evaluation_at_budgets() -> None:
    """A policy that is always right when it has finished thinking, and says the last running value when it is cut."""
    problem = Thinking(evaluation_size=64, terms=(2, 6), budgets=(1, 3, 9))
    chains = {f"{c.text}=": c for c in problem.chains(range(64), "test")}

    def act(prompts: list[Any], samples: int, greedy: bool) -> list[list[str]]:
        texts = []
        for prompt in prompts:
            asked, _, begun = str(prompt).partition("=")
            right = ",".join(map(str, chains[f"{asked}="].results))
            texts.append([f"{right};{right[-1]}" if not begun else begun.rstrip(";")[-1]])
        return texts

    found = problem.evaluate(act, torch.Generator())
    steps = [len(c.operations) for c in chains.values()]
    assert found["eval/accuracy"] == found["eval/budget_9"] == 1.0
    done = {1: sum(s == 1 for s in steps) / len(steps), 3: sum(s <= 2 for s in steps) / len(steps)}
    for budget in (1, 3):
        assert done[budget] <= found[f"eval/budget_{budget}"] < done[budget] + 0.35
    mean = sum(found[f"eval/budget_{b}"] for b in (1, 3, 9)) / 3
    assert found["eval/anytime"] == pytest.approx(mean)
    with pytest.raises(ValueError, match="budgets must be positive and rise"):
        Thinking(budgets=(4, 2))
    assert registry.problem("thinking:terms=2-6,budgets=1+3+9").budgets == (1, 3, 9)
