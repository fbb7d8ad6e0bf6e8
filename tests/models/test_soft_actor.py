import pytest
import torch
from torch import nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from policyopt.models.soft_actor import (
    LOG_DEVIATION,
    TanhGaussian,
    multilayer_perceptron,
    tanh_gaussian,
    tanh_gaussian_logp,
)
from policyopt.types import generator


def test_the_density_is_that_of_a_transformed_gaussian():
    rng = generator(0, "draws")
    mean, log_deviation, noise = (torch.randn(100, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    action, logp = tanh_gaussian(mean, log_deviation, noise)
    expected = TransformedDistribution(Normal(mean, log_deviation.exp()), [TanhTransform(cache_size=1)])
    assert logp == pytest.approx(expected.log_prob(action).sum(-1), rel=1e-5)


def test_the_density_integrates_to_one_over_the_box():
    actions = torch.linspace(-1.0, 1.0, 20_002, dtype=torch.float64)[1:-1, None]
    mean, log_deviation = torch.tensor([[0.3]]), torch.tensor([[-0.4]])
    _, logp = tanh_gaussian(mean, log_deviation, (actions.atanh() - mean) / log_deviation.exp())
    assert float(torch.trapezoid(logp.exp(), actions[:, 0])) == pytest.approx(1.0, abs=1e-3)


def test_a_saturated_action_has_a_finite_density_and_gradient():
    mean = torch.tensor([[40.0], [-40.0]], requires_grad=True)
    _, logp = tanh_gaussian(mean, torch.zeros(2, 1), torch.zeros(2, 1))
    logp.sum().backward()
    assert torch.isfinite(logp).all() and torch.isfinite(mean.grad).all()


def test_samples_carry_a_gradient_and_the_mode_is_the_squashed_mean():
    actor = TanhGaussian(width=8, layers=1).build(3, 2, seed=0)
    observation = torch.randn(6, 3, generator=generator(0, "s"))
    action, logp = actor.sample(observation, generator(0, "a"))
    again, _ = actor.sample(observation, generator(0, "a"))
    mean, log_deviation = actor(observation)
    assert torch.equal(action, again) and action.shape == (6, 2) and logp.shape == (6,)
    assert torch.equal(actor.mode(observation), mean.tanh())
    assert LOG_DEVIATION[0] <= log_deviation.min() and log_deviation.max() <= LOG_DEVIATION[1]
    action.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())


def test_layers_are_linear_norm_activation():
    names = [type(layer) for layer in multilayer_perceptron((3, 5, 4, 2), nn.Tanh, layer_norm=True)]
    assert names == [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Linear, nn.LayerNorm, nn.Tanh, nn.Linear]
    assert [type(layer) for layer in multilayer_perceptron((3, 2), nn.Tanh, layer_norm=True)] == [nn.Linear]


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="width=0"):
        TanhGaussian(width=0)


def test_the_density_of_an_action_is_that_of_its_numbers():
    mean, log_deviation, noise = torch.randn(3, 20, 2).unbind(0)
    _, logp = tanh_gaussian(mean, log_deviation, noise)
    each = tanh_gaussian_logp(mean + log_deviation.exp() * noise, mean, log_deviation)
    torch.testing.assert_close(each.sum(-1), logp)
    alone = tanh_gaussian_logp(torch.tensor([0.7]), torch.tensor([0.5]), torch.tensor([0.2]).log())
    assert alone.item() == pytest.approx(0.645038, abs=1e-5)
