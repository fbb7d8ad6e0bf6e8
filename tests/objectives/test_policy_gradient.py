"""The mapping table of the unified estimator: gradient and logged value of each method's usual loss, written out here.

Every textbook loss below is autograd through the method's own formula, on random ragged data.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from policyopt.credit.groups import group_normalized, leave_one_out
from policyopt.credit.returns import generalized_advantage
from policyopt.objectives.divergence import EntropyBonus, ReferenceK2, ReferenceK3
from policyopt.objectives.estimators import FixedLength, One, SequenceRatio, SequenceSum, Shaped, WeightClip
from policyopt.objectives.policy_gradient import (
    Current,
    PolicyGradient,
    RatioClip,
    SequenceMean,
    TokenMean,
    divergences,
)
from policyopt.types import Outputs, Rollouts, generator

N, T, V = 6, 5, 7


@pytest.fixture
def data() -> SimpleNamespace:
    """Logits, actions, ragged masks, behaviour log-probabilities that differ from the current ones, advantages."""
    rng = generator(3, "unified")
    logits = torch.randn(N, T, V, generator=rng, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(V, (N, T), generator=rng)
    length = torch.tensor([5, 1, 3, 4, 2, 5])
    mask = torch.arange(T) < length[:, None]
    logp = logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    old = (logp + 0.4 * torch.randn(N, T, generator=rng, dtype=torch.float64)).detach()
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    return SimpleNamespace(
        logits=logits,
        logp=logp,
        old=old,
        reference=(logp - 0.3 * torch.randn(N, T, generator=rng, dtype=torch.float64)).detach(),
        entropy=-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1),
        length=length,
        mask=mask,
        group=group,
        reward=reward,
        rows=Rollouts(actions=actions, mask=mask, behaviour_logp=old, group=group, batch_size=[N]),
    )


def check(data: SimpleNamespace, objective: PolicyGradient, advantage: Tensor, textbook: Tensor) -> None:
    batch = objective.prepare(data.rows.replace(advantage=advantage, ref_logp=data.reference))
    loss = objective(Outputs(logp=data.logp, entropy=data.entropy), batch)
    (mine,) = torch.autograd.grad(loss.value, data.logits, retain_graph=True)
    (want,) = torch.autograd.grad(textbook, data.logits, retain_graph=True)
    torch.testing.assert_close(loss.value, textbook, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mine, want, atol=1e-7, rtol=1e-6)
    assert float(want.abs().max()) > 1e-3, "a vanishing gradient would test nothing"


def token_mean(data: SimpleNamespace, per_token: Tensor) -> Tensor:
    return per_token[data.mask].mean()


def sequence_mean(data: SimpleNamespace, per_token: Tensor) -> Tensor:
    return torch.stack([row[:n].mean() for row, n in zip(per_token, data.length, strict=True)]).mean()


def sequence_sum(data: SimpleNamespace, per_token: Tensor) -> Tensor:
    return torch.stack([row[:n].sum() for row, n in zip(per_token, data.length, strict=True)]).mean()


def spread(data: SimpleNamespace, advantage: Tensor) -> Tensor:
    return advantage[:, None].expand(N, T)


def clipped(data: SimpleNamespace, advantage: Tensor, low: float, high: float) -> Tensor:
    ratio = (data.logp - data.old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def test_sft(data: SimpleNamespace) -> None:
    check(data, PolicyGradient(denominator=Current()), torch.ones(N, T), token_mean(data, -data.logp))


def test_reinforce(data: SimpleNamespace) -> None:
    advantage = spread(data, 2 * data.reward - 1)
    objective = PolicyGradient(denominator=Current(), aggregation=SequenceSum())
    check(data, objective, advantage, sequence_sum(data, -advantage * data.logp))


def test_rloo(data: SimpleNamespace) -> None:
    others = torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5, 1.0], dtype=torch.float64)  # mean of the other two, by hand
    advantage = leave_one_out(data.reward, data.group)
    torch.testing.assert_close(advantage, data.reward - others)
    objective = PolicyGradient(denominator=Current(), aggregation=SequenceSum())
    check(data, objective, spread(data, advantage), sequence_sum(data, -spread(data, advantage) * data.logp))


@pytest.mark.parametrize("paper", [True, False], ids=["paper form", "token mean"])
def test_grpo(data: SimpleNamespace, paper: bool) -> None:
    advantage = spread(data, group_normalized(data.reward, data.group))
    objective = PolicyGradient(stabilization=RatioClip(), aggregation=SequenceMean() if paper else TokenMean())
    reduce = sequence_mean if paper else token_mean
    check(data, objective, advantage, reduce(data, clipped(data, advantage, 0.2, 0.2)))


def test_dr_grpo(data: SimpleNamespace) -> None:
    mean = torch.tensor([1 / 3] * 3 + [2 / 3] * 3, dtype=torch.float64)
    advantage = spread(data, data.reward - mean)
    objective = PolicyGradient(stabilization=RatioClip(), aggregation=FixedLength(length=11))
    check(data, objective, advantage, sequence_sum(data, clipped(data, advantage, 0.2, 0.2)) / 11)


def test_dapo_clip_higher(data: SimpleNamespace) -> None:
    advantage = spread(data, group_normalized(data.reward, data.group))
    objective = PolicyGradient(stabilization=RatioClip(low=0.2, high=0.28))
    check(data, objective, advantage, token_mean(data, clipped(data, advantage, 0.2, 0.28)))


def test_ppo_with_generalized_advantages(data: SimpleNamespace) -> None:
    rng = generator(4, "values")
    value = torch.randn(N, T, generator=rng, dtype=torch.float64)
    following = torch.cat([value[:, 1:], torch.zeros(N, 1)], 1)
    last = torch.arange(T) == data.length[:, None] - 1
    rewards = last * data.reward[:, None]
    advantage = generalized_advantage(rewards, value, following, 1.0 * ~last, ~last, 0.9)
    by_hand = torch.zeros(N, T, dtype=torch.float64)
    for n in range(N):
        for t in range(int(data.length[n])):
            for k in range(t, int(data.length[n])):
                final = k == int(data.length[n]) - 1
                delta = (data.reward[n] if final else value[n, k + 1]) - value[n, k]
                by_hand[n, t] += 0.9 ** (k - t) * delta
    torch.testing.assert_close(advantage[data.mask], by_hand[data.mask])
    check(
        data, PolicyGradient(stabilization=RatioClip()), advantage, token_mean(data, clipped(data, by_hand, 0.2, 0.2))
    )


def test_dual_clip(data: SimpleNamespace) -> None:
    advantage = spread(data, group_normalized(data.reward, data.group))
    plain = clipped(data, advantage, 0.2, 0.2)
    textbook = torch.where(advantage < 0, torch.minimum(plain, -1.05 * advantage), plain)
    assert bool((textbook < plain)[data.mask].any())
    check(data, PolicyGradient(stabilization=RatioClip(dual=1.05)), advantage, token_mean(data, textbook))


def test_cispo(data: SimpleNamespace) -> None:
    advantage = spread(data, group_normalized(data.reward, data.group))
    weight = (data.logp - data.old).exp().clamp(0.0, 1.28).detach()
    objective = PolicyGradient(stabilization=WeightClip(low=1.0, high=0.28))
    check(data, objective, advantage, token_mean(data, -weight * advantage * data.logp))


def test_gspo(data: SimpleNamespace) -> None:
    advantage = group_normalized(data.reward, data.group)
    mean = torch.stack([(a - b)[:n].mean() for a, b, n in zip(data.logp, data.old, data.length, strict=True)])
    ratio = mean.exp()
    textbook = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage).mean()
    objective = PolicyGradient(
        denominator=SequenceRatio(), stabilization=RatioClip(low=0.1, high=0.1), aggregation=SequenceMean()
    )
    check(data, objective, spread(data, advantage), textbook)


def test_srft_offline_part(data: SimpleNamespace) -> None:
    advantage = spread(data, data.reward - 0.3)
    check(data, PolicyGradient(denominator=One()), advantage, token_mean(data, -advantage * data.logp.exp()))


def test_luffy_offline_part(data: SimpleNamespace) -> None:
    advantage, probability = spread(data, data.reward - 0.3), data.logp.exp()
    textbook = token_mean(data, -advantage * probability / (probability + 0.1))
    check(data, PolicyGradient(denominator=Shaped(gamma=0.1)), advantage, textbook)


@pytest.mark.parametrize(
    ("regularizer", "term"),
    [
        (ReferenceK2(coefficient=0.3), lambda d: 0.3 * (d.reference - d.logp).square() / 2),
        (ReferenceK3(coefficient=0.3), lambda d: 0.3 * ((d.reference - d.logp).exp() - 1 - (d.reference - d.logp))),
        (EntropyBonus(coefficient=0.3), lambda d: -0.3 * d.entropy),
    ],
    ids=["k2", "k3", "entropy"],
)
def test_regularizers(data: SimpleNamespace, regularizer: object, term: Callable[[SimpleNamespace], Tensor]) -> None:
    advantage = spread(data, data.reward - 0.3)
    objective = PolicyGradient(denominator=Current(), regularizers=(regularizer,))
    check(data, objective, advantage, token_mean(data, -advantage * data.logp + term(data)))


def test_weights_count_in_the_loss_and_in_its_divisor(data: SimpleNamespace) -> None:
    weight = torch.rand(N, T, generator=generator(5, "w"), dtype=torch.float64)
    rows = data.rows.replace(weight=weight)
    textbook = (weight * -data.logp * data.mask).sum() / (weight * data.mask).sum()
    check(
        SimpleNamespace(**{**vars(data), "rows": rows}),
        PolicyGradient(denominator=Current()),
        torch.ones(N, T),
        textbook,
    )


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), SequenceSum(), FixedLength(length=9)])
def test_micro_batches_add_up_to_the_full_batch(data: SimpleNamespace, aggregation: object) -> None:
    objective = PolicyGradient(stabilization=RatioClip(), aggregation=aggregation)
    batch = objective.prepare(data.rows.replace(advantage=spread(data, data.reward - 0.4)))
    full = objective(Outputs(logp=data.logp), batch)
    pieces = [torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([2, 4, 5])]
    parts = [objective(Outputs(logp=data.logp[i]), batch[i]) for i in pieces]
    torch.testing.assert_close(sum(p.value for p in parts), full.value)
    for name, value in full.metrics.items():
        torch.testing.assert_close(sum(p.metrics[name] for p in parts), value)


# -- the worked numbers for one state: π = (.5, .3, .2), π_old = (.4, .4, .2), action 0, ε = .2, γ = .1


def coefficient(objective: PolicyGradient, advantage: float) -> float:
    """c such that the update is c · ∇ log π(0)."""
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    batch = Rollouts(
        actions=torch.zeros(1, 1, dtype=torch.int64),
        mask=torch.ones(1, 1, dtype=torch.bool),
        behaviour_logp=torch.tensor([[0.4]], dtype=torch.float64).log(),
        advantage=torch.tensor([[advantage]], dtype=torch.float64),
        batch_size=[1],
    )
    logp = logits.log_softmax(-1)[:1].view(1, 1)
    (gradient,) = torch.autograd.grad(objective(Outputs(logp=logp), objective.prepare(batch)).value, logits)
    ratios = -gradient / torch.tensor([0.5, -0.3, -0.2], dtype=torch.float64)
    torch.testing.assert_close(ratios, ratios[:1].expand(3))
    return float(ratios[0])


@pytest.mark.parametrize(
    ("objective", "advantage", "expected"),
    [
        (PolicyGradient(denominator=Current()), 1.0, 1.0),
        (PolicyGradient(stabilization=RatioClip()), 1.2, 0.0),
        (PolicyGradient(stabilization=RatioClip()), -1.2, -1.5),
        (PolicyGradient(), 1.2, 1.5),
        (PolicyGradient(denominator=One()), 1.2, 0.6),
        (PolicyGradient(denominator=Shaped(gamma=0.1)), 1.2, 1 / 6),
        (PolicyGradient(stabilization=WeightClip(high=0.2)), 1.2, 1.44),
    ],
    ids=["sft", "clipped", "negative", "unclipped", "srft", "luffy", "cispo"],
)
def test_worked_coefficients(objective: PolicyGradient, advantage: float, expected: float) -> None:
    assert coefficient(objective, advantage) == pytest.approx(expected, abs=1e-7)


def test_worked_sequence_ratio() -> None:
    batch = Rollouts(
        actions=torch.zeros(1, 2, dtype=torch.int64),
        mask=torch.ones(1, 2, dtype=torch.bool),
        behaviour_logp=torch.tensor([[0.4, 0.8]]).log(),
        batch_size=[1],
    )
    ratio, _ = SequenceRatio().surrogate(torch.tensor([[0.5, 0.6]]).log(), batch)
    torch.testing.assert_close(ratio, torch.full((1, 2), 0.96824584))


def test_unified_advantage_on_an_enumerated_bandit() -> None:
    """∇J = E_π[r ∇log π] + μ E_demonstrator[∇log π] is the estimator with A = r + μ π_demonstrator / π, enumerated."""
    logits = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    reward, demonstrator, mu = torch.tensor([1.0, 0.0, 0.5]).double(), torch.tensor([0.1, 0.7, 0.2]).double(), 0.3
    policy = logits.softmax(-1)
    divergence = (demonstrator * (demonstrator / policy).log()).sum()
    (want,) = torch.autograd.grad((policy * reward).sum() - mu * divergence, logits, retain_graph=True)
    advantage = (reward + mu * demonstrator / policy).detach()
    batch = Rollouts(
        actions=torch.arange(3)[:, None],
        mask=torch.ones(3, 1, dtype=torch.bool),
        advantage=advantage[:, None],
        weight=policy.detach()[:, None],  # expectation under π by enumeration: the weights sum to one
        batch_size=[3],
    )
    objective = PolicyGradient(denominator=Current())
    loss = objective(Outputs(logp=logits.log_softmax(-1)[:, None]), objective.prepare(batch))
    (mine,) = torch.autograd.grad(-loss.value, logits)
    torch.testing.assert_close(mine, want, atol=1e-7, rtol=1e-6)


def test_covariance_and_divergences_in_the_log_do_not_depend_on_micro_batches(data: SimpleNamespace) -> None:
    advantage = data.reward[:, None].expand(N, T) + 0.1 * torch.arange(T)
    objective = PolicyGradient()
    batch = objective.prepare(data.rows.replace(advantage=advantage))
    sums: dict[str, float] = {}
    for rows in (torch.tensor([0, 3]), torch.tensor([1, 2, 4, 5])):
        metrics = objective(Outputs(logp=data.logp[rows]), batch[rows]).metrics
        sums = {key: sums.get(key, 0.0) + float(value) for key, value in metrics.items()}
    logp, change = data.logp.detach()[data.mask], (data.logp.detach() - data.old)[data.mask]
    covariance = torch.cov(torch.stack([logp, advantage[data.mask]]), correction=0)[0, 1]
    assert sums["policy/covariance"] == pytest.approx(float(covariance), rel=1e-5)
    assert sums["policy/kl_k1"] == pytest.approx(float(-change.mean()), rel=1e-5)
    assert sums["policy/kl_k2"] == pytest.approx(float(change.square().mean() / 2), rel=1e-5)
    assert sums["policy/kl_k3"] == pytest.approx(float((change.exp() - 1 - change).mean()), rel=1e-5)


def test_k1_and_k3_estimate_the_divergence_from_the_policy_that_sampled() -> None:
    """Over all actions with π_old's probabilities as weights both give KL(π_old ‖ π) exactly, k2 only nearly."""
    old, new = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], dtype=torch.float64).log()
    rows = Rollouts(
        actions=torch.zeros(1, 3), mask=torch.ones(1, 3, dtype=torch.bool), old_logp=old[None], batch_size=[1]
    )
    found = divergences(new[None], rows, old.exp()[None])
    exact = float((old.exp() * (old - new)).sum())
    assert float(found["policy/kl_k1"]) == pytest.approx(exact)
    assert float(found["policy/kl_k3"]) == pytest.approx(exact)
    assert abs(float(found["policy/kl_k2"]) - exact) > 1e-3
