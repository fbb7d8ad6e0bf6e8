"""Attention over shared prefixes: one function for `transformers` models, two layouts.

Tokens of a whole batch travel through a model as ONE flat row without padding, so that embeddings, projections and MLPs
never touch a pad. Only attention needs to know which token belongs where, and it asks the layout:

- ``Packed``: prompts, and rows behind them that see their own prompt (computed once, however many rows share it) and their
  own past. Serves prefill, resumption from a cached prefix, and the training forward.
- ``Decoding``: one new token a row, against a prefix store shared by the rows of a prompt and a buffer of the row's own past.

The layouts hold keys and values themselves; the model's own cache is not used. Axes: U prefixes, N rows, H query heads,
J key-value heads, R = H / J, P longest prefix, T longest row, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "policyopt"
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


class UnsupportedAttention(ValueError):
    """The model asks for something that the shared-prefix attention does not do; the naive path serves it."""


class Layout(Protocol):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [H, tokens, D], key and value [J, tokens, D] → [tokens, H, D]."""
        ...


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """The entry that `transformers` calls; ``layout`` is passed through the model's forward."""
    if layout is None:
        raise UnsupportedAttention(f"{type(module).__name__} does not hand keyword arguments to its attention")
    for name in UNSUPPORTED:
        if extras.get(name) is not None:
            raise UnsupportedAttention(f"{type(module).__name__} uses {name}")
    if dropout:
        raise UnsupportedAttention("attention dropout is on")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(module.layer_idx, query[0], key[0], value[0], scale)[None], None


AttentionInterface.register(NAME, _attend)


@dataclass
class KeyValues:
    """Keys and values of U prefixes, right-padded: per layer [U, J, P, D]; ``length`` [U] valid positions."""

    keys: list[Tensor]
    values: list[Tensor]
    length: Tensor

    def rows(self, index: Tensor, length: Tensor | None = None) -> KeyValues:
        """A copy of the prefixes ``index`` [n], cut to ``length`` [n]."""
        length = self.length[index] if length is None else length
        longest = int(length.max()) if len(length) else 0
        keys = [k[index, :, :longest] for k in self.keys]
        return KeyValues(keys, [v[index, :, :longest] for v in self.values], length)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.keys, self.values, strict=True)


def _joined(prefix: Tensor, own: Tensor, start: Tensor) -> Tensor:
    """[n, J, P, D] and [n, J, T, D] as one right-padded block, ``own`` beginning at ``start`` [n] of each row."""
    rows, heads, longest, size = prefix.shape
    block = prefix.new_zeros(rows, heads, longest + own.shape[2], size)
    block[:, :, :longest] = prefix
    where = start[:, None] + torch.arange(own.shape[2], device=own.device)
    block.scatter_(2, where[:, None, :, None].expand(-1, heads, -1, size), own)
    return block


def joined(prefixes: KeyValues, own: KeyValues) -> KeyValues:
    """The prefixes [n] with n rows of their own behind them."""
    start, length = prefixes.length, prefixes.length + own.length
    keys = [_joined(p, o, start) for p, o in zip(prefixes.keys, own.keys, strict=True)]
    values = [_joined(p, o, start) for p, o in zip(prefixes.values, own.values, strict=True)]
    return KeyValues(keys, values, length).rows(torch.arange(len(length), device=length.device))


