"""Trees of responses: segments that are sampled once and shared by all responses that go on from them.

A forest has a tree a prompt. Its nodes are the prompts (depth 0) and the segments that were sampled behind them; a leaf stands
for a whole response. It grows by one ``policy.extend`` a level, over all trees at once, behind the keys and values that the
level before left. A ``Branching`` says where it goes on, with how many copies and tokens: ``Fixed`` (SPO-tree,
arXiv 2505.23564), ``Budgeted`` (TreePO, arXiv 2508.17445). A stop text is found where it lies within one segment.

Axes: U prompts, K nodes, M longest segment, D levels, N leaves, T longest response.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from policyopt.models.attention import KeyValues
from policyopt.models.engines import inside, padded
from policyopt.models.language import Continuations, LanguagePolicy, Prefixes, Sampling
from policyopt.rollouts.language import scored_rollouts
from policyopt.types import Part, Rollouts

SAMPLED = ("actions", "behaviour_logp", "old_logp", "entropy")


class Growth(NamedTuple):
    """What to sample next: ``copies[i]`` segments of at most ``tokens`` tokens behind node ``nodes[i]``."""

    nodes: list[int]
    copies: list[int]
    tokens: int


class Forest:
    """The nodes [K], parents before their children; the first U are the prompts.

    tree, parent (-1 above a prompt), depth [K]; a segment stands behind ``start`` tokens of its response and has ``length``
    of them. ``ended``: an end token or stop text. ``open``: it may go on. ``logp``: of the segment; ``path_logp``: of the
    whole response so far, both under what was sampled.
    """

    def __init__(self, prompts: Sequence[Tensor], limit: int, context: int) -> None:
        self.prompts, self.limit = list(prompts), limit
        count = len(self.prompts)
        zero = torch.zeros(count, dtype=torch.int64)
        self.room = torch.tensor([min(limit, context - len(prompt)) for prompt in self.prompts])
        self.tree, self.parent = torch.arange(count), zero - 1
        self.depth, self.start, self.length, self.step, self.row = (zero.clone() for _ in range(5))
        self.ended, self.open = zero.bool(), ~zero.bool()
        self.logp, self.path_logp = torch.zeros(count), torch.zeros(count)
        self.columns: dict[str, Tensor] = {}
        self.steps: list[Continuations] = []

    def __len__(self) -> int:
        return len(self.tree)

    @property
    def sampled_tokens(self) -> int:
        """Every segment's tokens, counted once."""
        return sum(step.sampled_tokens for step in self.steps)

    @property
    def forward_tokens(self) -> int:
        return sum(step.forward_tokens for step in self.steps)

    @property
    def leaves(self) -> Tensor:
        """[N] the nodes without children, tree by tree."""
        childless = torch.ones(len(self), dtype=torch.bool)
        childless[self.parent[self.parent >= 0]] = False
        found = childless.nonzero().squeeze(1)
        return found[self.tree[found].argsort(stable=True)]

    def add(self, sampled: Continuations, parents: Tensor) -> Tensor:
        """The continuations [B] as new nodes behind ``parents`` [B]; → their numbers [B]."""
        fresh = torch.arange(len(self), len(self) + len(parents))
        own = {name: getattr(sampled, name) for name in SAMPLED}
        if not self.steps:  # a prompt is found again as the beginning of any sample behind it
            self.row = torch.arange(len(self)) * sampled.samples
            self.columns = {name: values.new_zeros(len(self), 0) for name, values in own.items()}
        width = max(own["actions"].shape[1], self.columns["actions"].shape[1])
        for name, values in own.items():
            both = (self.columns[name], values)
            self.columns[name] = torch.cat([pad(block, (0, width - block.shape[1])) for block in both])
        length, ended = sampled.length.cpu(), sampled.finished.cpu()
        start = self.start[parents] + self.length[parents]
        logp = sampled.behaviour_logp.sum(1).cpu()
        self._append("tree", self.tree[parents])
        self._append("parent", parents)
        self._append("depth", self.depth[parents] + 1)
        self._append("start", start)
        self._append("length", length)
        self._append("step", torch.full_like(parents, len(self.steps)))
        self._append("row", torch.arange(len(parents)))
        self._append("ended", ended)
        self._append("open", ~ended & (start + length < self.room[self.tree[parents]]))
        self._append("logp", logp)
        self._append("path_logp", self.path_logp[parents] + logp)
        self.steps.append(sampled)
        return fresh

    def _append(self, name: str, values: Tensor) -> None:
        setattr(self, name, torch.cat([getattr(self, name), values]))

    def prefixes(self, nodes: Tensor) -> Prefixes:
        """Everything up to the end of the nodes, to be continued; the nodes [B] stand in the order of their steps."""
        if not self.steps:
            return Prefixes([self.prompts[node] for node in nodes.tolist()])
        pieces = []
        for step in self.step[nodes].unique().tolist():
            own = nodes[self.step[nodes] == step]
            pieces.append(self.steps[step].cut(self.row[own].tolist(), self.length[own].tolist()))
        return _together(pieces)

    def line(self, nodes: Tensor) -> Tensor:
        """nodes [B] → their ancestors and themselves [B, D] by depth 1 … D; -1 beyond a node's depth."""
        levels = int(self.depth.max())
        found = torch.full((len(nodes), levels), -1)
        rows, current = torch.arange(len(nodes)), nodes
        for _ in range(levels):
            below = self.depth[current] > 0
            rows, current = rows[below], current[below]
            found[rows, self.depth[current] - 1] = current
            current = self.parent[current]
        return found

    def values(self, leaves: Tensor, reward: Tensor) -> Tensor:
        """[K]: a leaf's reward [N], above the leaves the plain mean of the children's values (SPO, §4.2)."""
        value = torch.zeros(len(self), dtype=torch.float64)
        value[leaves] = reward.double().cpu()
        children = self.parent[self.parent >= 0].bincount(minlength=len(self))
        for depth in range(int(self.depth.max()), 0, -1):
            level = (self.depth == depth).nonzero().squeeze(1)
            value.index_add_(0, self.parent[level], value[level] / children[self.parent[level]])
        return value.float()

    def responses(self, leaves: Tensor) -> tuple[Continuations, Tensor]:
        """The responses that end with ``leaves`` [N], and the node that each of their tokens belongs to [N, T] (-1: none)."""
        line, device = self.line(leaves), self.columns["actions"].device
        length = (self.start + self.length)[leaves].to(device)
        shape = (len(leaves), int(length.max()))
        whole = {name: column.new_zeros(shape) for name, column in self.columns.items()}
        segment = torch.full(shape, -1, device=device)
        for level in range(line.shape[1]):
            rows = (line[:, level] >= 0).nonzero().squeeze(1)
            nodes = line[rows, level]
            own = inside(self.length[nodes], self.columns["actions"].shape[1]).to(device)
            where = (self.start[nodes, None] + torch.arange(own.shape[1])).to(device)[own]
            owner = rows.to(device)[:, None].expand_as(own)[own]
            for name, column in self.columns.items():
                whole[name][owner, where] = column[nodes.to(device)][own]
            segment[owner, where] = nodes.to(device)[:, None].expand_as(own)[own]
        sampled = Continuations(
            prefixes=[self.prompts[tree] for tree in self.tree[leaves].tolist()],
            samples=1,
            length=length,
            finished=self.ended[leaves].to(device),
            forward_tokens=self.forward_tokens,
            version=self.steps[-1].version,
            **whole,
        )
        return sampled, segment

    def rollouts(self, policy: LanguagePolicy, problem: Any, ids: Sequence[int]) -> tuple[Rollouts, Continuations]:
        """All responses, scored; ``segment`` [N, T] tells each token's node, ``group`` the tree. ``ids`` [U]: the prompts'."""
        leaves = self.leaves
        sampled, segment = self.responses(leaves)
        tree = self.tree[leaves]
        batch = scored_rollouts(policy, problem, [ids[i] for i in tree.tolist()], sampled)
        return batch.replace(group=tree.to(segment.device), segment=segment), sampled

    def edges(self, nodes: Tensor, ids: Sequence[int]) -> Rollouts:
        """Nodes [B] below the prompts as rows that train a segment alone: their prompt is all that stands before it, so that
        siblings, a ``group``, share it."""
        device, parents = self.columns["actions"].device, self.parent[nodes]
        before = zip(
            self.step[parents].tolist(), self.row[parents].tolist(), self.length[parents].tolist(), strict=True
        )
        prompt, prompt_length = padded([self.steps[step].tokens(row, length) for step, row, length in before])
        longest = int(self.length[nodes].max())
        length = self.length[nodes].to(device)
        own: dict[str, Any] = {name: column[nodes.to(device), :longest] for name, column in self.columns.items()}
        return Rollouts(
            **own,
            mask=inside(length, longest),
            group=parents.to(device),
            prompt_id=torch.tensor([ids[tree] for tree in self.tree[nodes].tolist()], device=device),
            prompt=prompt,
            prompt_length=prompt_length,
            length=length,
            batch_size=[len(nodes)],
        )


