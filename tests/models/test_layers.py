from copy import deepcopy

import pytest
import torch
from torch import nn

from policyopt.models.layers import EnsembleLinear, Layers, tanh_of_half_
from policyopt.models.q_functions import QFunctions


def plain(layers: Layers) -> nn.Sequential:
    """The same layers, one after the other."""
    return nn.Sequential(*layers)


def networks():
    torch.manual_seed(0)
    for activation in (nn.Tanh, nn.ReLU):
        single = Layers(nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 2))
        ensemble = Layers(EnsembleLinear(2, 3, 5), activation(), EnsembleLinear(2, 5, 4))
        yield from ((single.double(), (7, 3)), (single, (2, 7, 3)), (ensemble.double(), (2, 7, 3)))


@pytest.mark.parametrize(("network", "shape"), networks())
def test_one_node_has_the_values_and_gradients_of_single_layers(network, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    made, want = network(x), plain(network)(x)
    torch.testing.assert_close(made, want)
    assert network.activation is not None  # or it would be the same computation
    weights = torch.randn_like(made)
    wanted = [x, *network.parameters()]
    for a, b in zip(
        torch.autograd.grad(made, wanted, weights), torch.autograd.grad(want, wanted, weights), strict=True
    ):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(network(x), want)


@pytest.mark.parametrize(("network", "shape"), networks())
def test_gradients_of_gradients(network, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def product(net):
        wanted = list(net.parameters())
        loss = net(x).square().sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), [x, wanted[0], wanted[-1]])

    for a, b in zip(product(network), product(plain(network)), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_frozen_gets_no_gradient_and_passes_it_on():
    network = deepcopy(next(networks())[0]).requires_grad_(False)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    network(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())
    assert not network(x.detach()).requires_grad


def test_tanh_is_tanh():
    x = torch.cat([torch.linspace(-30, 30, 10_001), torch.tensor([-torch.inf, torch.inf])])
    torch.testing.assert_close(tanh_of_half_(2 * x), x.double().tanh().float(), atol=2e-7, rtol=0)
    assert tanh_of_half_(torch.tensor([torch.nan])).isnan().all()


def test_other_layers_stay_a_sequence():
    network = Layers(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    assert network.activation is None
    assert torch.equal(network(x), plain(network)(x))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_first_head_alone(layer_norm):
    ensemble = QFunctions(width=6, layer_norm=layer_norm).build(3, 2, 0)
    observation, action = torch.randn(5, 3), torch.randn(5, 2, requires_grad=True)
    first, every = ensemble.first(observation, action), ensemble(observation, action)
    torch.testing.assert_close(first, every[0])
    (a,), (b,) = torch.autograd.grad(first.sum(), action), torch.autograd.grad(every[0].sum(), action)
    torch.testing.assert_close(a, b)
