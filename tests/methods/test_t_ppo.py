"""T-PPO (arXiv 2506.15050): extended advantages by hand, slots that lose no token, two models that learn from different ones."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from policyopt import registry
from policyopt.credit.returns import (
    GeneralizedAdvantage,
    MonteCarloTargets,
    RewardAtEnd,
    extended_advantage,
    generalized_advantage,
)
from policyopt.learners.annotators import evaluated
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import t_ppo
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.models.language_critic import LanguageCritic
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.language import Groups
from policyopt.rollouts.windows import RECORDED, Unfinished, Windows
from policyopt.types import Clock, Collected, Rollouts

LIMIT = 12
PROBLEM = Arithmetic(terms=(2, 4), train_size=64, max_new_tokens=LIMIT)
VALUES = torch.tensor([[0.2, 0.4, 0.5]])


@pytest.fixture
def policy(policy: LanguagePolicy) -> LanguagePolicy:
    """One in eight tokens is the end: most responses end within the limit, at different lengths."""
    with torch.no_grad():
        policy.head.weight *= 0.2
        states = torch.randn(64, policy.head.weight.shape[1], generator=torch.Generator().manual_seed(0))
        policy.head.weight[policy.end_tokens] += 0.05 * states.mean(0)
    return policy


def advantage(value: Tensor, complete: bool, reward: float = 0.0, **settings: Any) -> Tensor:
    """One response with values [1, T] before its tokens; the critic says 9 behind them."""
    end = torch.zeros(value.shape, dtype=torch.bool)
    end[:, -1] = True
    never = torch.zeros_like(end)
    following = torch.cat([value[:, 1:], torch.full((len(value), 1), 9.0)], 1)
    ends = (end, never) if complete else (never, end)
    return extended_advantage(end * reward, value, following, *ends, **settings)


def test_an_unfinished_response_by_hand() -> None:
    torch.testing.assert_close(advantage(VALUES, False, lam=0.95), torch.tensor([[0.295, 0.1, 0.0]]))
    torch.testing.assert_close(advantage(VALUES, False, lam=1.0), torch.tensor([[0.3, 0.1, 0.0]]))
    torch.testing.assert_close(advantage(VALUES, False, lam=1.0), VALUES[:, -1:] - VALUES)


def test_a_finished_response_by_hand() -> None:
    found = advantage(VALUES, True, reward=1.0, lam=0.95)
    torch.testing.assert_close(found, torch.tensor([[0.74625, 0.575, 0.5]]))


def test_lambda_1_and_lambda_0() -> None:
    torch.testing.assert_close(advantage(VALUES, True, reward=1.0, lam=1.0), 1.0 - VALUES)
    torch.testing.assert_close(advantage(VALUES, False, lam=0.0), torch.tensor([[0.2, 0.1, 0.0]]))


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_last_advantage_of_an_unfinished_response_is_zero(lam: float) -> None:
    value = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(advantage(value, False, lam=lam)[:, -1], torch.zeros(5))
    # with γ below 1 it is not: nothing is behind it but a discounted copy of the value
    torch.testing.assert_close(advantage(value, False, lam=lam, gamma=0.9)[:, -1], -0.1 * value[:, -1])


def test_a_constant_critic_learns_nothing_from_unfinished_responses() -> None:
    assert torch.equal(advantage(torch.full((2, 6), 0.3), False), torch.zeros(2, 6))


def test_next_takes_the_critics_value_behind_the_cut() -> None:
    found = advantage(VALUES, False, bootstrap="next", lam=0.5)
    # δ = 0.2, 0.1, 8.5
    torch.testing.assert_close(found, torch.tensor([[0.2 + 0.5 * (0.1 + 0.5 * 8.5), 0.1 + 0.5 * 8.5, 8.5]]))
    following = torch.cat([VALUES[:, 1:], torch.full((1, 1), 9.0)], 1)
    on = torch.tensor([[True, True, False]])
    ordinary = generalized_advantage(torch.zeros(1, 3), VALUES, following, torch.ones(1, 3), on, 0.5)
    torch.testing.assert_close(found, ordinary)


def test_another_bootstrap_is_refused() -> None:
    with pytest.raises(ValueError, match="'prev' or 'next'"):
        advantage(VALUES, False, bootstrap="mean")


def test_the_critic_knows_the_state_behind_the_last_token(policy: LanguagePolicy) -> None:
    critic = LanguageCritic(policy, 0)
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(0))
    batch = Groups(prompts=6, samples=2)(policy, PROBLEM, Clock()).batches["rollouts"]
    value, following = critic.values(batch, 64)
    torch.testing.assert_close(value, critic.value(batch).detach(), atol=1e-5, rtol=0)
    for row in range(len(batch)):
        length = int(batch.length[row])
        tokens = torch.cat([batch.prompt[row, : batch.prompt_length[row]], batch.actions[row, :length]])
        states = critic.policy.engine.prefill([tokens])[0]
        torch.testing.assert_close(following[row, length - 1], critic.value_head(states)[0, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(following[row, : length - 1], value[row, 1:length])


# -- slots


def windows(policy: LanguagePolicy, steps: int, change: float = 0.0, **settings: Any) -> list[Collected]:
    """Steps of one collector; the policy's weights change in between."""
    collector = Windows(**{"slots": 8, "window": 4, **settings})
    memory, collected = collector.memory(), []
    for step in range(steps):
        collected.append(collector(policy, PROBLEM, Clock(seed=1, step=step), memory))
        with torch.no_grad():
            for weight in policy.parameters():
                weight += change * torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
    return collected


