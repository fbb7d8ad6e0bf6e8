"""Attention over shared prefixes: one function for `transformers` models, two layouts.

Tokens of a whole batch travel through a model as ONE flat row without padding, so that embeddings, projections and MLPs
never touch a pad. Only attention needs to know which token belongs where, and it asks the layout:

- ``Packed``: levels of rows (a head that all prompts share, prompts, responses), each row behind its parent, which is computed
  once however many rows share it. Serves prefill, resumption from a cached prefix, and the training forward.
- ``Decoding``: one new token a row, against a prefix store shared by the rows of a prompt and a buffer of the row's own past.

The layouts hold keys and values themselves; the model's own cache is not used. Axes: U prefixes, N rows, H query heads,
J key-value heads, R = H / J, P longest prefix, T longest row, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def rows(self, index: Tensor, width: int) -> KeyValues:
        """A copy of the prefixes ``index`` [n] with room for ``width`` positions."""
        keys, values = (_widened((block[index] for block in blocks), width) for blocks in (self.keys, self.values))
        return KeyValues(keys, values, self.length[index])

    def append(self, own: KeyValues, row: Tensor) -> None:
        """Puts the first ``own.length[i]`` positions of row ``row[i]`` of ``own`` behind prefix i, in place if it can."""
        start, self.length = self.length, self.length + own.length
        if (width := int(self.length.max())) > self.keys[0].shape[2]:
            self.keys, self.values = _widened(self.keys, width), _widened(self.values, width)
        at, step = (torch.arange(width, device=row.device) < own.length[:, None]).nonzero(as_tuple=True)
        for block, mine in zip((*self.keys, *self.values), (*own.keys, *own.values), strict=True):
            block[at, :, start[at] + step] = mine[row[at], :, step]


def _widened(blocks: Iterable[Tensor], width: int) -> list[Tensor]:
    return [functional.pad(block, (0, 0, 0, width - block.shape[2])) for block in blocks]


def joined(prefixes: KeyValues, index: Tensor, own: KeyValues, row: Tensor, room: int = 0) -> KeyValues:
    """Copies of the prefixes ``index`` [n] with the rows ``row`` [n] of ``own`` behind them, and ``room`` for further tokens."""
    made = prefixes.rows(index, room + int((prefixes.length[index] + own.length).max()))
    made.append(own, row)
    return made


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


@dataclass(frozen=True)
class Level:
    """Rows of one generation: ``length`` [n] tokens each, and ``parent`` [n], the row of the level before that they see
    (None: the first level, behind nothing)."""

    length: Tensor
    parent: Tensor | None = None


class Packed:
    """Levels of rows in one flat order: a head that all prompts share, prompts, responses; any number of them.

    A row sees its ancestors and its own past, and each ancestor is computed once. ``known`` stands before the first level
    where its keys and values are there already. With ``keep`` those of the last level are handed out by ``memory``.
    """

    def __init__(self, levels: Sequence[Level], known: KeyValues | None = None, keep: bool = False) -> None:
        self.levels, self.known, self.keep = levels, known, keep
        self.grids = [_Grid(level.length) for level in levels]
        self.tokens = [int(level.length.sum()) for level in levels]
        self.kept: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in levels]
        before = [] if known is None else [(known.length, known.keys[0].shape[2])]
        blocks = [*before, *((lvl.length, grid.width) for lvl, grid in zip(levels, self.grids, strict=True))]
        self.ancestors = [self._ancestors(i) for i in range(len(levels))]
        self.allowed = [self._allowed(i, blocks) for i in range(len(levels))]
        starts = [
            sum((blocks[a][0][rows] for a, rows in line), torch.zeros_like(lvl.length))
            for lvl, line in zip(levels, self.ancestors, strict=True)
        ]
        self.positions = torch.cat(
            [
                (torch.arange(g.width, device=s.device) + s[:, None]).flatten()[g.where]
                for g, s in zip(self.grids, starts, strict=True)
            ]
        )

    def _ancestors(self, level: int) -> list[tuple[int, Tensor]]:
        """[(index into known + levels, row of it for each row of this level)], the oldest first."""
        line: list[tuple[int, Tensor]] = []
        shift = 0 if self.known is None else 1
        rows = torch.arange(len(self.levels[level].length), device=self.levels[level].length.device)
        for i in range(level, -1, -1):
            parent = self.levels[i].parent
            if parent is None:
                break
            rows = parent[rows]
            line.insert(0, (i - 1 + shift, rows))
        return line

    def _allowed(self, level: int, blocks: list[tuple[Tensor, int]]) -> Tensor:
        """[n, 1, T, past + T] True where a query may look."""
        grid, device = self.grids[level], self.levels[level].length.device
        pieces = []
        for ancestor, rows in self.ancestors[level]:
            length, width = blocks[ancestor]
            sees = torch.arange(width, device=device) < length[rows, None]
            pieces.append(sees[:, None, None].expand(-1, 1, grid.width, -1))
        own = torch.ones(grid.width, grid.width, dtype=torch.bool, device=device).tril()
        return torch.cat([*pieces, own.expand(grid.rows, 1, -1, -1)], -1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        blocks = [] if self.known is None else [(self.known.keys[layer], self.known.values[layer])]
        pieces = zip(*(x.split(self.tokens, 1) for x in (query, key, value)), strict=True)
        out = []
        for i, (q, k, v) in enumerate(pieces):
            grid = self.grids[i]
            own_key, own_value = grid.spread(k), grid.spread(v)
            blocks.append((own_key, own_value))
            keys = torch.cat([*(blocks[a][0].index_select(0, rows) for a, rows in self.ancestors[i]), own_key], 2)
            values = torch.cat([*(blocks[a][1].index_select(0, rows) for a, rows in self.ancestors[i]), own_value], 2)
            out.append(grid.collect(_grouped_attention(grid.spread(q), keys, values, self.allowed[i], scale)))
            if self.keep:
                self.kept[i][0].append(own_key)
                self.kept[i][1].append(own_value)
        return torch.cat(out)

    def memory(self) -> KeyValues:
        """Keys and values of the last level's rows with all before them."""
        held = self.known
        for level, (keys, values) in zip(self.levels, self.kept, strict=True):
            own = KeyValues(keys, values, level.length)
            every = torch.arange(len(level.length), device=level.length.device)
            held = own if level.parent is None or held is None else joined(held, level.parent, own, every)
        assert held is not None
        return held


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
        own = KeyValues(self.keys, self.values, length)
        return joined(self.prefix, rows // self.samples, own, place[rows], room=1)
