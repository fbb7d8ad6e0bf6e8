import math

import pytest
import torch

from policyopt.models.diffusion import Flow, euler, flow_matching_error
from policyopt.types import generator


def towards(mean):
    return lambda observation, point, time: 2.0 * (mean - point)


@pytest.mark.parametrize(("noise", "action"), [(0.0, 0.535575), (1.0, 0.642950), (-1.5, 0.374514)])
def test_a_linear_field_is_integrated_as_by_hand(noise, action):
    start = torch.full((3, 1), noise, dtype=torch.float64)
    reached = euler(towards(0.6), torch.zeros(3, 2), start, 10)
    assert reached == pytest.approx(torch.full((3, 1), action), abs=1e-6)
    assert reached == pytest.approx(0.6 + (start - 0.6) * 0.8**10)


def test_the_field_sees_the_time_of_each_step():
    seen = []
    euler(lambda s, x, t: seen.append(float(t[0])) or 0.0 * x, torch.zeros(1, 1), torch.zeros(1, 1), 4)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_flow_matching_error_by_hand():
    action, noise, time = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, -2.0]]), torch.tensor([[0.25]])
    points = []
    error = flow_matching_error(lambda s, x, t: points.append(x) or 2.0 * x, torch.zeros(1, 3), action, noise, time)
    assert points[0].tolist() == [[0.25, -1.0]]
    assert error.tolist() == [(0.5 - 1.0) ** 2 + (-2.0 - 4.0) ** 2]


def test_decoding_is_deterministic_and_stays_in_the_box():
    flow = Flow(width=8, layers=2, steps=3).build(2, 2, seed=0)
    observation, noise = (
        torch.randn(50, 2, generator=generator(0, "s")),
        3.0 * torch.randn(50, 2, generator=generator(0, "w")),
    )
    first = flow.decode(observation, noise)
    assert torch.equal(first, flow.decode(observation, noise))
    assert first.abs().max() <= 1.0
    with torch.no_grad():
        flow.field.layers[-1].bias += 9.0
    assert torch.equal(flow.decode(observation, noise), torch.ones(50, 2))


def test_acting_starts_from_the_noise_of_the_generator_or_from_its_mean():
    flow = Flow(width=8, layers=1, steps=3).build(2, 2, seed=0)
    observation = torch.zeros(5, 2)
    action, columns, memory = flow.act(observation, "kept", generator(1, "act"))
    noise = torch.randn(5, 2, generator=generator(1, "act"))
    assert torch.equal(action, flow.decode(observation, noise))
    assert (columns, memory) == ({}, "kept")
    assert torch.equal(
        flow.act(observation, None, generator(2, "act"), greedy=True)[0], flow.decode(observation, 0 * noise)
    )


def test_the_loss_has_its_minimum_at_the_conditional_mean():
    """For actions N(m, 1), x_t has variance 1 - 2 t (1 - t) and the best velocity is linear: its error is Var(a - x0 | x_t)."""
    rng, mean = generator(0, "data"), 0.7
    action, noise = mean + torch.randn(200_000, 1, generator=rng), torch.randn(200_000, 1, generator=rng)
    time = torch.full_like(action, 0.3)
    variance, covariance = 0.7**2 + 0.3**2, 0.3 - 0.7
    best = flow_matching_error(
        lambda s, x, t: mean + covariance / variance * (x - 0.3 * mean), torch.zeros(1), action, noise, time
    )
    assert float(best.mean()) == pytest.approx(2.0 - covariance**2 / variance, rel=0.01)
    worse = flow_matching_error(lambda s, x, t: mean + 0.0 * x, torch.zeros(1), action, noise, time)
    assert float(worse.mean()) == pytest.approx(2.0, rel=0.01)


def test_weights_come_from_the_seed_alone():
    state = torch.get_rng_state()
    one, two, other = (Flow(width=8).build(2, 2, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["field.layers.0.weight"], other["field.layers.0.weight"])
    assert torch.equal(state, torch.get_rng_state())
    assert math.isclose(float(one["field.layers.0.weight"].abs().max()), 5**-0.5, rel_tol=0.2)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match=r"steps=0"):
        Flow(steps=0)