def own(batch: Rollouts, name: str, row: int) -> Tensor:
    return getattr(batch, name)[row, : int(batch.length[row])]


def test_every_token_is_in_one_window_and_in_one_finished_response(policy: LanguagePolicy) -> None:
    grown: dict[int, dict[str, Tensor]] = {}
    sampled = finished = 0
    for collected in windows(policy, 8, change=0.01):
        recent, done = collected.batches["rollouts"], collected.batches.get("completed")
        for row, prompt in enumerate(recent.prompt_id.tolist()):
            new = {name: own(recent, name, row) for name in RECORDED}
            assert 1 <= len(new["actions"]) <= 4
            kept = grown.setdefault(prompt, {name: column[:0] for name, column in new.items()})
            asked = torch.cat([*policy.encode(PROBLEM.prompts([prompt])), kept["actions"]])
            assert torch.equal(recent.prompt[row, : recent.prompt_length[row]], asked)
            grown[prompt] = {name: torch.cat([kept[name], new[name]]) for name in RECORDED}
            sampled += len(new["actions"])
        for row, prompt in enumerate([] if done is None else done.prompt_id.tolist()):
            whole = grown.pop(prompt)
            assert all(torch.equal(own(done, name, row), whole[name]) for name in RECORDED)
            finished += len(whole["actions"])
        over = recent.terminated.any(1)
        assert int(over.sum()) == (0 if done is None else len(done)) == collected.metrics["response/completed"]
        assert torch.equal(over, ~recent.truncated.any(1))
    assert finished > 0 and sampled == finished + sum(len(row["actions"]) for row in grown.values())


def test_prompts_are_served_in_the_order_of_other_collectors(policy: LanguagePolicy) -> None:
    seen: list[int] = []
    for collected in windows(policy, 8):
        seen += [i for i in collected.batches["rollouts"].prompt_id.tolist() if i not in seen]
    groups = Groups(prompts=len(seen), samples=1)(policy, PROBLEM, Clock(seed=1))
    assert seen == groups.batches["rollouts"].prompt_id.tolist()


