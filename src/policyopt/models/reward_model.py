"""A reward model: a causal language model with one number for a whole response."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policyopt.models.engines import SharedPrefixEngine
from policyopt.models.language import LanguagePolicy
from policyopt.models.language_critic import LanguageCritic
from policyopt.models.load import load_policy
from policyopt.types import Outputs, Rollouts

HEAD = "reward_head.safetensors"


class RewardModel:
    """The policy's network, from its present weights, with a linear head on the state behind the response's last token.

    ``shift`` and ``scale`` standardize what it says; they are 0 and 1 until ``standardize``.
    """

    def __init__(self, policy: LanguagePolicy, seed: int) -> None:
        self.body = LanguagePolicy(
            deepcopy(policy.model).requires_grad_(True),
            policy.tokenizer,
            shared_prefixes=isinstance(policy.engine, SharedPrefixEngine),
        )
        width = self.body.head.weight.shape[1]
        rng = torch.Generator().manual_seed(seed)
        self.head = torch.nn.Linear(width, 1, bias=False, device=policy.device, dtype=policy.dtype)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(1, width, generator=rng) / width)
        self.moments = torch.tensor([0.0, 1.0], device=policy.device)

    @property
    def device(self) -> torch.device:
        return self.body.device

    def parameters(self) -> list[Tensor]:
        return [*(p for p in self.body.parameters() if p.requires_grad), *self.head.parameters()]

    def evaluate(self, batch: Rollouts, want: Sequence[str] = ("value",)) -> Outputs:
        """``value`` [N], and ``logp`` [N, T] of its language-model head where wanted, with gradient."""
        logp = self.body.evaluate(batch).logp if "logp" in want else None
        return Outputs(value=self.value(batch), logp=logp)

    def value(self, batch: Rollouts) -> Tensor:
        """[N], with gradient; rows of one ``group`` share one copy of their prompt."""
        device = batch.mask.device
        blank = torch.zeros(len(batch), 1, dtype=batch.actions.dtype, device=device)
        steps = torch.arange(batch.actions.shape[1] + 1, device=device)
        behind = batch.replace(actions=torch.cat([batch.actions, blank], 1), length=batch.length + 1)
        states = self.body.states(behind, steps == batch.length[:, None])
        value: Tensor = (self.head(states).squeeze(-1).float() - self.moments[0]) / self.moments[1]
        return value

    @torch.no_grad()
    def score(self, batch: Rollouts, limit: int) -> Tensor:
        """[N], in pieces of ``limit`` tokens."""
        value = torch.zeros(len(batch), device=batch.mask.device)
        for rows in self.body.micro_batches(batch, limit):
            value[rows] = self.value(batch[rows])
        return value

    def standardize(self, batch: Rollouts, limit: int) -> None:
        """From here on scores have mean 0 and deviation 1 over ``batch``."""
        self.moments = torch.tensor([0.0, 1.0], device=self.device)
        value = self.score(batch, limit)
        self.moments = torch.stack([value.mean(), value.std().clamp(min=1e-6)])

    def critic(self, seed: int) -> LanguageCritic:
        """A value network that starts from this network and its head."""
        made = LanguageCritic(self.body, seed)
        with torch.no_grad():
            made.value_head.weight.copy_(self.head.weight / self.moments[1])
            made.value_head.bias.copy_(-self.moments[0] / self.moments[1])
        return made

    def micro_batches(self, batch: Rollouts, tokens: int, whole: bool = False) -> list[Tensor]:
        return self.body.micro_batches(batch, tokens, whole)

    def default_micro_batch(self) -> int:
        return self.body.default_micro_batch()

    def default_learning_rate(self) -> float:
        return self.body.default_learning_rate()

    # what a collector of written responses needs

    @property
    def tokenizer(self) -> Any:
        return self.body.tokenizer

    @property
    def context(self) -> int:
        return self.body.context

    @property
    def end_tokens(self) -> Tensor:
        return self.body.end_tokens

    def encode(self, prompts: Sequence[Any], limit: int | None = None) -> list[Tensor]:
        return self.body.encode(prompts, limit)

    def save(self, folder: Path) -> None:
        """Network and tokenizer in Hugging Face format, and beside them the head in a file of its own."""
        self.body.save(folder)
        save_file({"head": self.head.weight.detach().contiguous(), "moments": self.moments}, folder / HEAD)

    def state_dict(self) -> dict[str, Any]:
        return {"body": self.body.state_dict(), "head": self.head.weight.detach(), "moments": self.moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.body.load_state_dict(state["body"])
        with torch.no_grad():
            self.head.weight.copy_(state["head"])
        self.moments = state["moments"].clone()


def load_reward_model(folder: Path, device: str | None = None) -> RewardModel:
    """What ``RewardModel.save`` wrote. Raises ValueError where that folder holds no reward model."""
    if not (folder / HEAD).is_file():
        raise ValueError(
            f"{folder} holds no reward model ({HEAD} is missing): give a folder that RewardModel.save wrote"
        )
    model = RewardModel(load_policy(str(folder), device=device), seed=0)
    saved = load_file(folder / HEAD)
    with torch.no_grad():
        model.head.weight.copy_(saved["head"])
    model.moments = saved["moments"].to(model.device)
    return model
