"""One optimizer step: minibatches, schedules, clipping, and the check that nothing non-finite reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policyopt.types import Clock, Part, Rollouts


class NonFinite(ArithmeticError):
    """A loss or gradient was NaN or infinite; the weights were not touched."""


def divided(batch: Rollouts, pieces: Sequence[Any]) -> Iterator[Rollouts]:
    """The micro-batches of a batch that is made of these rows; a single one is the batch."""
    return iter((batch,)) if len(pieces) == 1 else (batch[rows] for rows in pieces)


@dataclass(frozen=True, kw_only=True)
class Schedule(Part):
    """Factor on the learning rate: linear warm-up over ``warmup`` steps, then constant."""

    warmup: int = 0

    def __call__(self, clock: Clock) -> float:
        rising = 1.0 if clock.step >= self.warmup else (clock.step + 1) / (self.warmup + 1)
        return rising * self.decayed(min(clock.share, 1.0))

    def decayed(self, share: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Linear decay to ``final`` over the budget."""

    final: float = 0.0

    def decayed(self, share: float) -> float:
        return 1.0 + (self.final - 1.0) * share


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Cosine decay to ``final`` over the budget."""

    final: float = 0.0

    def decayed(self, share: float) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class Adam(Part):
    """AdamW with gradient-norm clipping (None: no clipping).

    learning_rate None takes what suits the network (``default_learning_rate`` of a policy, 1e-3 where it has none).
    """

    learning_rate: float | None = None
    schedule: Schedule = Schedule()
    gradient_clip: float | None = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    def build(self, parameters: Iterable[Tensor], default: float = 1e-3) -> Optimizer:
        return Optimizer(self, list(parameters), default)


class Optimizer:
    """Live AdamW by its fused kernel (8 µs on small networks; the class around it 160). Without a gradient nothing changes."""

    def __init__(self, settings: Adam, parameters: list[Tensor], default: float) -> None:
        if not parameters:
            raise ValueError("there is nothing to train: no parameter of the policy requires a gradient")
        self.settings, self.parameters = settings, parameters
        self.learning_rate = settings.learning_rate or default
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []  # losses, norms and their sums since the last check
        self.counts = torch.zeros(len(parameters), device=parameters[0].device)
        moments = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        self.state = dict(zip(("exp_avg", "exp_avg_sq", "step"), (*moments, self.counts.unbind()), strict=True))
        self.groups: dict[Any, list[int]] = {}  # a kernel knows one type and one device
        for i, parameter in enumerate(parameters):
            self.groups.setdefault((parameter.device, parameter.dtype), []).append(i)

    @torch.no_grad()
    def attempt(self, loss: Tensor, clock: Clock) -> Tensor:
        """``step`` that doesn't wait for the device: where loss or gradient are not finite the kernel leaves weights and
        moments as they are, and the next ``check`` says so. Returns the norm before clipping."""
        every: list[Any] = [p.grad for p in self.parameters]
        gradients = [gradient for gradient in every if gradient is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        total = norm + loss
        self.seen.append((loss, norm, total))
        succeeded = torch.isfinite(total).float()
        whole = len(gradients) == len(every)
        self.counts += succeeded if whole else succeeded * norm.new_tensor([g is not None for g in every])
        adam, (beta1, beta2) = self.settings, self.settings.betas
        rates: dict[str, Any] = {"lr": self.learning_rate * adam.schedule(clock), "weight_decay": adam.weight_decay}
        rates |= {"beta1": beta1, "beta2": beta2, "eps": adam.epsilon, "amsgrad": False, "maximize": False}
        if adam.gradient_clip is not None:
            rates["grad_scale"] = (norm / adam.gradient_clip).clamp_(min=1.0).float()  # what gradients are divided by
        for group in self.groups.values():
            here, columns = [i for i in group if every[i] is not None], (self.parameters, every, *self.state.values())
            parameters, g, m, v, count = ([column[i] for i in here] for column in columns)
            torch._fused_adamw_(parameters, g, m, v, [], count, **rates, found_inf=1.0 - succeeded)
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def step(self, loss: Tensor, clock: Clock) -> Tensor:
        """``attempt`` and ``check``: raises NonFinite at once, weights untouched."""
        norm = self.attempt(loss, clock)
        self.check(clock)
        return norm

    def check(self, clock: Clock) -> None:
        """Raises NonFinite where an attempt since the last check had a loss or gradient that is not finite."""
        seen, self.seen = self.seen, []
        if (failed := next((both for *both, total in seen if not math.isfinite(total)), None)) is None:
            return
        loss, norm = failed
        raise NonFinite(
            f"step {clock.step}: the loss is {float(loss):g} and its gradient norm {float(norm):g}; the weights are "
            "unchanged. Look at the rewards and the data of this step; a lower learning rate or a tighter "
            "gradient_clip usually helps"
        )

    def state_dict(self) -> dict[str, Any]:
        return {str(i): {k: column[i] for k, column in self.state.items()} for i in range(len(self.parameters))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, moments in state.items():
            for name, value in moments.items():
                self.state[name][int(i)].copy_(value)


def mean_metrics(updates: Sequence[Mapping[str, Tensor | float]]) -> dict[str, Tensor | float]:
    """The mean over updates of each number that they log."""
    return {key: torch.stack([torch.as_tensor(one[key]) for one in updates]).mean() for key in updates[0]}


def minibatches(
    batches: Mapping[str, Any], count: int, rng: torch.Generator, whole: bool = False
) -> Iterator[dict[str, Any]]:
    """``count`` pieces of every named batch, in random order; rows of a group stay side by side (they share a prompt).

    ``whole``: a group is never divided.
    """
    if count == 1:
        yield dict(batches)
        return
    pieces: dict[str, Sequence[Any]] = {}
    for name, batch in batches.items():
        group = getattr(batch, "group", None)
        index = torch.arange(len(batch)) if group is None else group.unique(return_inverse=True)[1].cpu()
        groups = int(index.max()) + 1
        if (groups if whole else len(batch)) < count:
            what = "groups" if whole else "rows"
            raise ValueError(f"{count} minibatches need at least as many {what}, but {name} has {len(batch)} rows")
        key = torch.rand(groups, generator=rng)
        order = key[index].argsort(stable=True)
        sizes = _sizes(index, key, count) if whole else [len(piece) for piece in order.tensor_split(count)]
        pieces[name] = batch[order.to(batch.device or "cpu")].split(sizes)
    for i in range(count):
        yield {name: pieces[name][i] for name in batches}


def _sizes(index: Tensor, key: Tensor, count: int) -> list[int]:
    """Rows of ``count`` pieces with equally many groups, in the order of the groups' keys; index [N] into groups."""
    rows = index.bincount()[key.argsort(stable=True)]
    return [int(piece.sum()) for piece in rows.tensor_split(count)]
