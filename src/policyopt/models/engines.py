"""Running a causal language model with shared prefixes and without padding.

An engine offers four things to ``LanguagePolicy``: ``prefill``, ``resume``, ``decoder`` and ``states``. They take and return
flat or [rows, …] tensors; hidden states are those of the last layer, and ``token_logp`` applies the head. Where tokens are
taken, embeddings with one axis more [.., d] serve as well. ``models.padded`` is the plain way with the same face.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from policyopt.models.attention import NAME, Decoding, KeyValues, Level, Packed
from policyopt.models.products import product

CHUNK_ELEMENTS = 1 << 23  # logits alive at once: 32 MiB in float32


def inside(length: Tensor, width: int) -> Tensor:
    """length [N] → [N, width], True for the first ``length`` positions of a row."""
    return torch.arange(width, device=length.device) < length[:, None]


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ragged token rows → ([N, longest] padded on the right with zeros, length [N])."""
    length = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return pad_sequence(list(rows), batch_first=True), length


def fed(tokens: Tensor) -> dict[str, Tensor]:
    """The model's argument for token ids, or for embeddings."""
    return {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}


SHARED_HEAD = 16  # tokens that prompts must begin with alike for a level of their own to pay


def shared_head(prompts: Sequence[Tensor]) -> int:
    """How many tokens all prompts begin with alike (a system prompt, worked examples), always leaving each one token;
    0 where it is not worth a level of its own."""
    if len(prompts) < 2 or prompts[0].is_floating_point():
        return 0
    shortest = min(map(len, prompts)) - 1
    heads = torch.stack([prompt[:shortest] for prompt in prompts])
    common = int((heads == heads[0]).all(0).cumprod(0).sum())
    return common if common >= SHARED_HEAD else 0


def decision_index(length: Tensor, mask: Tensor, parent: Tensor, prompt_length: Tensor, head: int = 0) -> Tensor:
    """Where, in the flat order [head, prompts, rows without their last token], the state before each masked action is.

    length [N], mask [N, T], parent [N] into prompt_length [U] (without the head) → [number of True in mask]. The state
    before a row's first action is the last token of its prompt.
    """
    last_of_prompt = head + prompt_length.cumsum(0) - 1
    rows = (length - 1).clamp(min=0)
    start = head + prompt_length.sum() + rows.cumsum(0) - rows
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
            **fed(tokens[None]), position_ids=layout.positions[None], use_cache=False, layout=layout
        )
        return out.last_hidden_state[0]

    def prefill(self, prefixes: Sequence[Tensor]) -> tuple[Tensor, KeyValues, int]:
        """Last hidden state [U, d], keys and values of U token sequences, and how many tokens were computed for it:
        each sequence once, and what they all begin with once."""
        levels, flat = _prompt_levels(prefixes)
        layout = Packed(levels, keep=True)
        hidden = self._run(torch.cat(flat), layout)
        return hidden[levels[-1].length.cumsum(0) - 1 + sum(layout.tokens[:-1])], layout.memory(), len(hidden)

    def resume(self, known: KeyValues, suffixes: Sequence[Tensor]) -> tuple[Tensor, KeyValues, int]:
        """The same for sequences of which all but ``suffixes`` (one token or more each) is known; ``known`` gets them."""
        length = torch.tensor([len(s) for s in suffixes], device=suffixes[0].device)
        every = torch.arange(len(length), device=length.device)
        layout = Packed([Level(length, every)], known, keep=True)
        hidden = self._run(torch.cat(list(suffixes)), layout)
        known.append(KeyValues(*layout.kept[0], length), every)
        return hidden[length.cumsum(0) - 1], known, len(hidden)

    def decoder(self, memory: KeyValues, samples: int, capacity: int) -> SharedPrefixDecoder:
        return SharedPrefixDecoder(self, Decoding(memory, samples, capacity))

    def states(
        self, prompts: Sequence[Tensor], parent: Tensor, actions: Tensor, length: Tensor, mask: Tensor
    ) -> Tensor:
        """Hidden states before each masked action: prompts U, parent [N], actions [N, T], length [N], mask [N, T]
        → [number of True in mask, d], with gradient."""
        levels, flat = _prompt_levels(prompts)
        rows = (length - 1).clamp(min=0)
        layout = Packed([*levels, Level(rows, parent)])
        hidden = self._run(torch.cat([*flat, actions[inside(rows, actions.shape[1])]]), layout)
        head = layout.tokens[0] if len(levels) > 1 else 0
        return hidden.index_select(0, decision_index(length, mask, parent, levels[-1].length, head))


def _prompt_levels(prompts: Sequence[Tensor]) -> tuple[list[Level], list[Tensor]]:
    """The prompts as one level, or as two where they share a head, and their tokens in flat order."""
    device, head = prompts[0].device, shared_head(prompts)
    length = torch.tensor([len(p) - head for p in prompts], device=device)
    if not head:
        return [Level(length)], list(prompts)
    first = Level(torch.tensor([head], device=device))
    return [first, Level(length, torch.zeros_like(length))], [prompts[0][:head], *(p[head:] for p in prompts)]


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


def token_logp(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, actions: Tensor, scale: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(scale · (hidden · weightᵀ + bias)) at ``actions``, and the entropy of that distribution where asked.

    hidden [n, d], weight [V, d], bias [V] or None, actions [n] → [n] and [n] or None, float32 with gradient to hidden,
    weight and bias. Logits are computed in chunks, and once more in the backward pass instead of being kept.
    """
    logp, entropies = _TokenLogp.apply(hidden, weight, bias, actions, scale, entropy)
    return logp, entropies if entropy else None


def _times(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b) if b.numel() > 1 << 22 else a @ b  # of a large vocabulary: by the quicker library


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = (_times(hidden, weight.t()) if bias is None else torch.addmm(bias, hidden, weight.t())).float()
    return logits if scale == 1.0 else logits.mul_(scale)


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, actions: Tensor, scale: float, want_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        rows = max(1, CHUNK_ELEMENTS // len(weight))
        logp, normalizer, entropy = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(3))
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            logits = _logits(hidden[piece], weight, bias, scale)
            normalizer[piece] = logits.logsumexp(-1)
            logp[piece] = logits.gather(-1, actions[piece, None]).squeeze(-1) - normalizer[piece]
            if want_entropy:
                logits -= normalizer[piece, None]
                entropy[piece] = -(logits.exp() * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, actions, normalizer, entropy)
        ctx.scale, ctx.want_entropy, ctx.rows = scale, want_entropy, rows
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, actions, normalizer, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(hidden), ctx.rows):
            piece = slice(start, start + ctx.rows)
            logp = _logits(hidden[piece], weight, bias, ctx.scale) - normalizer[piece, None]
            grad = logp.exp()
            if ctx.want_entropy:  # dH/dlogit = -p (log p + H)
                grad *= -(grad_logp[piece, None] + grad_entropy[piece, None] * (logp + entropy[piece, None]))
            else:
                grad *= -grad_logp[piece, None]
            grad.scatter_add_(-1, actions[piece, None], grad_logp[piece, None])
            grad = grad.mul_(ctx.scale).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[piece] = _times(grad, weight)
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), hidden[piece])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None
