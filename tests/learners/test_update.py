import math

import pytest
import torch
from torch import nn

from policyopt.learners.update import Adam, NonFinite
from policyopt.types import Clock


def attempt(optimizer, parameter, gradient, loss=0.0):
    parameter.grad = torch.tensor([gradient])
    optimizer.attempt(torch.tensor(loss), Clock())


def test_a_step_returns_the_norm_and_raises_before_the_weights():
    weight = nn.Parameter(torch.ones(1))
    optimizer = Adam(gradient_clip=None).build([weight])
    weight.grad = torch.tensor([3.0])
    assert float(optimizer.step(torch.tensor(1.0), Clock())) == 3.0
    after = weight.item()
    weight.grad = torch.tensor([2.0])
    with pytest.raises(NonFinite, match="the loss is nan and its gradient norm 2"):
        optimizer.step(torch.tensor(math.nan), Clock())
    assert weight.item() == after and weight.grad is None


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("gradient", "loss"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, -math.inf)])
def test_attempts_that_are_not_finite_are_skipped_and_told_at_the_check(clip, gradient, loss):
    """Weights and moments are those of an optimizer that has never seen the bad one."""
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    both = [Adam(gradient_clip=clip).build([weight]) for weight in weights]
    for optimizer, weight, bad in zip(both, weights, (True, False), strict=True):
        attempt(optimizer, weight, 0.5)
        if bad:
            attempt(optimizer, weight, gradient, loss)
        attempt(optimizer, weight, -2.0)
    assert weights[0].item() == weights[1].item() != 1.0
    both[1].check(Clock())
    with pytest.raises(NonFinite):
        both[0].check(Clock(step=7))
    both[0].check(Clock())  # told once
    for one, two in zip(both[0].state_dict()["0"].values(), both[1].state_dict()["0"].values(), strict=True):
        assert torch.equal(one, two)


def test_steps_are_adamw_s_and_what_has_no_gradient_does_not_count():
    """Against PyTorch's own optimizer, with a weight that gets its first gradient late, types mixed."""
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2).double())] for _ in range(2))
    optimizer = Adam(learning_rate=0.1, gradient_clip=None, weight_decay=0.2).build(ours)
    peer = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.2)
    for present in ((0,), (0, 1), (1,)):
        for i in present:
            gradient = torch.randn_like(ours[i])
            ours[i].grad, theirs[i].grad = gradient.clone(), gradient.clone()
        optimizer.step(torch.tensor(0.0), Clock())
        peer.step()
        peer.zero_grad()
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two)
    assert [int(state["step"]) for state in optimizer.state_dict().values()] == [2, 2]
