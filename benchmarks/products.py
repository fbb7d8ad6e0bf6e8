"""Products of float32 matrices, and whole networks forward and backward, by MKL and by oneDNN: microseconds on one thread.

``policyopt.models.products`` decides between the two; here each is asked for in turn, the shortest of ten.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from policyopt.models import products
from policyopt.models.layers import EnsembleLinear, Layers

SHAPES = ((256, 64, 64), (256, 23, 256), (256, 128, 128), (256, 256, 256), (2048, 256, 256), (633, 576, 1536))
WIDTHS = (64, 128, 256)


def microseconds(call: Callable[[], Any], count: int) -> float:
    """Of one call, the shortest mean of ten times ``count`` calls in a row."""
    best = float("inf")
    for _ in range(10):
        before = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - before) / count)
    return round(1e6 * best, 1)


def both(call: Callable[[], Any], count: int) -> dict[str, float]:
    """With every product by MKL, and with those by oneDNN that it is preferred for."""
    found = {}
    for name, onednn in (("mkl", False), ("onednn", True)):
        products.ONEDNN = onednn
        found[name] = microseconds(call, count)
    return found


def network(width: int, heads: int) -> Callable[[], None]:
    """Forward and backward of two layers of ``width`` on 256 rows of 23 numbers."""

    def linear(inputs: int, outputs: int) -> nn.Module:
        return EnsembleLinear(heads, inputs, outputs) if heads > 1 else nn.Linear(inputs, outputs)

    layers = Layers(linear(23, width), nn.ReLU(), linear(width, width), nn.ReLU(), linear(width, 1))
    x = torch.randn((heads, 256, 23) if heads > 1 else (256, 23))

    def call() -> None:
        layers(x).sum().backward()
        layers.zero_grad()

    return call


def main() -> None:
    torch.set_num_threads(1)
    usual = products.ONEDNN
    found: dict[str, dict[str, float]] = {}
    for rows, inputs, outputs in SHAPES:
        a, b = torch.randn(rows, inputs), torch.randn(outputs, inputs).t()
        found[f"{rows} x {inputs} x {outputs}"] = both(lambda a=a, b=b: products.product(a, b), 50)
    for width in WIDTHS:
        for heads in (1, 2):
            found[f"{heads} network of {width}"] = both(network(width, heads), 30)
    table = Table("", "MKL, µs", "oneDNN, µs", "ratio")
    for name, row in found.items():
        table.add_row(name, str(row["mkl"]), str(row["onednn"]), f"{row['mkl'] / row['onednn']:.2f}")
    Console().print(table)
    print(json.dumps({"benchmark": "products", "preferred_here": usual, "microseconds": found}))


if __name__ == "__main__":
    main()