def _together(pieces: Sequence[Prefixes]) -> Prefixes:
    """Prefixes that several calls left, as one; computed anew where a call kept nothing."""
    tokens = [row for piece in pieces for row in piece.tokens]
    known = [piece.known for piece in pieces if piece.known is not None]
    if len(known) < len(pieces) or len(pieces) == 1:
        return Prefixes(tokens, known[0] if known and len(pieces) == 1 else None, pieces[0].version)
    width = max(one.keys[0].shape[2] for one in known)

    def stacked(layers: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(layer, (0, 0, 0, width - layer.shape[2])) for layer in layers])

    keys = [stacked(layers) for layers in zip(*(one.keys for one in known), strict=True)]
    values = [stacked(layers) for layers in zip(*(one.values for one in known), strict=True)]
    return Prefixes(tokens, KeyValues(keys, values, torch.cat([one.length for one in known])), pieces[0].version)


@dataclass(frozen=True, kw_only=True)
class Branching(Part):
    """Where a forest goes on. ``revisits``: also from nodes of earlier levels, so that their keys and values are kept."""

    revisits: ClassVar[bool] = False

    def limit(self, longest: int) -> int:
        """The longest response, where the problem allows ``longest`` tokens."""
        return longest

    def plant(self, forest: Forest, rng: torch.Generator) -> Growth:
        """How every prompt begins; the same number of copies for all."""
        raise NotImplementedError

    def __call__(self, forest: Forest, fresh: Tensor, rng: torch.Generator) -> Growth:
        """What comes behind the nodes that were just sampled; no nodes: the forest is grown."""
        raise NotImplementedError

    def hopeless(self, texts: Sequence[str]) -> list[bool]:
        """Which of the segments just sampled shall not be continued, by their texts."""
        return [False] * len(texts)


