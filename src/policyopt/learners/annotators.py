"""Annotators: columns that need a network over finished rollouts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.types import Part, Rollouts


@dataclass(frozen=True, kw_only=True)
class Annotator(Part):
    """``build`` makes the model it runs (None where it needs none), the call adds columns with it."""

    def build(self, policy: Any, seed: int) -> Any:
        return None

    def __call__(self, batch: Any, policy: Any, model: Any, limit: int, memory: Any = None) -> Any:
        """``limit``: tokens that may go through the model at once."""
        raise NotImplementedError


@torch.no_grad()
def evaluated(model: Any, batch: Rollouts, column: str, limit: int) -> Tensor:
    """The output ``column`` of ``model.evaluate`` over the whole batch [N, T], in micro-batches of ``limit`` tokens."""
    full = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for rows in model.micro_batches(batch, limit):
        full[rows] = getattr(model.evaluate(batch[rows], (column,)), column).float()
    return full


@dataclass(frozen=True, kw_only=True)
class Reference(Annotator):
    """``ref_logp``: log-probabilities under a frozen copy of ``model``, of the policy as training began where it is None."""

    gives: ClassVar[tuple[str, ...]] = ("ref_logp",)
    model: Any = field(default=None, repr=False)

    def build(self, policy: Any, seed: int) -> Any:
        return (policy if self.model is None else self.model).frozen_copy()

    def __call__(self, batch: Rollouts, policy: Any, model: Any, limit: int, memory: Any = None) -> Rollouts:
        return batch.replace(ref_logp=evaluated(model, batch, "logp", limit))


class Known:
    """Rows [K, T] by prompt: what was computed once for the written responses to it."""

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {str(prompt): rows for prompt, rows in self.rows.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = {int(prompt): rows for prompt, rows in state.items()}


@dataclass(frozen=True, kw_only=True)
class KeptReference(Reference):
    """``Reference`` for responses that are data: computed once for each prompt, kept, and saved with the run.

    The responses to a prompt must be the same, in the same order, whenever it comes.
    """

    needs: ClassVar[tuple[str, ...]] = ("group", "prompt_id")

    def memory(self) -> Known:
        return Known()

    def __call__(self, batch: Rollouts, policy: Any, model: Any, limit: int, memory: Any = None) -> Rollouts:
        assert isinstance(memory, Known) and batch.prompt_id is not None
        prompts = batch.prompt_id.tolist()
        fresh = [row for row, prompt in enumerate(prompts) if prompt not in memory.rows]
        if fresh:
            index = torch.tensor(fresh, device=batch.mask.device)
            self._keep(evaluated(model, batch[index], "logp", limit), [prompts[row] for row in fresh], memory)
        ref_logp = torch.zeros(batch.mask.shape, device=batch.mask.device)
        taken: Counter[int] = Counter()
        for row, prompt in enumerate(prompts):
            kept = memory.rows[prompt]
            known = kept[taken[prompt] % len(kept)]
            ref_logp[row, : len(known)] = known[: ref_logp.shape[1]]
            taken[prompt] += 1
        return batch.replace(ref_logp=ref_logp * batch.mask)

    @staticmethod
    def _keep(logp: Tensor, prompts: list[int], memory: Known) -> None:
        """Rows of a prompt that came twice in the batch are kept twice, which does no harm: they are the same."""
        for prompt in dict.fromkeys(prompts):
            memory.rows[prompt] = logp[[row for row, other in enumerate(prompts) if other == prompt]]


@dataclass(frozen=True, kw_only=True)
class Guide(Annotator):
    """``guide_logp``: log-probabilities under a further policy, which comes from a finished stage."""

    gives: ClassVar[tuple[str, ...]] = ("guide_logp",)
    model: Any = field(default=None, repr=False)

    def build(self, policy: Any, seed: int) -> Any:
        if self.model is None:
            raise ValueError("token guidance needs a trained policy: put a stage that trains one before this one")
        return self.model.frozen_copy()

    def __call__(self, batch: Rollouts, policy: Any, model: Any, limit: int, memory: Any = None) -> Rollouts:
        return batch.replace(guide_logp=evaluated(model, batch, "logp", limit))
