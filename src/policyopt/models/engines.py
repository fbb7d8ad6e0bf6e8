"""The two ways to run a causal language model: shared prefixes without padding, or padded through the model's own cache.

Both offer the same four things to ``LanguagePolicy``: ``prefill``, ``resume``, ``decoder`` and ``states``. All take and
return flat or [rows, …] tensors; hidden states are those of the last layer, the head is applied by the caller. Where
tokens are taken, embeddings with one axis more [.., d] serve as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from policyopt.models.attention import NAME, Decoding, KeyValues, Packed


def _inside(length: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=length.device) < length[:, None]


def _fed(tokens: Tensor) -> dict[str, Tensor]:
    """The model's argument for token ids, or for embeddings."""
    return {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}


def decision_index(length: Tensor, mask: Tensor, parent: Tensor, prompt_length: Tensor) -> Tensor:
    """Where, in the flat order [prompts, rows without their last token], the state before each masked action stands.

    length [N], mask [N, T], parent [N] into prompt_length [U] → [number of True in mask]. The state before a row's
    first action is the last token of its prompt.
    """
    last_of_prompt = prompt_length.cumsum(0) - 1
    rows = (length - 1).clamp(min=0)
    start = prompt_length.sum() + rows.cumsum(0) - rows
    step = torch.arange(mask.shape[1], device=mask.device)
    where = torch.where(step == 0, last_of_prompt[parent, None], start[:, None] + step - 1)
    return where[mask]


class SharedPrefixEngine:
    """Everything without padding, each prefix computed once (see ``models.attention``)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        model.set_attn_implementation(NAME)

    def _run(self, tokens: Tensor, layout: Packed | Decoding) -> Tensor:
        out = self.model.base_model(
            **_fed(tokens[None]), position_ids=layout.positions[None], use_cache=False, layout=layout
        )
        return out.last_hidden_state[0]

    def prefill(self, prefixes: Sequence[Tensor]) -> tuple[Tensor, KeyValues]:
        """Last hidden state [U, d] and keys and values of U token sequences, each computed once."""
        length = torch.tensor([len(p) for p in prefixes], device=prefixes[0].device)
        layout = Packed(length, keep=True)
        hidden = self._run(torch.cat(list(prefixes)), layout)
        return hidden[length.cumsum(0) - 1], layout.memory()

    def resume(self, known: KeyValues, suffixes: Sequence[Tensor]) -> tuple[Tensor, KeyValues]:
        """The same for sequences of which all but ``suffixes`` (one token or more each) is known."""
        length = torch.tensor([len(s) for s in suffixes], device=suffixes[0].device)
        parent = torch.arange(len(length), device=length.device)
        layout = Packed(known.length, length, parent, known, keep=True)
        hidden = self._run(torch.cat(list(suffixes)), layout)
        return hidden[length.cumsum(0) - 1], layout.memory()

    def decoder(self, memory: KeyValues, samples: int, capacity: int) -> SharedPrefixDecoder:
        return SharedPrefixDecoder(self, Decoding(memory, samples, capacity))

    def states(
        self, prompts: Sequence[Tensor], parent: Tensor, actions: Tensor, length: Tensor, mask: Tensor
    ) -> Tensor:
        """Hidden states before each masked action: prompts U, parent [N], actions [N, T], length [N], mask [N, T]
        → [number of True in mask, d], with gradient."""
        prompt_length = torch.tensor([len(p) for p in prompts], device=actions.device)
        rows = (length - 1).clamp(min=0)
        layout = Packed(prompt_length, rows, parent)
        flat = torch.cat([*prompts, actions[_inside(rows, actions.shape[1])]])
        hidden = self._run(flat, layout)
        return hidden.index_select(0, decision_index(length, mask, parent, prompt_length))


class SharedPrefixDecoder:
    def __init__(self, engine: SharedPrefixEngine, layout: Decoding) -> None:
        self.engine, self.layout = engine, layout

    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token a living row [alive] → hidden states [alive, d]."""
        hidden = self.engine._run(tokens, self.layout)
        self.layout.advance()
        return hidden

    def retain(self, going: Tensor) -> Tensor:
        """Drop the rows where ``going`` is False; returns the samples [alive] in their new order."""
        self.layout.retain(going)
        return self.layout.order[: self.layout.alive]

    def memory(self, rows: Tensor, length: Tensor) -> KeyValues | None:
        return self.layout.memory(rows, length)


class PaddedEngine:
    """The plain path for models whose attention can't be shared: left-padded prompts, the model's own cache, every
    prompt repeated for each sample in training. Slower, and keeps no prefix between calls."""

    def __init__(self, model: Any) -> None:
        self.model = model
        model.set_attn_implementation("eager" if not getattr(model, "_supports_sdpa", True) else "sdpa")

    def prefill(self, prefixes: Sequence[Tensor]) -> tuple[Tensor, Any]:
        length = torch.tensor([len(p) for p in prefixes], device=prefixes[0].device)
        tokens = pad_sequence(list(prefixes), batch_first=True, padding_side="left")
        mask = _inside(length, tokens.shape[1]).flip(1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model.base_model(**_fed(tokens), attention_mask=mask.long(), position_ids=positions, use_cache=True)
        return out.last_hidden_state[:, -1], (out.past_key_values, mask, length)

    def decoder(self, memory: Any, samples: int, capacity: int) -> PaddedDecoder:
        return PaddedDecoder(self.model, memory, samples)

    def states(
        self, prompts: Sequence[Tensor], parent: Tensor, actions: Tensor, length: Tensor, mask: Tensor
    ) -> Tensor:
        rows = [
            torch.cat([prompts[int(p)], a[: max(int(n) - 1, 0)]])
            for p, a, n in zip(parent, actions, length, strict=True)
        ]
        tokens = pad_sequence(rows, batch_first=True)
        filled = _inside(torch.tensor([len(r) for r in rows], device=actions.device), tokens.shape[1])
        out = self.model.base_model(**_fed(tokens), attention_mask=filled.long(), use_cache=False)
        start = torch.tensor([len(prompts[int(p)]) for p in parent], device=actions.device) - 1
        row, step = mask.nonzero(as_tuple=True)
        return out.last_hidden_state[row, start[row] + step]


class PaddedDecoder:
    def __init__(self, model: Any, memory: Any, samples: int) -> None:
        self.model = model
        cache, mask, length = memory
        cache.batch_repeat_interleave(samples)
        self.cache, self.mask = cache, mask.repeat_interleave(samples, 0)
        self.position = length.repeat_interleave(samples)
        self.order = torch.arange(len(self.position), device=mask.device)

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        out = self.model.base_model(
            **_fed(tokens[:, None]),
            attention_mask=self.mask.long(),
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        return out.last_hidden_state[:, -1]

    def retain(self, going: Tensor) -> Tensor:
        index = going.nonzero().squeeze(-1)
        self.cache.batch_select_indices(index)
        self.mask, self.position, self.order = self.mask[index], self.position[index], self.order[index]
        return self.order

    def memory(self, rows: Tensor, length: Tensor) -> None:
        return None