def grow(
    policy: LanguagePolicy,
    problem: Any,
    ids: Sequence[int],
    branching: Branching,
    sampling: Sampling,
    rng: torch.Generator,
    choices: torch.Generator,
) -> Forest:
    """The trees of the prompts ``ids``; ``rng`` samples tokens, ``choices`` (on the CPU) where the trees branch."""
    limit = branching.limit(sampling.max_new_tokens or problem.max_new_tokens)
    forest = Forest(policy.encode(problem.prompts(ids)), limit, policy.context)
    growth = branching.plant(forest, choices)
    while growth.nodes:
        nodes, copies = torch.tensor(growth.nodes), torch.tensor(growth.copies)
        samples = int(copies[0])
        if not bool((copies == samples).all()):
            nodes, samples = nodes.repeat_interleave(copies), 1
        nodes = nodes[forest.step[nodes].argsort(stable=True)]
        prefixes = forest.prefixes(nodes)
        if forest.steps and not branching.revisits:
            forest.steps[-1].decoder = None  # its keys and values were handed on
        sampled = policy.extend(
            prefixes,
            samples,
            sampling,
            rng,
            max_new_tokens=growth.tokens,
            stop=problem.stop,
            keep=True,
        )
        fresh = forest.add(sampled, nodes.repeat_interleave(samples))
        forest.open[fresh] &= ~torch.tensor(branching.hopeless(policy.decode(sampled.actions, sampled.length)))
        growth = branching(forest, fresh, choices)
    for step in forest.steps:
        step.decoder = None
    return forest


