"""A value network over partial responses: a causal model with a linear value head."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from policyopt.models.engines import SharedPrefixEngine
from policyopt.models.language import LanguagePolicy
from policyopt.types import Outputs, Rollouts


class LanguageCritic:
    """A causal model with a linear value head on the state before each action."""

    def __init__(self, policy: LanguagePolicy, seed: int) -> None:
        self.policy = LanguagePolicy(
            deepcopy(policy.model),
            policy.tokenizer,
            shared_prefixes=isinstance(policy.engine, SharedPrefixEngine),
        )
        width = self.policy.head.weight.shape[1]
        self.value_head = torch.nn.Linear(width, 1, device=policy.device, dtype=policy.dtype)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def parameters(self) -> list[Tensor]:
        head = {id(p) for p in self.policy.head.parameters()}
        tied = {id(p) for p in self.policy.core.get_input_embeddings().parameters()}
        body = [p for p in self.policy.parameters() if id(p) not in head - tied]
        return [*body, *self.value_head.parameters()]

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def default_micro_batch(self) -> int:
        return self.policy.default_micro_batch()

    def default_learning_rate(self) -> float:
        return self.policy.default_learning_rate()

    def value(self, batch: Rollouts) -> Tensor:
        """[N, T] value of the state before each action where ``batch.mask``, zero elsewhere, with gradient."""
        value = self.value_head(self.policy.states(batch, batch.mask)).squeeze(-1).float()
        return torch.zeros(batch.mask.shape, device=batch.mask.device).masked_scatter(batch.mask, value)

    def evaluate(self, batch: Rollouts, want: Sequence[str] = ("value",)) -> Outputs:
        return Outputs(value=self.value(batch))

    @torch.no_grad()
    def values(self, batch: Rollouts, limit: int) -> tuple[Tensor, Tensor]:
        """(value, next_value) [N, T] of the states before and after each step, the one behind a row's last token included."""
        actions = torch.cat([batch.actions, torch.zeros_like(batch.actions[:, :1])], 1)
        behind = torch.arange(actions.shape[1], device=actions.device) == batch.length[:, None]
        mask = torch.cat([batch.mask, torch.zeros_like(batch.mask[:, :1])], 1) | behind
        longer = batch.replace(actions=actions, mask=mask, length=batch.length + 1)
        value = torch.zeros(mask.shape, device=mask.device)
        for rows in self.micro_batches(longer, limit):
            value = value.index_copy(0, rows, self.value(longer[rows]))
        return value[:, :-1] * batch.mask, value[:, 1:]

    def micro_batches(self, batch: Rollouts, tokens: int) -> list[Tensor]:
        return self.policy.micro_batches(batch, tokens)

    def state_dict(self) -> dict[str, Any]:
        return {"body": self.policy.state_dict(), "value_head": dict(self.value_head.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["body"])
        self.value_head.load_state_dict(state["value_head"])
