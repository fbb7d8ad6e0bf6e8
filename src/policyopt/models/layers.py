"""Layers of a perceptron as one operation: forward and backward in one node of autograd's graph.

Small networks spend more time on the bookkeeping of single operations than on arithmetic. The gradient is written out
here once, for plain layers and for ensembles; what has a derivative of its own (layer normalization …) stays a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from policyopt.models.products import affine, fused, preferred, product

Parameters: TypeAlias = Sequence[Tensor]  # weight and bias of each layer in turn


class Activation(NamedTuple):
    """``apply`` works in place on ``scale`` times what ``plain`` takes (a product's scale costs nothing); ``backward`` works in
    place on the gradient, from the activation's own result; ``name`` is oneDNN's."""

    name: str
    scale: int
    apply: Callable[[Tensor], Tensor]
    plain: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


MINUS_ONE = torch.tensor(-1.0)


def tanh_of_half_(x: Tensor) -> Tensor:
    """tanh(x / 2) = 2σ(x) − 1, in place: within 2e-7 of PyTorch's tanh, which takes twice as long on a CPU."""
    return torch.add(MINUS_ONE, x.sigmoid_(), alpha=2, out=x)


def tanh_backward_(gradient: Tensor, y: Tensor) -> Tensor:
    torch.ops.aten.tanh_backward.grad_input(gradient, y, grad_input=gradient)
    return gradient


def relu_backward_(gradient: Tensor, y: Tensor) -> Tensor:
    torch.ops.aten.threshold_backward.grad_input(gradient, y, 0.0, grad_input=gradient)
    return gradient


IDENTITY = Activation("none", 1, lambda x: x, lambda x: x, lambda gradient, y: gradient)
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation("tanh", 2, tanh_of_half_, torch.tanh, tanh_backward_),
    nn.ReLU: Activation("relu", 1, torch.relu_, torch.relu, relu_backward_),
}


class EnsembleLinear(nn.Module):
    """K linear maps side by side: [K, N, I] → [K, N, O], each with the initial weights of ``nn.Linear``."""

    def __init__(self, heads: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return mapped(x, self.weight, self.bias)

    def first(self, x: Tensor) -> Tensor:
        """The first map alone: [N, I] → [N, O]."""
        return torch.addmm(self.bias[0], x, self.weight[0])


class Layers(nn.Sequential):
    """Layers one after the other. ``nn.Linear`` or ``EnsembleLinear`` maps with tanh or ReLU between them are one node."""

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
        between = {type(layer) for layer in tuple(self)[1::2]}
        alike = {type(layer) for layer in self.maps} in ({nn.Linear}, {EnsembleLinear})
        self.activation: Activation | None = ACTIVATIONS.get(between.pop()) if alike and len(between) == 1 else None

    @property
    def maps(self) -> list[Any]:
        return list(self._modules.values())[::2]

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is None:
            made: Tensor = super().forward(x)
            return made
        return chain(x, self.activation, self.ordered())

    def ordered(self) -> list[Tensor]:
        """Weight and bias of each map in turn."""
        return [p for layer in self.maps for p in layer._parameters.values()]


def chain(x: Tensor, activation: Activation, parameters: Parameters) -> Tensor:
    """x […, I] through linear maps (ensembles: [K, N, I]) with the activation between them → […, O]."""
    if parameters[0].dim() == 2 and x.dim() != 2:
        return chain(x.reshape(-1, x.shape[-1]), activation, parameters).view(*x.shape[:-1], -1)
    if torch.is_grad_enabled():
        made: Tensor = _Chain.apply(x, activation, *parameters)
        return made
    return outputs(x, activation, parameters)[-1]


def mapped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear`` as one node of the graph."""
    return chain(x, IDENTITY, (weight, bias))


def linear(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation | None = None) -> Tensor:
    """The map of x [N, I] with weight [O, I], or of x [K, N, I] with weight [K, I, O], in operations that autograd knows;
    with an activation, the activation of it by the quickest, which it need not know."""
    weight = weight.t() if weight.dim() == 2 else weight
    if activation is None:
        return affine(x, weight, bias)
    if preferred(x, weight):
        return fused(x, weight, bias, activation.name)
    return activation.apply(affine(x, weight, bias, activation.scale))


def outputs(x: Tensor, activation: Activation, parameters: Parameters) -> list[Tensor]:
    """What each layer gives."""
    made, last = [], len(parameters) - 2
    for i in range(0, last, 2):
        x = linear(x, parameters[i], parameters[i + 1], activation)
        made.append(x)
    made.append(linear(x, parameters[last], parameters[last + 1], IDENTITY))
    return made


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, *parameters: Tensor) -> Tensor:
        made = outputs(x, activation, parameters)
        ctx.activation, ctx.count = activation, len(parameters)
        ctx.save_for_backward(*parameters, x, *made[:-1])
        return made[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parameters, inputs = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        wanted = ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            first, *rest = _differentiable(inputs[0], ctx.activation, parameters, gradient, wanted)
        else:
            first, *rest = _gradients(inputs, ctx.activation, parameters, gradient, wanted)
        return first, None, *rest


def _gradients(
    inputs: Sequence[Tensor], activation: Activation, parameters: Parameters, gradient: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Of the layers' first input and of the parameters, None where not ``wanted``; ``inputs`` of each layer."""
    made: list[Tensor | None] = [None] * len(wanted)
    for i in range(len(inputs) - 1, -1, -1):
        x, weight = inputs[i], parameters[2 * i]
        ensemble = weight.dim() == 3
        if wanted[2 * i + 1]:
            made[2 * i + 1] = product(x.mT, gradient) if ensemble else product(gradient.t(), x)
        if wanted[2 * i + 2]:
            made[2 * i + 2] = gradient.sum(-2, keepdim=ensemble)
        if i == 0 and not wanted[0]:
            break
        gradient = product(gradient, weight.mT if ensemble else weight)
        if i > 0:
            gradient = activation.backward(gradient, x)
    made[0] = gradient if wanted[0] else None
    return made


def _differentiable(
    x: Tensor, activation: Activation, parameters: Parameters, gradient: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The same where a gradient of the gradient is wanted: by autograd's own rules."""
    y, last = x, len(parameters) - 2
    for i in range(0, len(parameters), 2):
        y = linear(y, parameters[i], parameters[i + 1])
        y = y if i == last else activation.plain(y)
    sources = [source for source, want in zip((x, *parameters), wanted, strict=True) if want]
    made = iter(torch.autograd.grad(y, sources, gradient, create_graph=True))
    return [next(made) if want else None for want in wanted]