@dataclass(frozen=True, kw_only=True)
class Fixed(Branching):
    """``factors[d]`` children of every unfinished node at depth d, of ``segment`` tokens at most; those of the last depth run
    to the end of the response."""

    factors: tuple[int, ...] = (6, 6, 6)
    segment: int = 30

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) < 1 or self.segment < 1:
            raise ValueError(f"a tree needs positive factors and a segment of a token or more, got {self}")

    def _level(self, forest: Forest, nodes: list[int], depth: int) -> Growth:
        left = forest.limit - depth * self.segment
        if depth == len(self.factors) or not nodes or left < 1:
            return Growth([], [], 0)
        last = depth + 1 == len(self.factors)
        return Growth(nodes, [self.factors[depth]] * len(nodes), left if last else min(self.segment, left))

    def plant(self, forest: Forest, rng: torch.Generator) -> Growth:
        return self._level(forest, list(range(len(forest.prompts))), 0)

    def __call__(self, forest: Forest, fresh: Tensor, rng: torch.Generator) -> Growth:
        return self._level(forest, fresh[forest.open[fresh]].tolist(), int(forest.depth[fresh[0]]))


@dataclass(frozen=True, kw_only=True)
class Divergence(Part):
    """How the copies of a tree are divided among its active paths. Default: evenly, the remainder goes to the last."""

    def __call__(self, forest: Forest, active: list[int], total: int) -> list[int]:
        """``total`` ≥ number of paths → copies of each path, one at least."""
        copies = [total // len(active)] * len(active)
        copies[-1] += total - sum(copies)
        return copies


@dataclass(frozen=True, kw_only=True)
class ByProbability(Divergence):
    """One copy each, and the rest in proportion to softmax(s / temperature), by the largest remainders (their rounding is our
    choice); s = -log p of the path: unlikely paths get more.

    likely: the other sign. mean: the mean log-probability a token in the place of the sum. last: of the last segment alone.
    """

    likely: bool = False
    mean: bool = False
    last: bool = False
    temperature: float = 1.0

    def __call__(self, forest: Forest, active: list[int], total: int) -> list[int]:
        logp = (forest.logp if self.last else forest.path_logp)[active].double()
        if self.mean:
            tokens = forest.length[active] + (0 if self.last else forest.start[active])
            logp = logp / tokens
        wanted = ((1 if self.likely else -1) * logp / self.temperature).softmax(0) * (total - len(active))
        extra = wanted.floor().long()
        extra[(wanted - extra).argsort(descending=True, stable=True)[: total - len(active) - int(extra.sum())]] += 1
        return (1 + extra).tolist()


@dataclass(frozen=True, kw_only=True)
class Fallback(Part):
    """How a tree without active paths is filled up to its width: copies from random segment borders of finished responses.

    ended: only of those that ended by themselves (shuffled), of all others too where False. longest: the longest first.
    restart: from the prompt instead. They are gone through again and again until the tree is full; where there is none,
    the rest starts from the prompt.
    """

    ended: bool = True
    longest: bool = False
    restart: bool = False

    def __call__(
        self, forest: Forest, finished: list[int], missing: int, copies: int, rng: torch.Generator
    ) -> Iterator[tuple[int, int]]:
        """→ (node to go on from, copies)."""
        from_ = [n for n in finished if bool(forest.ended[n]) or not self.ended]
        if self.restart or not from_:
            yield int(forest.tree[finished[0]]), missing
            return
        order = [from_[i] for i in torch.randperm(len(from_), generator=rng).tolist()]
        if self.longest:
            order.sort(key=lambda n: -int(forest.start[n] + forest.length[n]))
        turn = 0
        while missing > 0:
            node = order[turn % len(order)]
            for _ in range(1 + int(torch.randint(int(forest.depth[node]), (), generator=rng))):
                node = int(forest.parent[node])
            yield node, min(copies, missing)
            missing, turn = missing - copies, turn + 1


def repeats(text: str, width: int, times: int) -> bool:
    """Whether some ``width`` characters occur ``times`` times or more in the text (overlaps count)."""
    if len(text) < width + times - 1:
        return False
    return max(Counter(text[i : i + width] for i in range(len(text) - width + 1)).values()) >= times


@dataclass(frozen=True, kw_only=True)
class Budgeted(Branching):
    """``width`` responses a tree, of ``depth`` segments at most (None: as many as the problem's limit needs).

    A tree begins with ``first`` (low, high) copies of its prompt, drawn once a step. A level then gets as many paths as the
    tree still lacks responses, at most ``factor`` for each path that was active or has just finished, and no path is
    dropped. Early finishers so hand their budget on; ``fallback`` fills up a tree that ran dry (None: it stays narrow).
    A path in whose segment some 32 characters occur 8 times is stopped.
    """

    revisits: ClassVar[bool] = True
    width: int = 16
    segment: int = 4
    depth: int | None = None
    factor: int = 2
    first: tuple[int, int] = (2, 8)
    divergence: Divergence = Divergence()
    fallback: Fallback | None = Fallback()
    repetition: tuple[int, int] = (32, 8)

    def __post_init__(self) -> None:
        if min(self.width, self.segment, self.factor, *self.first) < 1 or self.first[0] > self.first[1]:
            raise ValueError(f"width, segment, factor and first (low, high) must be positive and in order, got {self}")

    def limit(self, longest: int) -> int:
        """Whole segments."""
        return self.segment * (self.depth or -(-longest // self.segment))

    def plant(self, forest: Forest, rng: torch.Generator) -> Growth:
        low, high = self.first
        copies, trees = int(torch.randint(low, high + 1, (), generator=rng)), len(forest.prompts)
        return Growth(list(range(trees)), [copies] * trees, self.segment)

    def __call__(self, forest: Forest, fresh: Tensor, rng: torch.Generator) -> Growth:
        new, finished = (self._by_tree(forest, nodes) for nodes in (fresh, forest.leaves))
        parts = [p for tree, own in new.items() for p in self._tree(forest, own, finished.get(tree, []), rng)]
        return Growth([node for node, _ in parts], [copies for _, copies in parts], self.segment)

    def _by_tree(self, forest: Forest, nodes: Tensor) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for node, tree in zip(nodes.tolist(), forest.tree[nodes].tolist(), strict=True):
            found.setdefault(tree, []).append(node)
        return found

    def _tree(self, forest: Forest, new: list[int], leaves: list[int], rng: torch.Generator) -> list[tuple[int, int]]:
        """Where one tree goes on: (node, copies)."""
        active = [node for node in new if bool(forest.open[node])]
        finished = [node for node in leaves if not bool(forest.open[node])]
        missing = max(self.width - len(finished), 0)
        if active:
            total = max(min(missing, self.factor * len(new)), len(active))
            return list(zip(active, self.divergence(forest, active, total), strict=True))
        if missing and self.fallback is not None:
            return list(self.fallback(forest, finished, missing, self.factor, rng))
        return []

    def hopeless(self, texts: Sequence[str]) -> list[bool]:
        return [repeats(text, *self.repetition) for text in texts]
