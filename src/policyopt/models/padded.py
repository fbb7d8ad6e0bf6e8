"""The plain way to run a causal language model, for those whose attention can't be shared, and the check that tells which.

``PaddedEngine`` offers what ``SharedPrefixEngine`` does, with left-padded prompts and the model's own cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from policyopt.models.engines import SharedPrefixEngine, fed, inside, token_logp
from policyopt.types import generator

Engine: TypeAlias = "SharedPrefixEngine | PaddedEngine"


def agreeing_engine(model: Any, scale: float) -> Engine:
    """The shared-prefix engine where it agrees with the plain one on a short batch, else the plain one, with a warning."""
    want = _checked(PaddedEngine(model), scale)
    try:
        engine = SharedPrefixEngine(model)
        difference = float((_checked(engine, scale) - want).abs().max())
        if difference <= (1e-3 if want.dtype == torch.float32 else 0.15):
            return engine
        reason = f"its log-probabilities differ by {difference:.2g}"
    except (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        reason = str(error)
    warnings.warn(
        f"{type(model).__name__}: prefixes can't be shared ({reason}); using the slower padded path", stacklevel=4
    )
    return PaddedEngine(model)


@torch.no_grad()
def _checked(engine: Engine, scale: float) -> Tensor:
    """Log-probabilities of a short ragged batch, by a training forward and by decoding it token by token."""
    head = engine.model.get_output_embeddings()
    rng, size, device = generator(0, "self-check"), head.weight.shape[0], head.weight.device
    prompts = [torch.randint(size, (n,), generator=rng).to(device) for n in (5, 3)]
    parent = torch.tensor([0, 0, 1, 1], device=device)
    length = torch.tensor([3, 1, 2, 3], device=device)
    actions = torch.randint(size, (4, 3), generator=rng).to(device)
    mask = torch.arange(3, device=device) < length[:, None]
    states = engine.states(prompts, parent, actions, length, mask)
    trained = token_logp(states, head.weight, head.bias, actions[mask], scale)[0]
    hidden, memory, _ = engine.prefill(prompts)
    decoder = engine.decoder(memory, 2, 3)
    first = decoder.step(actions[:, 0])
    order = decoder.retain(torch.tensor([True, False, True, True], device=device))
    second = decoder.step(actions[order, 1])[order.argsort()]
    decoded = [(head(h).float() * scale).log_softmax(-1).flatten() for h in (hidden, first, second)]
    return torch.cat([trained, *decoded]).to(head.weight.dtype)


class PaddedEngine:
    """The plain path for models whose attention can't be shared: left-padded prompts, the model's own cache, every
    prompt repeated for each sample in training. Slower, and keeps no prefix between calls."""

    def __init__(self, model: Any) -> None:
        self.model = model
        model.set_attn_implementation("eager" if not getattr(model, "_supports_sdpa", True) else "sdpa")

    def prefill(self, prefixes: Sequence[Tensor]) -> tuple[Tensor, Any, int]:
        length = torch.tensor([len(p) for p in prefixes], device=prefixes[0].device)
        tokens = pad_sequence(list(prefixes), batch_first=True, padding_side="left")
        mask = inside(length, tokens.shape[1]).flip(1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model.base_model(**fed(tokens), attention_mask=mask.long(), position_ids=positions, use_cache=True)
        return out.last_hidden_state[:, -1], (out.past_key_values, mask, length), int(length.sum())

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
        filled = inside(torch.tensor([len(r) for r in rows], device=actions.device), tokens.shape[1])
        out = self.model.base_model(**fed(tokens), attention_mask=filled.long(), use_cache=False)
        start = torch.tensor([len(prompts[int(p)]) for p in parent], device=actions.device) - 1
        row, step = mask.nonzero(as_tuple=True)
        return out.last_hidden_state[row, start[row] + step]


class PaddedDecoder:
    """Tokens one by one with the model's own cache."""

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
            **fed(tokens[:, None]),
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
