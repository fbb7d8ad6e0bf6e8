"""Combinatorial problems whose solutions are built one step at a time, and their reference solutions.

A problem is a deterministic decision process over partial solutions, a batch of N at once; rewards are decreases of the
cost, or gains of value, and add up to the solution's return. Partial solutions that leave the same problem over are one
state: ``tail`` shows a policy what remains, and nothing of how it came about (arXiv 2301.03313). ``solve`` gives
(near-)optimal solutions to imitate and to measure against.

Axes: N instances, C nodes or items of an instance, M candidates that are shown, A choices among them (M, or 2M where a
candidate can be reached in two ways), F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from policyopt.problems.language.base import read_options
from policyopt.types import generator

Observation: TypeAlias = dict[str, Tensor]


class Partial(Protocol):
    """A batch of N partial solutions, a tensorclass of batch size [N]: indexing picks instances.

    ``tail()`` is the remaining problem as an observation: "features" [N, M, F]; "legal" [N, A]; "choice" [N, A], the
    action behind each choice; routing adds "distance" [N, M], from the current node. Where an instance is finished
    before others of the batch, one choice that changes nothing is legal.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...
    @property
    def done(self) -> Tensor: ...
    def tail(self) -> Observation: ...
    def step(self, action: Tensor) -> tuple[Any, Tensor]:
        """Actions [N] → the next partial solutions, and the rewards [N]."""
        ...


Act: TypeAlias = Callable[[Any, Any, torch.Generator, bool], tuple[Tensor, Any, Any]]


class Solved(NamedTuple):
    """N instances with nothing decided, the actions [N, L] that solve them (-1 behind the end), their returns [N]."""

    start: Any
    actions: Tensor
    returns: Tensor


def construct(start: Partial, act: Act, rng: torch.Generator, greedy: bool = True) -> tuple[Any, Tensor]:
    """Complete solutions and their returns [N]; ``act`` has the signature of ``Policy.act``."""
    partial, memory, returns = start, None, torch.zeros(len(start))
    while not bool(partial.done.all()):
        action, _, memory = act(partial, memory, rng, greedy)
        partial, reward = partial.step(action)
        returns = returns + reward
    return partial, returns


def remaining(gone: Tensor, count: int) -> Tensor:
    """The indices of 0 … count-1 that are not in ``gone`` [N, t] (no duplicates), ascending: [N, count - t]."""
    left = torch.ones(len(gone), count, dtype=torch.bool).scatter_(1, gone, False)
    return left.nonzero()[:, 1].view(len(gone), count - gone.shape[1])


@lru_cache(maxsize=16)
def solved(problem: Construction, split: str, size: int) -> Solved:
    """The instances of a split ("train" or "test") and size with their reference solutions; solved once a process."""
    count = problem.train_instances if split == "train" else problem.test_instances
    start = problem.instances(count, size, generator(problem.seed, f"{problem.name}/{split}/{size}"))
    actions, returns = problem.solve(start)
    if int((actions >= 0).sum(1).min()) == 0:
        raise ValueError(
            f"{problem.name}: the best solution of some instances of size {size} is empty: loosen the budget"
        )
    return Solved(start, actions, returns)


@dataclass(frozen=True, kw_only=True)
class Construction:
    """Random instances of one size to imitate, held-out ones of several sizes to be judged by.

    size: nodes or items of a training instance; test_sizes: of the held-out ones; seed: of all instances.
    """

    name: str
    size: int = 20
    train_instances: int = 20_000
    test_instances: int = 200
    test_sizes: tuple[int, ...] = (20,)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.size, *self.test_sizes) < 4 or min(self.train_instances, self.test_instances) < 1:
            raise ValueError(
                f"{self.name}: sizes must be at least 4 and instance counts positive, got size={self.size}, "
                f"test_sizes={self.test_sizes}, train_instances={self.train_instances}, "
                f"test_instances={self.test_instances}"
            )

    def instances(self, count: int, size: int, rng: torch.Generator) -> Any:
        """``count`` random instances with nothing decided yet."""
        raise NotImplementedError

    def solve(self, start: Any) -> tuple[Tensor, Tensor]:
        """Reference solutions: actions [N, L] in order, -1 behind the end, and their returns [N]."""
        raise NotImplementedError

    def vary(self, start: Any, actions: Tensor, rng: torch.Generator) -> tuple[Any, Tensor]:
        """An equivalent batch: the same problems up to symmetry, with solutions as good."""
        return start, actions

    def experts(self, actions: Tensor, made: int) -> Tensor:
        """What the reference does after ``made`` steps: equally good actions [N, E], -1 where there are fewer."""
        return actions[:, made : made + 1]

    def demonstrations(self, batch: int, rng: torch.Generator) -> tuple[Any, Tensor]:
        """Training instances solved up to one random step → partial solutions, the experts' actions [N, E]."""
        start, actions, _ = solved(self, "train", self.size)
        rows = torch.randint(len(actions), (batch,), generator=rng)
        partial, actions = self.vary(start[rows], actions[rows], rng)
        made = int(torch.randint(int((actions >= 0).sum(1).min()), (), generator=rng))
        for step in range(made):
            partial, _ = partial.step(actions[:, step])
        return partial, self.experts(actions, made)

    def gaps(self, size: int, returns: Tensor) -> Tensor:
        """By what share of the reference's return these returns [N] of the held-out instances fall short of it: [N]."""
        best = solved(self, "test", size).returns
        return (best - returns) / best.abs()

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """Greedy construction: ``eval/return`` of the first test size, ``eval/gap`` over all, ``eval/gap_<size>``."""
        returns = [construct(solved(self, "test", size).start, act, rng)[1] for size in self.test_sizes]
        gaps = [float(self.gaps(size, got).mean()) for size, got in zip(self.test_sizes, returns, strict=True)]
        by_size = {f"eval/gap_{size}": gap for size, gap in zip(self.test_sizes, gaps, strict=True)}
        return {"eval/return": float(returns[0].mean()), "eval/gap": sum(gaps) / len(gaps), **by_size}


Kind = TypeVar("Kind", bound=Construction)


def read(kind: type[Kind], text: str) -> Kind:
    """The problem of this kind that ``"size=50,test_sizes=50-100"`` describes; its fields are the options.

    Raises ValueError for an unknown option or a value that cannot be read.
    """
    readers: dict[str, Callable[[str], Any]] = {
        field.name: _sizes if isinstance(field.default, tuple) else type(field.default)
        for field in fields(kind)
        if field.name != "name"
    }
    return kind(**read_options(text, readers, ",", kind.__name__))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("-"))
