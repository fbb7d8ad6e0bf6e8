"""policyopt: published policy-optimization methods as compositions of interchangeable parts.

The public names are imported on first use, so that ``import policyopt`` and ``policyopt --help`` stay instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policyopt.api import compare, evaluate, reproduce, train
    from policyopt.registry import methods, problems

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "methods", "problems", "reproduce", "train"]

_HOME = {
    "train": "policyopt.api",
    "compare": "policyopt.api",
    "evaluate": "policyopt.api",
    "reproduce": "policyopt.api",
    "methods": "policyopt.registry",
    "problems": "policyopt.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'policyopt' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
