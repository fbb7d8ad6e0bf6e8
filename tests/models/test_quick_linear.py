from copy import deepcopy

import pytest
import torch
from torch import nn

from policyopt.models import products, quick_linear
from policyopt.models.quick_linear import QuickLinear, quicken

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN"
)


def test_plain_layers_alone_are_replaced_and_keep_their_weights():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Special(4, 2))
    before, x = model.state_dict(), torch.randn(5, 3)
    wanted = model(x)
    quicken(model)
    assert [type(layer) for layer in model] == [QuickLinear, nn.Tanh, Special]
    assert torch.equal(model(x), wanted)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert type(deepcopy(model)[0]) is QuickLinear


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_values_and_gradients_of_large_ones(monkeypatch, bias, frozen):
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.setattr(quick_linear, "WORTH", 0)
    torch.manual_seed(0)
    exact = nn.Linear(48, 32, bias=bias).double().requires_grad_(not frozen)
    quick = nn.Sequential(deepcopy(exact).float())
    quicken(quick)
    x = torch.randn(2, 25, 48, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    made, wanted = quick(x), exact(wide)
    assert "_Affine" in type(made.grad_fn.next_functions[0][0]).__name__  # or it would be the plain layer
    torch.testing.assert_close(made.double(), wanted, atol=1e-5, rtol=1e-5)
    made.square().sum().backward(), wanted.square().sum().backward()
    torch.testing.assert_close(x.grad.double(), wide.grad, atol=1e-3, rtol=1e-4)
    for one, other in zip(quick.parameters(), exact.parameters(), strict=True):
        assert frozen or torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-3, rtol=1e-4) is None
        assert (one.grad is None) == frozen
