"""Ensembles of action-value functions, all heads in one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from policyopt.models.layers import EnsembleLinear, Layers, chain
from policyopt.types import Part

PIECE = 2048  # rows that ``QEnsemble.many`` puts through at once


class EnsembleNorm(nn.Module):
    """Layer normalization with a scale and shift for each head: [K, N, F] → [K, N, F]."""

    def __init__(self, heads: int, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(heads, 1, features))
        self.shift = nn.Parameter(torch.zeros(heads, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, functional.layer_norm(x, x.shape[-1:]), self.scale)

    def first(self, x: Tensor) -> Tensor:
        """The first head's: [N, F] → [N, F]."""
        return torch.addcmul(self.shift[0], functional.layer_norm(x, x.shape[-1:]), self.scale[0])


class QEnsemble(nn.Module):
    """Observation [N, S] and action [N, A] → values [K, N] of K independent heads."""

    def __init__(self, heads: int, sizes: Sequence[int], activation: type[nn.Module], layer_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        between = partial(nn.ReLU, inplace=True) if activation is nn.ReLU else activation
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            norm = [EnsembleNorm(heads, outputs)] if layer_norm else []
            layers += [EnsembleLinear(heads, inputs, outputs), *norm, between()]
        self.layers = Layers(*layers, EnsembleLinear(heads, sizes[-1], 1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat((observation, action), -1).expand(self.heads, -1, -1)
        values: Tensor = self.layers(inputs)
        return values.squeeze(-1)

    def first(self, observation: Tensor, action: Tensor) -> Tensor:
        """The values [N] of the first head alone, at the cost of one."""
        x = torch.cat((observation, action), -1)
        if self.layers.activation is not None:
            return chain(x[None], self.layers.activation, [p[:1] for p in self.layers.ordered()])[0, :, 0]
        for layer in self.layers:
            x = layer.first(x) if isinstance(layer, EnsembleLinear | EnsembleNorm) else layer(x)
        return x.squeeze(-1)

    def many(self, observation: Tensor, actions: Tensor) -> Tensor:
        """Values [K, N, M] of M actions [N, M, A] of each observation [N, S], whose part of the first layer is shared.

        In pieces: arrays of a few MiB stay in the processor's cache and are used again: a quarter of CQL's time.
        """
        rows = max(1, PIECE // actions.shape[1])
        pieces = zip(observation.split(rows), actions.split(rows), strict=True)
        return torch.cat([self._many(*piece) for piece in pieces], 1)

    def _many(self, observation: Tensor, actions: Tensor) -> Tensor:
        rows, count, size = actions.shape
        linear = self.layers[0]
        assert isinstance(linear, EnsembleLinear)
        seen, done = linear.weight.split((observation.shape[-1], size), 1)
        before = torch.baddbmm(linear.bias, observation.expand(self.heads, -1, -1), seen)
        x = torch.bmm(actions.reshape(1, rows * count, size).expand(self.heads, -1, -1), done)
        x = (x.view(self.heads, rows, count, -1) + before.unsqueeze(2)).flatten(1, 2)
        values: Tensor = self.layers[2:](self.layers[1](x))
        return values.view(self.heads, rows, count)


@dataclass(frozen=True, kw_only=True)
class QFunctions(Part):
    """Builds an ensemble: ``heads`` networks of ``layers`` hidden layers with ``width`` units. Raises ValueError where
    one of these isn't positive."""

    heads: int = 2
    width: int = 256
    layers: int = 2
    activation: type[nn.Module] = nn.ReLU
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if min(self.heads, self.width, self.layers) < 1:
            raise ValueError(f"Q-functions need positive sizes, got {self.heads=}, {self.width=}, {self.layers=}")

    def build(self, observation_size: int, action_size: int, seed: int) -> QEnsemble:
        sizes = (observation_size + action_size, *(self.width,) * self.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return QEnsemble(self.heads, sizes, self.activation, self.layer_norm)