def test_log_probabilities_are_those_of_the_policy_that_sampled(policy: LanguagePolicy) -> None:
    first, second = windows(policy, 2, slots=32, change=0.0)
    for batch in (first.batches["rollouts"], second.batches["rollouts"]):
        torch.testing.assert_close(batch.behaviour_logp * batch.mask, evaluated(policy, batch, "logp", 4096))
    before = deepcopy(policy.state_dict())
    first, second = windows(policy, 2, slots=32, change=0.05, whole=True)
    policy.load_state_dict(before)
    again = evaluated(policy, second.batches["rollouts"], "logp", 4096)
    old, whole = first.batches["rollouts"], second.batches["rollouts"]
    for row, prompt in enumerate(whole.prompt_id.tolist()):
        length = int(whole.length[row])
        begun = int(old.length[old.prompt_id == prompt].sum())  # 0 where the prompt is new
        recorded = whole.behaviour_logp[row]
        torch.testing.assert_close(recorded[:begun], again[row, :begun], atol=1e-5, rtol=0)
        assert (recorded[begun:length] - again[row, begun:length]).abs().max() > 1e-4


@pytest.mark.parametrize("window", [5, 12, 50])
def test_a_response_ends_at_its_limit(policy: LanguagePolicy, window: int) -> None:
    with torch.no_grad():
        policy.head.weight *= 0.0
    lengths = []
    for collected in windows(policy, 6, slots=32, window=window):
        done = collected.batches.get("completed")
        if done is not None:
            assert int(done.length.max()) <= LIMIT
            at_limit = done.truncated.any(1)
            assert torch.equal(done.length[at_limit], torch.full_like(done.length[at_limit], LIMIT))
            last = done.actions.gather(1, done.length[:, None] - 1).squeeze(1)
            assert torch.equal(torch.isin(last, policy.end_tokens), ~at_limit)
            lengths += done.length.tolist()
    assert LIMIT in lengths and min(lengths) < LIMIT


def test_what_ends_with_its_window_is_finished(policy: LanguagePolicy) -> None:
    done = [c.batches["completed"] for c in windows(policy, 12, slots=32) if "completed" in c.batches]
    exact = sum(int(((batch.length == 4) & batch.terminated.any(1)).sum()) for batch in done)
    assert exact > 0
    assert sum(int((batch.length % 4 == 0).sum()) for batch in done) > exact  # some at the limit, 12


def test_a_window_as_long_as_a_response_is_ppo_with_a_critic_of_its_own(policy: LanguagePolicy) -> None:
    shared = {"epochs": 2, "minibatches": 3}
    ours = replace(
        t_ppo.method(), collector=Windows(slots=12, window=LIMIT), credit=(t_ppo.ExtendedAdvantage(lam=0.9),), **shared
    )
    theirs = OnPolicy(
        collector=Groups(prompts=12, samples=1),
        critic=Critic(),
        credit=(RewardAtEnd(), GeneralizedAdvantage(lam=0.9), MonteCarloTargets()),
        objective=t_ppo.method().objective,
        **shared,
    )
    other = policy.copied()
    one, two = ours.learner(PROBLEM, policy, seed=5), theirs.learner(PROBLEM, other, seed=5)
    for _ in range(3):
        a, b = one.step(), two.step()
    assert float(a["loss/value"]) == pytest.approx(float(b["loss/value"]), rel=1e-4)
    for x, y in zip(policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


# -- two models


def small(variant: str = "", window: int = 3) -> OnPolicy:
    made = registry.method(f"t-ppo{variant}")
    assert isinstance(made, OnPolicy) and isinstance(made.collector, Windows)
    return replace(made, collector=replace(made.collector, slots=12, window=window))


def test_a_critic_learns_from_finished_responses_alone(policy: LanguagePolicy) -> None:
    method = replace(small(window=2), minibatches=1)
    learner = replace(method, collector=Windows(slots=2, window=2)).learner(PROBLEM, policy, seed=0)
    assert learner.critic is not None
    torch.nn.init.ones_(learner.critic.model.value_head.bias)
    waited = []
    for _ in range(8):
        before = [p.detach().clone() for p in learner.critic.model.parameters()]
        metrics = learner.step()
        after = learner.critic.model.parameters()
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert (
            same == ("loss/value" not in metrics) == (metrics["response/completed"] == 0) and "loss/policy" in metrics
        )
        waited.append(same)
    assert any(waited) and not all(waited)


def test_targets_of_the_critic_are_what_was_earned() -> None:
    end = torch.tensor([[False, True, False], [False, False, True]])
    batch = Rollouts(
        actions=torch.zeros(2, 3, dtype=torch.int64),
        mask=torch.tensor([[True, True, False], [True, True, True]]),
        rewards=end * torch.tensor([[1.0], [0.5]]),
        discount=torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
        batch_size=[2],
    )
    torch.testing.assert_close(MonteCarloTargets()(batch).returns, torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.5, 0.5]]))