class _Grid:
    """Moves a flat stretch of ragged rows into a right-padded grid and back."""

    def __init__(self, length: Tensor) -> None:
        self.rows, self.width = len(length), int(length.max()) if len(length) else 0
        filled = torch.arange(self.width, device=length.device) < length[:, None]
        self.full = bool(filled.all())
        self.where = filled.flatten().nonzero().squeeze(-1)

    def spread(self, flat: Tensor) -> Tensor:
        """[heads, tokens, D] → [rows, heads, width, D]."""
        flat = flat.transpose(0, 1)
        if not self.full:
            grid = flat.new_zeros(self.rows * self.width, *flat.shape[1:])
            flat = grid.index_copy(0, self.where, flat)
        return flat.reshape(self.rows, self.width, *flat.shape[1:]).transpose(1, 2)

    def collect(self, grid: Tensor) -> Tensor:
        """[rows, heads, width, D] → [tokens, heads, D]."""
        flat = grid.transpose(1, 2).flatten(0, 1)
        return flat if self.full else flat.index_select(0, self.where)


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Attention with H query heads on J key-value heads, without repeating keys: the R heads of a key share its row.

    query [n, H, T, D], key and value [n, J, S, D], allowed [n, 1, T, S] → [n, H, T, D].
    """
    rows, heads, steps, size = query.shape
    shared = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], shared * steps, size)
    allowed = allowed.repeat(1, 1, shared, 1)
    return functional.scaled_dot_product_attention(folded, key, value, attn_mask=allowed, scale=scale).view_as(query)


class Packed:
    """Prompts [U] computed here or given as ``known``, then rows [N] with ``parent`` [N]; either may be absent.

    The flat order is: all prompts, then all rows. With ``keep`` the keys and values are kept for ``prompts`` and ``rows``.
    """

    def __init__(
        self,
        prompt_length: Tensor,
        row_length: Tensor | None = None,
        parent: Tensor | None = None,
        known: KeyValues | None = None,
        keep: bool = False,
    ) -> None:
        self.prompt_length, self.row_length, self.parent, self.known, self.keep = (
            prompt_length,
            row_length,
            parent,
            known,
            keep,
        )
        self.kept: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.prompts = None if known is not None else _Grid(prompt_length)
        self.prompt_tokens = 0 if known is not None else int(prompt_length.sum())
        device = prompt_length.device
        if self.prompts is not None:
            self.causal = torch.ones(self.prompts.width, self.prompts.width, dtype=torch.bool, device=device).tril()
        if row_length is not None and parent is not None:
            self.rows = _Grid(row_length)
            width, past = self.rows.width, known.keys[0].shape[2] if known is not None else int(prompt_length.max())
            sees = torch.arange(past, device=device) < prompt_length[parent, None]
            own = torch.ones(width, width, dtype=torch.bool, device=device).tril()
            self.allowed = torch.cat(
                [sees[:, None, None].expand(-1, 1, width, -1), own.expand(len(parent), 1, -1, -1)], -1
            )

    @property
    def positions(self) -> Tensor:
        """Position ids of the flat tokens [prompt tokens + row tokens]."""
        pieces = []
        if self.prompts is not None:
            grid = torch.arange(self.prompts.width, device=self.prompt_length.device).expand(self.prompts.rows, -1)
            pieces.append(grid[grid < self.prompt_length[:, None]])
        if self.row_length is not None and self.parent is not None:
            grid = torch.arange(self.rows.width, device=self.prompt_length.device).expand(self.rows.rows, -1)
            inside = grid < self.row_length[:, None]
            pieces.append((grid + self.prompt_length[self.parent, None])[inside])
        return torch.cat(pieces)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out, split = [], self.prompt_tokens
        if self.prompts is not None:
            q, prefix_key, prefix_value = (self.prompts.spread(x[:, :split]) for x in (query, key, value))
            allowed = self.causal.expand(len(q), 1, -1, -1)
            out.append(self.prompts.collect(_grouped_attention(q, prefix_key, prefix_value, allowed, scale)))
            self._keep(prefix_key, prefix_value)
        else:
            assert self.known is not None
            prefix_key, prefix_value = self.known.keys[layer], self.known.values[layer]
        if self.parent is not None:
            q, k, v = (self.rows.spread(x[:, split:]) for x in (query, key, value))
            if self.prompts is None:
                self._keep(k, v)
            k, v = torch.cat([prefix_key[self.parent], k], 2), torch.cat([prefix_value[self.parent], v], 2)
            out.append(self.rows.collect(_grouped_attention(q, k, v, self.allowed, scale)))
        return torch.cat(out) if len(out) > 1 else out[0]

    def _keep(self, key: Tensor, value: Tensor) -> None:
        if self.keep:
            self.kept[0].append(key)
            self.kept[1].append(value)

    def memory(self) -> KeyValues:
        """Keys and values of the prefixes after the forward: of the prompts, or of the known prefixes with their rows."""
        if self.known is None:
            return KeyValues(*self.kept, self.prompt_length)
        assert self.row_length is not None
        return joined(self.known, KeyValues(*self.kept, self.row_length))


class Decoding:
    """One new token a row. Row i stands in ``slot[i]`` = prefix · samples + sample of the shared prefix store.

    ``keep(alive)`` moves the rows that go on to the front; the finished ones stay behind them, so that their keys and
    values can still be handed out by ``memory``.
    """

    def __init__(self, prefix: KeyValues, samples: int, capacity: int) -> None:
        count = len(prefix.length) * samples
        device = prefix.length.device
        self.prefix, self.samples, self.limit = prefix, samples, capacity
        self.order = torch.arange(count, device=device)
        self.alive, self.step, self.whole = count, 0, True
        width = prefix.keys[0].shape[2]
        ragged = torch.arange(width, device=device) >= prefix.length[:, None]
        self.hidden = ragged[:, None, None] if bool(ragged.any()) else None
        self.keys: list[Tensor] = [self._buffer(k, min(capacity, 16)) for k in prefix.keys]
        self.values: list[Tensor] = [torch.zeros_like(k) for k in self.keys]

    def _buffer(self, like: Tensor, width: int) -> Tensor:
        return like.new_zeros(len(self.order), like.shape[1], width, like.shape[3])

    @property
    def positions(self) -> Tensor:
        return self.prefix.length[self.order[: self.alive] // self.samples] + self.step

    def advance(self) -> None:
        """Call after each forward: the next token is one position later; buffers grow by doubling."""
        self.step += 1
        if self.step == self.keys[0].shape[2] and self.step < self.limit:
            extra = min(self.limit, 2 * self.step) - self.step
            for blocks in (self.keys, self.values):
                for layer, block in enumerate(blocks):
                    blocks[layer] = torch.cat([block, self._buffer(block, extra)], 2)

    def retain(self, going: Tensor) -> None:
        """Go on with the rows where ``going`` [alive] is True, by exchanging as few rows as possible."""
        left = int(going.sum())
        holes = (~going[:left]).nonzero().squeeze(-1)
        movers = going[left:].nonzero().squeeze(-1) + left
        if len(holes):
            there, here = torch.cat([holes, movers]), torch.cat([movers, holes])
            self.order[there] = self.order[here]
            for block in (*self.keys, *self.values):
                block[there, :, : self.step] = block[here, :, : self.step]
        self.alive, self.whole = left, self.whole and left == len(self.order)

    def _to_prefix(self, rows: Tensor) -> Tensor:
        """[alive, J, R, X] → [U, J, G·R, X], one block of queries a prefix."""
        if not self.whole:
            grid = rows.new_zeros(len(self.order), *rows.shape[1:])
            rows = grid.index_copy_(0, self.order[: self.alive], rows)
        _, heads, shared, size = rows.shape
        return rows.view(-1, self.samples, heads, shared, size).transpose(1, 2).flatten(2, 3)

    def _to_rows(self, grid: Tensor, shared: int) -> Tensor:
        """[U, J, G·R, X] → [alive, J, R, X]."""
        rows = grid.unflatten(2, (self.samples, shared)).transpose(1, 2).flatten(0, 1)
        return rows if self.whole else rows.index_select(0, self.order[: self.alive])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, now = self.alive, self.step
        heads, shared = key.shape[0], query.shape[0] // key.shape[0]
        keys, values = self.keys[layer][:rows, :, : now + 1], self.values[layer][:rows, :, : now + 1]
        keys[:, :, now], values[:, :, now] = key.transpose(0, 1), value.transpose(0, 1)
        q = query.view(heads, shared, rows, -1).permute(2, 0, 1, 3) * scale
        prefix_scores = self._to_prefix(q) @ self.prefix.keys[layer].transpose(2, 3)
        if self.hidden is not None:
            prefix_scores = prefix_scores.masked_fill(self.hidden, -torch.inf)
        past = prefix_scores.shape[-1]
        scores = torch.cat([self._to_rows(prefix_scores, shared), q @ keys.transpose(2, 3)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
        mixed = self._to_prefix(weights[..., :past]) @ self.prefix.values[layer]
        out = self._to_rows(mixed, shared) + weights[..., past:] @ values
        return out.flatten(1, 2)

    def memory(self, rows: Tensor, length: Tensor) -> KeyValues:
        """Keys and values of prefix + own tokens of the samples ``rows`` [n], cut to ``length`` [n] own tokens."""
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(self.order), device=self.order.device)
        longest = int(length.max()) if len(length) else 0
        own = KeyValues(
            [k[place[rows], :, :longest] for k in self.keys], [v[place[rows], :, :longest] for v in self.values], length
        )
        return joined(self.prefix.rows(rows // self.samples), own)
