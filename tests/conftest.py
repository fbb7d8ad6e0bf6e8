"""Shared by all tests: one thread (tests run side by side), no network, the tiny model."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from policyopt.models.language import LanguagePolicy
from policyopt.models.tiny import character_tokenizer, tiny_model
from policyopt.types import Outputs, Rollouts

torch.set_num_threads(1)


@pytest.fixture
def policy() -> LanguagePolicy:
    """A fresh tiny policy with a character tokenizer."""
    tokenizer = character_tokenizer()
    return LanguagePolicy(tiny_model(0, len(tokenizer)), tokenizer)


@pytest.fixture
def lists() -> Callable[..., tuple[Outputs, Rollouts]]:
    """Lists of responses by their sequence log-probabilities: (logp, ref, labels) [L, K] → outputs and batch of single steps."""

    def build(logp: Any, ref: Any, labels: Any, *, length: int = 1) -> tuple[Outputs, Rollouts]:
        logp, ref, labels = (
            torch.as_tensor(x, dtype=torch.float64).reshape(len(labels), -1) for x in (logp, ref, labels)
        )
        size, count = labels.shape[1], labels.numel()
        steps = [x.reshape(-1, 1).expand(-1, length) / length for x in (logp, ref)]
        batch = Rollouts(
            actions=torch.zeros(count, length, dtype=torch.int64),
            mask=torch.ones(count, length, dtype=torch.bool),
            ref_logp=steps[1],
            behaviour_logp=steps[1],
            group=torch.arange(count) // size,
            prompt_id=torch.arange(count) // size,
            scores=TensorDict({"reward": labels.flatten()}, [count]),
            batch_size=[count],
        )
        return Outputs(logp=steps[0].clone().requires_grad_()), batch

    return build