def test_the_critic_has_passes_of_its_own(policy: LanguagePolicy) -> None:
    counted = []
    method = replace(small(window=LIMIT), epochs=1, minibatches=1)
    assert method.critic is not None
    learner = replace(method, critic=replace(method.critic, epochs=3, minibatches=50)).learner(PROBLEM, policy, seed=0)
    assert learner.critic is not None
    plain = learner.critic.update
    learner.critic.update = lambda batch, *rest: counted.append(len(batch)) or plain(batch, *rest)  # type: ignore[method-assign]
    learner.step()
    assert counted == [1] * 36  # twelve finished responses, three times


def test_advantages_are_whitened_over_the_tokens_of_the_step(policy: LanguagePolicy) -> None:
    learner = small().learner(PROBLEM, policy, seed=0)
    assert learner.critic is not None
    torch.nn.init.normal_(learner.critic.model.value_head.weight)
    learner.step()
    collected = learner.method.collector(policy, PROBLEM, learner.clock, learner.memories["collector"])
    batch = learner._credited(collected.batches["rollouts"])
    chosen = batch.advantage[batch.mask]
    assert float(chosen.mean()) == pytest.approx(0.0, abs=1e-5) and float(chosen.std()) == pytest.approx(1.0, abs=1e-3)
    assert int(batch.mask.sum()) == int(collected.batches["rollouts"].length.sum()) <= 12 * 3


@pytest.mark.parametrize("variant", ["", *(f":{name}" for name in t_ppo.VARIANTS)])
def test_a_resume_in_the_middle_of_responses_is_bit_identical(policy: LanguagePolicy, variant: str) -> None:
    other = policy.copied()
    learner, again = (small(variant).learner(PROBLEM, p, seed=3) for p in (policy, other))
    for _ in range(2):
        learner.step()
    memory = learner.memories["collector"]
    assert isinstance(memory, Unfinished) and memory.ids and all(len(row["actions"]) for row in memory.tokens)
    again.load_state_dict(deepcopy(learner.state_dict()))
    for _ in range(3):
        a, b = learner.step(), again.step()
        assert a.keys() == b.keys()
        numbers = (torch.tensor([float(value) for value in metrics.values()]) for metrics in (a, b))
        torch.testing.assert_close(*numbers, rtol=0, atol=0, equal_nan=True)
    for x, y in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)


def test_all_tokens_are_trained_again(policy: LanguagePolicy) -> None:
    for whole in (False, True):
        _, second = windows(policy, 2, whole=whole)
        batch = second.batches["rollouts"]
        assert (int(batch.length.max()) > 4) == whole
        assert int(batch.length.max()) <= 8


def test_sizes_are_checked() -> None:
    for settings in ({"slots": 0}, {"window": 0}):
        with pytest.raises(ValueError, match="slots and window must be positive"):
            Windows(**settings)
    assert Windows(sampling=Sampling(max_new_tokens=7)).sampling.max_new_tokens == 7
