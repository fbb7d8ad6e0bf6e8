"""Direct advantage policy optimization (arXiv 2412.18279): its loss and minimisers by hand, its data, its three stages."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt import registry
from policyopt.credit.groups import group_mean
from policyopt.learners.critic_training import CriticFit, SoftTargets
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import dapo_direct
from policyopt.methods.dapo_direct import (
    CriticBaseline,
    KeptStates,
    StepRegression,
    Steps,
    balanced,
    states,
    step_lengths,
    step_regression,
    steps_to_learn,
    value_after,
    wide_enough,
)
from policyopt.models.language import LanguagePolicy
from policyopt.models.language_critic import LanguageCritic
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.types import Budget, Clock, Outputs, Rollouts

REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
CHILDREN = torch.tensor([0.9, 0.4, 0.2], dtype=torch.float64)
ADVANTAGE = CHILDREN - (REFERENCE * CHILDREN).sum()


def test_by_hand() -> None:
    each = step_regression(torch.tensor([0.3, -0.1]), torch.tensor([0.42, -0.08]), 0.5)
    assert float(each.mean()) == pytest.approx(0.0738)
    torch.testing.assert_close(ADVANTAGE, torch.tensor([0.46, -0.04, -0.24], dtype=torch.float64))
    assert float((REFERENCE * ADVANTAGE).sum()) == pytest.approx(0.0)


def loss(logits: Tensor, beta: float, weight: Tensor) -> Tensor:
    ratio = logits.log_softmax(0) - REFERENCE.log()
    return (weight * step_regression(ratio, ADVANTAGE, beta)).sum()


UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)


def test_the_gradient_at_the_reference_is_the_policy_gradient() -> None:
    logits = REFERENCE.log().requires_grad_()
    (got,) = torch.autograd.grad(loss(logits, 0.5, REFERENCE), logits)
    torch.testing.assert_close(got, torch.tensor([-0.184, 0.04, 0.144], dtype=torch.float64))
    (got,) = torch.autograd.grad(loss(logits, 0.5, UNIFORM), logits)
    torch.testing.assert_close(
        got, torch.tensor([-0.2826667, 0.0866667, 0.196], dtype=torch.float64), atol=1e-6, rtol=0
    )


def minimiser(beta: float, weight: Tensor) -> Tensor:
    logits = REFERENCE.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits, beta, weight)
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    return logits.detach().softmax(0)


@pytest.mark.parametrize(
    ("beta", "weight", "want"),
    [
        (2.0, REFERENCE, (0.249305, 0.486426, 0.264270)),
        (0.5, REFERENCE, (0.403997, 0.421602, 0.174401)),
        (0.5, UNIFORM, (0.427979, 0.398023, 0.173998)),
        (2.0, UNIFORM, (0.250377, 0.485047, 0.264576)),
    ],
)
def test_minimisers_by_hand(beta: float, weight: Tensor, want: tuple[float, ...]) -> None:
    got = minimiser(beta, weight)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), atol=2e-6, rtol=0)
    # the multiplier m is the same at all actions, and the regularized gain is β m Σ π²/ν
    ratio = (got / REFERENCE).log()
    multiplier = (ADVANTAGE / beta - ratio) * weight / got
    torch.testing.assert_close(multiplier, multiplier[:1].expand(3), atol=1e-5, rtol=0)
    gain = (got * ADVANTAGE).sum() - beta * (got * ratio).sum()
    assert float(gain) == pytest.approx(float(beta * multiplier[0] * (got.square() / weight).sum()), abs=1e-6)
    assert float(gain) > 0


def test_a_weak_step_is_the_exponential_tilt() -> None:
    tilted = REFERENCE * (ADVANTAGE / 20).exp()
    torch.testing.assert_close(minimiser(20.0, REFERENCE), tilted / tilted.sum(), atol=1e-6, rtol=0)


def test_states_with_narrow_advantages_are_dropped_and_duplicates_count_in_the_mean() -> None:
    value = torch.tensor([0.9] * 2 + [0.4] * 5 + [0.2] * 3 + [0.52, 0.50, 0.45])
    group = torch.tensor([4] * 10 + [1] * 3)
    advantage = value - group_mean(value, group)
    torch.testing.assert_close(advantage[[0, 2, 7]], torch.tensor([0.46, -0.04, -0.24]))
    assert float(advantage[:10].sum()) == pytest.approx(0.0, abs=1e-6)
    assert wide_enough(advantage, group, 0.1).tolist() == [True] * 10 + [False] * 3
    assert not bool(wide_enough(torch.zeros(3), torch.zeros(3), 0.1).any())


def test_responses_are_kept_in_balance() -> None:
    reward = torch.tensor([1.0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    group = torch.tensor([7] * 5 + [3] * 5 + [5] * 5)
    rows = balanced(reward, group, 4)
    assert [int((group[rows] == g).sum()) for g in (7, 3, 5)] == [4, 4, 4]
    assert [float(reward[rows][group[rows] == g].sum()) for g in (7, 3, 5)] == [2.0, 3.0, 0.0]
    assert rows.tolist() == sorted(set(rows.tolist()))


@pytest.fixture
def writing(policy: LanguagePolicy) -> LanguagePolicy:
    """Writes two digits, commas, ``;`` and its end token alone, so that steps are short and often the same."""
    with torch.no_grad():
        policy.head.weight.mul_(0.05)
        policy.head.bias = torch.nn.Parameter(torch.full((len(policy.head.weight),), -30.0))
        policy.head.bias[policy.encode(["12,;"])[0]] = torch.tensor([0.0, 0.0, 0.5, -0.5])
        policy.head.bias[policy.end_tokens] = -0.5
    return policy


PROBLEM = Arithmetic(terms=(2, 4), max_new_tokens=14)


def gathered(policy: LanguagePolicy, **fields: Any) -> Rollouts:
    part = Steps(**{"prompts": 3, "samples": 4, "kept": 2, "completions": 6, **fields})
    return part(policy, PROBLEM, Clock(seed=0)).batches["rollouts"]


def test_states_are_distinct_and_end_with_a_step(writing: LanguagePolicy) -> None:
    data = gathered(writing)
    prefixes = {}
    for row in range(len(data)):
        prompt = data.prompt[row, : data.prompt_length[row]].tolist()
        prefixes.setdefault(tuple(prompt), set()).add(int(data.group[row]))
        text = writing.tokenizer.decode(prompt)
        assert text.endswith(("=", ","))
        own = data.actions[row, : data.length[row]]
        steps = writing.tokenizer.decode(own).split(",")
        assert int(data.segment[row, int(data.length[row]) - 1]) in (len(steps) - 1, len(steps) - 2)
        first = int(step_lengths(data)[row])
        assert writing.tokenizer.decode(own[:first]) == (steps[0] + "," if len(steps) > 1 else steps[0])
    assert all(len(groups) == 1 for groups in prefixes.values()) and len(prefixes) == len(data) // 6 > 3
    assert int(step_lengths(gathered(writing, separator="")).min()) == int(gathered(writing, separator="").length.min())


def scored(data: Rollouts) -> Rollouts:
    rng = torch.Generator().manual_seed(0)
    reward = (torch.rand(len(data), generator=rng) < 0.5).float()
    return data.replace(scores=TensorDict({"reward": reward}, [len(data)]))


def lively(policy: LanguagePolicy) -> LanguageCritic:
    critic = LanguageCritic(policy, 0)
    with torch.no_grad():
        critic.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return critic


def test_the_critics_targets_are_one_row_a_state(writing: LanguagePolicy) -> None:
    data = scored(gathered(writing))
    rows = states(data)
    assert len(rows) == len(data) // 6 and rows.group.unique().numel() == len(rows)
    torch.testing.assert_close(rows.returns[:, 0], data.scores["reward"].view(-1, 6).mean(1))
    critic = lively(writing)
    whole, alone = critic.evaluate(data).value, critic.evaluate(rows).value
    assert whole is not None and alone is not None
    torch.testing.assert_close(alone[:, 0], whole.view(len(rows), 6, -1)[:, 0, 0], atol=1e-5, rtol=1e-5)


def test_children_are_valued_where_they_stand_and_ends_by_their_reward(writing: LanguagePolicy) -> None:
    data, critic = scored(gathered(writing)), lively(writing)
    length = step_lengths(data)
    value = value_after(critic, data, length, 10_000)
    final = length == data.length
    assert 0 < int(final.sum()) < len(data)
    torch.testing.assert_close(value[final], data.scores["reward"][final])
    for row in (~final).nonzero().squeeze(1)[:5].tolist():
        child = torch.cat([data.prompt[row, : data.prompt_length[row]], data.actions[row, : length[row]]])
        one = Rollouts(
            actions=torch.zeros(1, 1, dtype=torch.int64),
            mask=torch.ones(1, 1, dtype=torch.bool),
            prompt=child[None],
            prompt_length=torch.tensor([len(child)]),
            length=torch.ones(1, dtype=torch.int64),
            batch_size=[1],
        )
        assert float(value[row]) == pytest.approx(float(critic.value(one).detach().sigmoid()), abs=1e-5)
    with pytest.raises(ValueError, match="need a critic"):
        value_after(None, data, length, 10_000)


def test_with_the_critics_own_baseline_advantages_telescope(writing: LanguagePolicy) -> None:
    """Along one response the step advantages add up to its reward minus the value of its prompt."""
    data, critic = scored(gathered(writing)), lively(writing)
    row = int(data.segment.amax(1).argmax())
    one, limit = data[row : row + 1], 10_000
    ends = [*(((one.segment[0, 1:] > one.segment[0, :-1]) & one.mask[0, 1:]).nonzero().squeeze(1) + 1).tolist()]
    positions = [0, *ends, int(one.length[0])]
    values = [float(value_after(critic, one, torch.tensor([p]), limit)) for p in positions]
    start = float(CriticBaseline()(torch.tensor(values[:1]), critic, one, limit))
    assert len(positions) > 3 and values[0] == pytest.approx(start)
    total = sum(b - a for a, b in pairwise(values))
    assert total == pytest.approx(float(one.scores["reward"][0]) - start)


def test_only_distinct_steps_are_learned_with_the_reference_that_sampled_them(writing: LanguagePolicy) -> None:
    data = scored(gathered(writing))
    value = value_after(lively(writing), data, step_lengths(data), 10_000)
    advantage = value - group_mean(value, data.group)
    steps = steps_to_learn(data, advantage, 0.1)
    seen = [(int(g), tuple(a[:n].tolist())) for g, a, n in zip(steps.group, steps.actions, steps.length, strict=True)]
    assert len(seen) == len(set(seen)) < len(data)
    logp = writing.evaluate(steps).logp
    assert logp is not None
    torch.testing.assert_close(steps.ref_logp * steps.mask, logp, atol=5e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="no state has steps"):
        steps_to_learn(data, torch.zeros(len(data)), 0.1)


def test_nothing_to_gain_is_a_minimum_at_the_reference(writing: LanguagePolicy) -> None:
    data = scored(gathered(writing))
    steps = steps_to_learn(data, data.scores["reward"] - 0.5, 0.1)
    flat = StepRegression().prepare(steps.replace(advantage=torch.zeros_like(steps.advantage)))
    found = StepRegression()(writing.evaluate(flat), flat)
    assert float(found.value.detach()) == pytest.approx(0.0, abs=1e-9)
    gradients = torch.autograd.grad(found.value, writing.parameters())
    assert max(float(g.abs().max()) for g in gradients) < 1e-5


def test_the_objective_is_the_mean_over_steps_of_the_squared_error() -> None:
    batch = Rollouts(
        actions=torch.zeros(2, 2, dtype=torch.int64),
        mask=torch.tensor([[True, True], [True, False]]),
        ref_logp=torch.tensor([[-1.0, -1.0], [-1.0, 5.0]]),
        advantage=torch.tensor([[0.42, 0.42], [-0.08, 0.0]]),
        batch_size=[2],
    )
    logp = torch.tensor([[-0.9, -0.8], [-1.1, 3.0]])
    objective = StepRegression(beta=0.5)
    found = objective(Outputs(logp=logp), objective.prepare(batch))
    assert float(found.value) == pytest.approx(0.0738, abs=1e-6)
    with pytest.raises(ValueError, match="beta must be positive"):
        StepRegression(beta=0.0)


def test_soft_targets_are_met_by_the_target_itself() -> None:
    target = torch.tensor([[0.0], [0.25], [1.0]])
    batch = SoftTargets().prepare(
        Rollouts(
            actions=torch.zeros(3, 1, dtype=torch.int64),
            mask=torch.ones(3, 1, dtype=torch.bool),
            returns=target,
            batch_size=[3],
        )
    )
    value = torch.tensor([[0.3], [-1.2], [2.0]], requires_grad=True)
    found = SoftTargets()(Outputs(value=value), batch).value
    p = value.sigmoid()
    torch.testing.assert_close(found, -(target * p.log() + (1 - target) * (1 - p).log()).mean())
    (gradient,) = torch.autograd.grad(found, value)
    torch.testing.assert_close(gradient, (p - target) / 3)


def shortened(name: str) -> Any:
    method = registry.method(name)
    gather, *rest = method.stages
    gather = replace(gather, method=replace(gather.method, collector=replace(gather.method.collector, prompts=4)))
    one = Budget(updates=1)
    return replace(method, stages=tuple(replace(s, until=s.until and one) for s in (gather, *rest)))


@pytest.mark.parametrize("name", ["dapo-direct", "dapo-direct:critic_baseline", "dapo-direct:response_level"])
def test_the_stages_do_not_touch_each_others_networks(name: str) -> None:
    problem = registry.problem("arithmetic:terms=2-4,train_size=40,test_size=8")
    policy = registry.policy("tiny", problem, seed=0, device="cpu")
    given = [p.detach().clone() for p in policy.parameters()]
    method = shortened(name)
    learner = method.learner(problem, policy, seed=0, budget=Budget(updates=len(method.stages)))
    for _ in method.stages[:-1]:
        learner.step()
    assert all(torch.equal(a, b) for a, b in zip(given, policy.parameters(), strict=True))
    fitted = learner.current
    before = [p.detach().clone() for p in fitted.model.parameters()] if isinstance(fitted, CriticFit) else []
    metrics = learner.step()
    assert torch.isfinite(torch.as_tensor(metrics["loss/policy"]))
    assert any(not torch.equal(a, b) for a, b in zip(given, policy.parameters(), strict=True))
    if isinstance(fitted, CriticFit):
        assert all(torch.equal(a, b) for a, b in zip(before, fitted.model.parameters(), strict=True))


def test_the_second_iteration_goes_on_with_the_first_ones_critic_and_policy() -> None:
    problem = registry.problem("arithmetic:terms=2-4,train_size=40,test_size=8")
    policy = registry.policy("tiny", problem, seed=0, device="cpu")
    learner = shortened("dapo-direct:iterated").learner(problem, policy, seed=0, budget=Budget(updates=6))
    for _ in range(2):
        learner.step()
    first = learner.current
    for _ in range(2):
        learner.step()
    assert learner.position == 3 and learner.policy is policy
    gather = learner.current
    fresh = gather.kept[0]
    logp = policy.evaluate(fresh).logp
    assert logp is not None
    torch.testing.assert_close(fresh.old_logp * fresh.mask, logp, atol=5e-6, rtol=1e-5)  # the present policy sampled
    kept = [p.detach().clone() for p in first.model.parameters()]
    stage = learner.method.stages[1]
    second = stage.build({**learner.artifacts, "gather": gather}, problem, policy, 0, None)
    assert all(torch.equal(a, b) for a, b in zip(kept, second.model.parameters(), strict=True))


def test_a_critic_learns_what_its_targets_say(writing: LanguagePolicy) -> None:
    data = gathered(writing)
    long = (data.prompt_length > data.prompt_length.float().median()).float()
    rows = states(data.replace(scores=TensorDict({"reward": long}, [len(data)])))
    method = OnPolicy(collector=KeptStates(data=rows, groups=8), objective=SoftTargets())
    fit = CriticFit(method, PROBLEM, writing, 0, None)
    losses = [float(fit.step()["loss/value"]) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_unlike_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to samples=4 responses are kept"):
        Steps(samples=4, kept=5)
    stage = dapo_direct.method().stages[1]
    with pytest.raises(ValueError, match="no stage named 'gather' gathered completions"):
        stage.build({}, PROBLEM, None, 0, None)
