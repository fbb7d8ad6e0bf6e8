"""Log-probabilities and entropies of chosen tokens, without ever holding a [tokens, V] tensor for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 23  # logits alive at once: 32 MiB in float32


def token_logp(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, actions: Tensor, scale: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(scale · (hidden · weightᵀ + bias)) at ``actions``, and the entropy of that distribution where asked.

    hidden [n, d], weight [V, d], bias [V] or None, actions [n] → [n] and [n] or None, float32 with gradient to hidden,
    weight and bias. Logits are computed in chunks, and once more in the backward pass instead of being kept.
    """
    logp, entropies = _TokenLogp.apply(hidden, weight, bias, actions, scale, entropy)
    return logp, entropies if entropy else None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits if scale == 1.0 else logits.mul_(scale)


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        actions: Tensor,
        scale: float,
        want_entropy: bool,
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
        context.save_for_backward(hidden, weight, bias, actions, normalizer, entropy)
        context.scale, context.want_entropy, context.rows = scale, want_entropy, rows
        return logp, entropy

    @staticmethod
    def backward(context: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, actions, normalizer, entropy = context.saved_tensors
        needs_hidden, needs_weight, needs_bias = context.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(hidden), context.rows):
            piece = slice(start, start + context.rows)
            logp = _logits(hidden[piece], weight, bias, context.scale) - normalizer[piece, None]
            grad = logp.exp()
            if context.want_entropy:  # dH/dlogit = -p (log p + H)
                grad *= -(grad_logp[piece, None] + grad_entropy[piece, None] * (logp + entropy[piece, None]))
            else:
                grad *= -grad_logp[piece, None]
            grad.scatter_add_(-1, actions[piece, None], grad_logp[piece, None])
            grad = grad.mul_(context.scale).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[piece] = grad @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), hidden[piece])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None
