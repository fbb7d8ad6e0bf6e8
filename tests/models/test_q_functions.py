import pytest
import torch
from torch import nn

from policyopt.models.q_functions import QFunctions
from policyopt.types import generator


@pytest.mark.parametrize(("activation", "layer_norm"), [(nn.ReLU, False), (nn.Tanh, True)])
def test_each_head_is_a_network_of_its_own(activation, layer_norm):
    critic = QFunctions(heads=3, width=7, layers=2, activation=activation, layer_norm=layer_norm).build(4, 2, seed=0)
    rng = generator(0, "inputs")
    for p in critic.parameters():
        p.data.copy_(torch.randn(p.shape, generator=rng))
    observation, action = torch.randn(5, 4, generator=rng), torch.randn(5, 2, generator=rng)
    values = critic(observation, action)
    assert values.shape == (3, 5)
    for head in range(3):
        x = torch.cat((observation, action), 1)
        for layer in critic.layers:
            weights = [p[head] for p in layer.parameters()]
            if layer_norm and type(layer).__name__ == "EnsembleNorm":
                x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
                x = x * weights[0] + weights[1]
            else:
                x = x @ weights[0] + weights[1] if weights else activation()(x)
        assert values[head].tolist() == pytest.approx(x[:, 0].tolist(), abs=1e-4)


def test_a_head_has_no_gradient_from_another():
    critic = QFunctions(heads=2, width=4).build(2, 1, seed=0)
    critic(torch.ones(3, 2), torch.ones(3, 1))[1].sum().backward()
    assert all(p.grad[0].abs().sum() == 0 for p in critic.parameters())
    assert all(p.grad[1].abs().sum() > 0 for p in critic.parameters())


def test_heads_begin_apart_and_the_seed_decides():
    one, two = (QFunctions(width=4).build(2, 1, seed=3) for _ in range(2))
    values = one(torch.ones(1, 2), torch.ones(1, 1))
    assert values[0] != values[1]
    assert torch.equal(values, two(torch.ones(1, 2), torch.ones(1, 1)))


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="heads=0"):
        QFunctions(heads=0)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_first_head_and_many_actions_are_the_whole_ensemble_s(layer_norm):
    critic = QFunctions(heads=3, width=16, layer_norm=layer_norm).build(4, 2, 0)
    observation, actions = torch.randn(5, 4), torch.randn(5, 7, 2)
    assert torch.allclose(critic.first(observation, actions[:, 0]), critic(observation, actions[:, 0])[0], atol=1e-6)
    each = torch.stack([critic(observation, actions[:, i]) for i in range(7)], -1)
    assert torch.allclose(critic.many(observation, actions), each, atol=1e-5)
