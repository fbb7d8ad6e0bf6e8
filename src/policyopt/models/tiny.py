"""The small models that need no download: a character tokenizer, Llama-shaped policies, and the shipped checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHIPPED = Path(__file__).parent / "tiny"
ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))


def character_tokenizer() -> Any:
    """One token a printable ASCII character or newline; <pad>, <bos> and <eos> besides. Unknown characters become <unk>."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*special, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(
    seed: int, vocabulary: int, *, layers: int = 2, width: int = 64, heads: int = 4, context: int = 512
) -> Any:
    """A freshly initialized Llama-shaped causal model (about 0.1M parameters by default), the same for the same seed."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initializes from the global state
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
