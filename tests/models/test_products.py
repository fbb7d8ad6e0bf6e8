import shutil
from copy import deepcopy

import pytest
import torch
from torch import nn

from policyopt.models import products
from policyopt.models.layers import EnsembleLinear, Layers

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """As on a processor on which oneDNN is the quicker one."""
    monkeypatch.setattr(products, "ONEDNN", True)


def matrices(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes]


def test_large_float32_products_alone_are_handed_on():
    a, b = matrices((1024, 64), (64, 64))
    assert products.preferred(a, b)
    assert not products.preferred(a[:128], b)
    assert not products.preferred(a.double(), b.double())


def test_not_handed_on_where_it_is_not_quicker(monkeypatch):
    monkeypatch.setattr(products, "ONEDNN", False)
    a, b = matrices((1024, 64), (64, 64))
    assert not products.preferred(a, b)


@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.parametrize("outputs", [1, 64])
def test_products_are_products(heads, outputs):
    a, b, bias = matrices((*heads, 1024, 64), (*heads, 64, outputs), (*heads, 1, outputs))
    bias = bias if heads else bias[0]
    wanted = (a.double() @ b.double()).float()
    torch.testing.assert_close(products.product(a, b), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(products.affine(a, b, bias, 2), 2 * (wanted + bias), atol=1e-4, rtol=1e-4)
    turned = b.mT.contiguous().mT  # the layout of nn.Linear
    torch.testing.assert_close(products.product(a, turned), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("ensemble", [False, True])
def test_networks_have_the_values_and_gradients_of_plain_layers(activation, ensemble):
    torch.manual_seed(0)

    def linear(inputs, outputs):
        return EnsembleLinear(2, inputs, outputs) if ensemble else nn.Linear(inputs, outputs)

    network = Layers(linear(70, 128), activation(), linear(128, 96), activation(), linear(96, 1))
    exact = nn.Sequential(*deepcopy(network)).double()
    x = torch.randn((2, 300, 70) if ensemble else (300, 70), requires_grad=True)
    wide = x.detach().double().requires_grad_()
    assert products.preferred(x[..., :70], torch.empty(70, 128))
    made, wanted = network(x), exact(wide)
    torch.testing.assert_close(made.double(), wanted, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(made.square().sum(), [x, *network.parameters()])
    for one, other in zip(
        gradients, torch.autograd.grad(wanted.square().sum(), [wide, *exact.parameters()]), strict=True
    ):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)
        assert one.is_contiguous()


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
def test_compiled_code_takes_them_as_they_are():
    torch.manual_seed(0)
    network, x = Layers(nn.Linear(70, 128), nn.Tanh(), nn.Linear(128, 128)), torch.randn(300, 70)
    torch.testing.assert_close(torch.compile(network, fullgraph=True)(x), network(x))
