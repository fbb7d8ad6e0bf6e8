"""P3O (arXiv 2310.00212): both clips by hand, equality of the gradients at the start, swaps, shifts, the bandit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from policyopt import registry
from policyopt.methods import p3o
from policyopt.methods.p3o import (
    DifferenceScaling,
    Joint,
    PairwisePolicyGradient,
    Separate,
    TokenClip,
    joint_loss,
    separate_loss,
)
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.types import Outputs, Rollouts

LOGP, OLD = torch.tensor([0.30, -0.10], dtype=torch.float64), torch.tensor([0.05, 0.02], dtype=torch.float64)


def pair(logp=LOGP, old=OLD, reward=(1.0, 0.2), order=(0, 1)) -> tuple[Outputs, Rollouts]:
    """Sequence log-ratios to a reference whose log-probabilities are zero."""
    rows = list(order)
    batch = Rollouts(
        actions=torch.zeros(2, 1, dtype=torch.int64),
        mask=torch.ones(2, 1, dtype=torch.bool),
        behaviour_logp=old[rows][:, None],
        ref_logp=torch.zeros(2, 1, dtype=torch.float64),
        group=torch.zeros(2, dtype=torch.int64),
        scores=TensorDict({"reward": torch.tensor(reward, dtype=torch.float64)[rows]}, [2]),
        batch_size=[2],
    )
    return Outputs(logp=logp[rows][:, None].clone().requires_grad_()), batch


def evaluated(clip, outputs: Outputs, batch: Rollouts, beta: float = 0.05) -> tuple[float, torch.Tensor]:
    objective = PairwisePolicyGradient(clip=clip, beta=beta)
    value = objective(outputs, objective.prepare(batch)).value
    return float(value), torch.autograd.grad(value, outputs.logp)[0].flatten()


def test_separate_clipping_by_hand() -> None:
    q, ratio = torch.tensor(0.78, dtype=torch.float64), (LOGP - OLD).exp()
    torch.testing.assert_close(ratio, torch.tensor([1.2840254, 0.8869204], dtype=torch.float64), atol=1e-7, rtol=0)
    assert float(separate_loss(q, (ratio[0], ratio[1]), 0.2, 10.0)[0]) == pytest.approx(0.0290643, abs=1e-7)
    assert evaluated(Separate(), *pair())[0] == pytest.approx(0.0290643, abs=1e-7)


def test_joint_clipping_by_hand() -> None:
    weight = float((LOGP - OLD).sum().exp())
    assert weight == pytest.approx(1.1388284, abs=1e-7)
    q = torch.tensor(0.78 * weight, dtype=torch.float64)
    assert float(joint_loss(q, torch.tensor(0.4).double(), torch.tensor(0.03).double(), 0.2)[0]) == pytest.approx(
        -0.1021530, abs=1e-6
    )
    value, gradient = evaluated(Joint(), *pair())
    assert value == pytest.approx(-0.1021530, abs=1e-6) and not gradient.any()


def test_at_the_start_both_have_the_pairwise_gradient() -> None:
    q = 0.8 - 0.05 * float(OLD[0] - OLD[1])
    want = torch.tensor([-q / 2, q / 2], dtype=torch.float64)
    for clip in (Separate(), Joint()):
        torch.testing.assert_close(evaluated(clip, *pair(logp=OLD))[1], want)
    tokens = evaluated(TokenClip(), *pair(logp=OLD))[1]  # without the half, divided by two tokens
    torch.testing.assert_close(tokens, want)


@pytest.mark.parametrize("clip", [Separate(), Joint(), TokenClip()])
def test_swaps_and_shifts_change_nothing(clip) -> None:
    value, gradient = evaluated(clip, *pair())
    swapped = evaluated(clip, *pair(order=(1, 0)))
    assert swapped[0] == pytest.approx(value)
    torch.testing.assert_close(swapped[1].flip(0), gradient)
    shifted = evaluated(clip, *pair(reward=(101.0, 100.2)))
    assert shifted[0] == pytest.approx(value)
    torch.testing.assert_close(shifted[1], gradient)


def test_the_pairwise_gradient_is_the_policy_gradient() -> None:
    probability, reward = (
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64),
    )
    for shift in (0.0, 10.0):
        total = torch.zeros(3, dtype=torch.float64)
        for a in range(3):
            for b in range(3):
                scores = torch.eye(3, dtype=torch.float64)[a] - torch.eye(3, dtype=torch.float64)[b]
                total += probability[a] * probability[b] * ((reward[a] + shift) - (reward[b] + shift)) * scores / 2
        torch.testing.assert_close(total, torch.tensor([0.35, -0.09, -0.26], dtype=torch.float64))


def test_equal_responses_do_not_pull() -> None:
    same = torch.tensor([0.1, 0.1], dtype=torch.float64)
    outputs, batch = pair(logp=same, old=same, reward=(0.7, 0.7))
    assert not evaluated(Joint(), outputs, batch)[1].any()


def test_without_limits_it_is_importance_weighted() -> None:
    _, gradient = evaluated(Separate(clip=1e6, guard=1e9), *pair(), beta=0.0)
    product = float((LOGP - OLD).sum().exp())
    torch.testing.assert_close(gradient, 0.8 * product / 2 * torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_the_scale_does_not_see_a_prompts_constant() -> None:
    def batch(offset: tuple[float, float]) -> Rollouts:
        reward = torch.tensor([1.0 + offset[0], 0.0 + offset[0], 3.0 + offset[1], 1.0 + offset[1]])
        return Rollouts(
            actions=torch.zeros(4, 1, dtype=torch.int64),
            mask=torch.ones(4, 1, dtype=torch.bool),
            group=torch.tensor([0, 0, 1, 1]),
            scores=TensorDict({"reward": reward}, [4]),
            batch_size=[4],
        )

    part = DifferenceScaling()
    plain, moved = (part(batch(offset), part.memory()).scores["reward"] for offset in ((0.0, 0.0), (5.0, -9.0)))
    torch.testing.assert_close(plain[::2] - plain[1::2], moved[::2] - moved[1::2])
    assert float((plain[::2] - plain[1::2]).square().mean()) == pytest.approx(2.0, abs=1e-4)  # unit deviation each


@pytest.mark.parametrize("variant", ["", *(f":{name}" for name in p3o.VARIANTS)])
def test_all_variants_train(variant: str) -> None:
    problem = Bigrams(train_size=64, test_size=8, letters=6, length=5, shift=5.0)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    method = replace(registry.method(f"p3o{variant}"), collector=Groups(prompts=8, samples=4))
    metrics = method.learner(problem, policy, seed=0).step()
    assert torch.isfinite(torch.as_tensor(metrics["loss/policy"]))


def test_the_clip_fraction_is_the_share_whose_gradient_stops() -> None:
    """First ratio 1.28, beyond 1.2, and q > 0: V1 stops the first response alone, V2's difference moved by 0.37 > 0.2."""
    expected = {Separate(): 0.5, Joint(): 1.0, TokenClip(): 0.5, Joint(clip=0.5): 0.0}
    for clip, share in expected.items():
        outputs, batch = pair()
        objective = PairwisePolicyGradient(clip=clip)
        metrics = objective(outputs, objective.prepare(batch)).metrics
        assert float(metrics["policy/clip_fraction"]) == pytest.approx(share), clip
