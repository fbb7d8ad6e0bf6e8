"""Shared by all tests: one thread (tests run side by side), no network, the tiny model."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from policyopt.models.language import LanguagePolicy
from policyopt.models.tiny import character_tokenizer, tiny_model

torch.set_num_threads(1)


@pytest.fixture
def policy() -> LanguagePolicy:
    """A fresh tiny policy with a character tokenizer."""
    tokenizer = character_tokenizer()
    return LanguagePolicy(tiny_model(0, len(tokenizer)), tokenizer)
