"""Hand-written or generated policies, ``policy(observation) -> action`` in the environment's own units, as priors."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policyopt.problems.control.environments import Spaces, UnitBox
from policyopt.types import generator

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Batched:
    """A prior on many observations at once, [N, S] → [N, A]; one that is no ``Batched`` is called for each of them."""

    function: Callable[[Array], Array]

    def __call__(self, observations: Array) -> Array:
        return self.function(observations)


@dataclass(frozen=True)
class Expert(Batched):
    """A trained policy, acting greedily, as a prior for an environment with these ``spaces``."""

    function: Any
    spaces: Spaces

    def __call__(self, observations: Array) -> Array:
        action = self.function.act(torch.from_numpy(observations), None, generator(0, "expert"), True)[0].numpy()
        return np.asarray(UnitBox(self.spaces.low, self.spaces.high).from_unit(action) if self.spaces.low else action)


def load(source: str) -> Any:
    """The prior that ``file.py:function`` or ``module:function`` names. Raises ValueError, with the cause, if there is none."""
    home, _, name = source.rpartition(":")
    if not home:
        raise ValueError(f"cannot read the prior {source!r}: write file.py:function or module:function")
    try:
        found: Mapping[str, Any] = (
            runpy.run_path(str(Path(home).expanduser())) if home.endswith(".py") else vars(import_module(home))
        )
    except Exception as error:
        raise ValueError(f"the prior {source!r}: {home} cannot be loaded: {error!r}") from error
    if not callable(found.get(name)):
        near = ", ".join(get_close_matches(name, [key for key, value in found.items() if callable(value)]))
        raise ValueError(f"{home} has no function {name!r}" + (f"; nearest: {near}" if near else ""))
    return found[name]


def suggested(prior: Any, observation: Tensor, spaces: Spaces) -> Tensor:
    """What a prior would do, [N, A] in the box [−1, 1]^A, for observations [N, S]; NaN in rows where it fails.

    A function that is called row by row may raise: then its row is NaN. One that isn't finite, too. Raises ValueError
    where the action has another size than the environment's.
    """
    rows = observation.detach().cpu().numpy()
    wanted = len(rows), spaces.action
    if isinstance(prior, Batched):
        action = np.asarray(prior(rows), np.float64)
    else:
        action = np.stack([_one(prior, row, spaces.action) for row in rows])
    if action.shape != wanted:
        raise ValueError(f"a prior gave actions of shape {action.shape}, expected {wanted}: one row an observation")
    action[~np.isfinite(action).all(1)] = np.nan
    unit = UnitBox(spaces.low, spaces.high).to_unit(action) if spaces.low else action
    return torch.as_tensor(np.clip(unit, -1.0, 1.0), dtype=torch.float32)


def _one(prior: Any, row: Array, size: int) -> Array:
    try:
        action = np.atleast_1d(np.asarray(prior(row), np.float64))
    except Exception:
        return np.full(size, np.nan)
    return action


class PriorPolicy:
    """Acts as the prior alone; the middle of the box where it fails, which ``failures`` counts."""

    def __init__(self, prior: Any, spaces: Spaces) -> None:
        self.prior, self.spaces, self.failures = prior, spaces, 0

    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N, A] for observations [N, S]."""
        action = suggested(self.prior, observation, self.spaces)
        self.failures += int(action.isnan().any(1).sum())
        return action.nan_to_num(0.0), {}, memory


class UniformPolicy:
    """Acts uniformly in the box, greedily too: what a useful prior has to beat."""

    def __init__(self, spaces: Spaces) -> None:
        self.size = spaces.action

    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N, A] for observations [N, S]."""
        return 2.0 * torch.rand(len(observation), self.size, generator=rng) - 1.0, {}, memory
