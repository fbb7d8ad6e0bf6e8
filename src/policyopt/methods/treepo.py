"""TreePO: one tree of segments a prompt, and advantages against every ancestor (arXiv 2508.17445).

Responses share what they have in common: a tree begins with a few copies of the prompt, branches within a budget of ``width``
responses, and hands on the budget of paths that end early (``rollouts.tree.Budgeted``). Groups are nested then: response i is
compared with all that share an ancestor node with it, from the whole tree (g = 0) down to its nearest siblings:

    A_i = mean over g of  R_i - mean_{k in g} R_k,   groups of one left out,   then whitened over all tokens of the batch

    method          the mean over ancestors; first copies drawn in 2 … 8; clip 0.2 to 0.28, dual clip 10, token mean
    by_size         ancestors weighted by the size of their groups
    progress        each segment by what it added: V(node) - V(parent) of size-weighted leaf advantages
    siblings        each segment against its siblings, in their standard deviations; not whitened
    two_at_first    two copies of the prompt at first
    no_fallback     trees that run dry stay narrow
    unlikely        improbable paths branch more (``logprob_weighted``)
    published       the sizes of the headline run: 16 responses of at most 14 · 512 tokens, dynamic sampling, over-long penalty
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit, group_index, group_mean, over_steps
from policyopt.credit.returns import Whitened
from policyopt.credit.scaling import with_scores
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam, Schedule
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, TokenMean
from policyopt.rollouts.kept import joined
from policyopt.rollouts.language import Groups, prompt_ids, response_metrics
from policyopt.rollouts.tree import Branching, Budgeted, ByProbability, grow
from policyopt.types import Clock, Collected, Collector, Rollouts

FAMILY = "language"
VARIANTS = (
    "by_size",
    "progress",
    "siblings",
    "two_at_first",
    "no_fallback",
    "unlikely",
    "published",
)


# -- sampling


@dataclass(frozen=True, kw_only=True)
class Trees(Collector):
    """A tree of responses to each of ``prompts`` prompts a step; ``segment`` [N, T] tells each token's node.

    ``rounds`` above 1 is dynamic sampling: trees whose rewards are all alike are dropped and further prompts asked, in at
    most so many rounds, until ``prompts`` trees are left (where none is, the last round's are kept). Every sampled token
    is paid for; what is logged of rewards and responses is the first round's.
    """

    gives: ClassVar[tuple[str, ...]] = (*Groups.gives, "segment")
    prompts: int = 32
    branching: Branching = Budgeted()
    sampling: Sampling = Sampling()
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.rounds < 1:
            raise ValueError(f"prompts and rounds must be positive, got {self.prompts} and {self.rounds}")

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        kept, metrics = list[Rollouts](), dict[str, Tensor | float]()
        for number in range(self.rounds):
            batch, logged = self._round(policy, problem, replace(clock, step=clock.step * self.rounds + number))
            costs = {key: metrics.get(key, 0.0) + n for key, n in logged.items() if key.startswith("cost/")}
            metrics = {**logged, **metrics, **costs}
            if self.rounds == 1:
                return Collected({"rollouts": batch}, metrics)
            differ = undecided(batch.scores["reward"], batch.group)
            kept += [batch[differ]] if bool(differ.any()) else []
            if sum(len(one.group.unique()) for one in kept) >= self.prompts:
                break
        whole = joined(kept or [batch])  # its groups are numbered from 0
        return Collected({"rollouts": whole[whole.group < self.prompts]}, metrics)

    def _round(self, policy: LanguagePolicy, problem: Any, clock: Clock) -> tuple[Rollouts, dict[str, Tensor | float]]:
        ids, rng = prompt_ids(problem, self.prompts, clock), clock.generator("sample", policy.device)
        forest = grow(policy, problem, ids, self.branching, self.sampling, rng, clock.generator("tree"))
        batch, sampled = forest.rollouts(policy, problem, ids)
        metrics = response_metrics(batch, sampled)
        return batch, {**metrics, "cost/tokens": forest.sampled_tokens, "tree/responses": len(batch) / len(ids)}


def undecided(reward: Tensor, group: Tensor) -> Tensor:
    """[N] True where the rewards of a row's group differ."""
    return group_mean((reward - group_mean(reward, group)).abs(), group) > 0


# -- advantages: reward [N], group [N] (the tree), nodes [N, D] by depth, -1 beyond a response's leaf


def ancestor_advantage(
    reward: Tensor, group: Tensor, nodes: Tensor, *, by_size: bool = False, skip_alike: bool = False
) -> Tensor:
    """Mean over a response's ancestors of R - the mean reward of all below them → [N].

    The whole tree always counts (alone in it, the mean is 0); of the nodes those that are shared. by_size: weighted by the
    number of responses. skip_alike: nodes whose responses all have one reward don't count.
    """
    total, weight = torch.zeros_like(reward, dtype=torch.float64), torch.zeros_like(reward, dtype=torch.float64)
    for level, names in enumerate((group, *nodes.unbind(1))):
        index, size = group_index(names)
        members, difference = size[index], reward - group_mean(reward, names)
        counted = (names >= 0) & (members > 1)
        if level == 0:
            difference, counted = torch.where(members > 1, difference, reward), torch.ones_like(counted)
        elif skip_alike:
            counted &= undecided(reward, names)
        share = counted * members if by_size else counted.double()
        total, weight = total + share * difference, weight + share
    return (total / weight).to(reward.dtype)


def _child_mean(value: Tensor, child: Tensor, parent: Tensor) -> Tensor:
    """Mean over the distinct children of each row's parent; value [N] is that of the row's own child, in float64."""
    index, size = group_index(child)
    share = 1.0 / size[index]
    return group_mean(value * share, parent) / group_mean(share, parent)


def node_values(leaf: Tensor, group: Tensor, nodes: Tensor) -> Tensor:
    """[N, D + 1]: the root's value, then those of the nodes on each row's path: ``leaf`` [N] at the end, above it the mean of
    the children's; zero beyond."""
    names, depth = torch.cat([group[:, None], nodes], 1), (nodes >= 0).sum(1)
    value = torch.zeros(names.shape, dtype=torch.float64, device=leaf.device)
    for level in range(names.shape[1] - 1, -1, -1):
        value[:, level] = torch.where(depth == level, leaf.double(), 0.0)
        if level + 1 < names.shape[1]:
            above = _child_mean(value[:, level + 1], names[:, level + 1], names[:, level])
            value[:, level] = torch.where(depth > level, above, value[:, level])
    return value


def segment_progress(reward: Tensor, group: Tensor, nodes: Tensor, eta: float = 1.0) -> Tensor:
    """What each segment of a path added, V(node) - η^(segments from here to the end) V(parent) → [N, D]; the root's value is 0.

    A leaf's value is the size-weighted mean of R - mean over ALL groups of its path, those of one and the leaf included.
    """
    total, weight = torch.zeros_like(reward, dtype=torch.float64), torch.zeros_like(reward, dtype=torch.float64)
    for names in (group, *nodes.unbind(1)):
        index, size = group_index(names)
        share = (names >= 0) * size[index]
        total, weight = total + share * (reward - group_mean(reward, names)), weight + share
    value = node_values(total / weight, group, nodes)
    value[:, 0] = 0.0
    left = (nodes >= 0).double().flip(1).cumsum(1).flip(1)
    return ((value[:, 1:] - eta**left * value[:, :-1]) * (nodes >= 0)).to(reward.dtype)


def sibling_normalized(reward: Tensor, group: Tensor, nodes: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(V(node) - V(parent)) / (population deviation of V among the siblings + ε) → [N, D]."""
    value, names = node_values(reward, group, nodes), torch.cat([group[:, None], nodes], 1)
    found = torch.zeros(nodes.shape, dtype=torch.float64, device=reward.device)
    for level in range(nodes.shape[1]):
        difference = value[:, level + 1] - value[:, level]
        variance = _child_mean(difference.square(), names[:, level + 1], names[:, level])
        found[:, level] = difference / (variance.sqrt() + epsilon)
    return (found * (nodes >= 0)).to(reward.dtype)


def path(segment: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """segment [N, T], a node for every True step of ``mask`` → (nodes [N, D] by depth, -1 beyond; depth - 1 of each step)."""
    begins = mask & (segment != torch.cat([segment[:, :1] - 1, segment[:, :-1]], 1))
    level = (begins.cumsum(1) - 1).clamp(min=0)
    nodes = torch.full((len(segment), int(level.max()) + 1), -1, device=segment.device)
    rows = torch.arange(len(segment), device=segment.device)[:, None].expand_as(level)
    nodes[rows[mask], level[mask]] = segment[mask]
    return nodes, level


@dataclass(frozen=True, kw_only=True)
class Ancestors(Credit):
    """``ancestor_advantage`` at every token of a response."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group", "segment")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    by_size: bool = False
    skip_alike: bool = False

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        nodes, _ = path(batch.segment, batch.mask)
        reward = batch.scores["reward"]
        advantage = ancestor_advantage(reward, batch.group, nodes, by_size=self.by_size, skip_alike=self.skip_alike)
        return batch.replace(advantage=over_steps(advantage, batch))


@dataclass(frozen=True, kw_only=True)
class Progress(Credit):
    """``segment_progress``, each segment's on its own tokens."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group", "segment")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    eta: float = 1.0

    def segments(self, reward: Tensor, group: Tensor, nodes: Tensor) -> Tensor:
        return segment_progress(reward, group, nodes, self.eta)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        nodes, level = path(batch.segment, batch.mask)
        advantage = self.segments(batch.scores["reward"], batch.group, nodes).gather(1, level)
        return batch.replace(advantage=advantage * batch.mask)


@dataclass(frozen=True, kw_only=True)
class Siblings(Progress):
    """``sibling_normalized``, each segment's on its own tokens."""

    def segments(self, reward: Tensor, group: Tensor, nodes: Tensor) -> Tensor:
        return sibling_normalized(reward, group, nodes)


@dataclass(frozen=True, kw_only=True)
class SoftOverlong(Credit):
    """DAPO's penalty (arXiv 2503.14476, Eq. 13): the reward falls by up to ``factor`` over the last ``buffer`` tokens before
    ``limit``."""

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("scores",)
    limit: int = 7168
    buffer: int = 512
    factor: float = 1.0

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        over = (batch.length - (self.limit - self.buffer)) / self.buffer
        return with_scores(batch, reward=batch.scores["reward"] - self.factor * over.clamp(0.0, 1.0))


# -- methods


def method() -> OnPolicy:
    return OnPolicy(
        collector=Trees(prompts=32, branching=Budgeted()),
        credit=(Ancestors(), Whitened()),
        objective=PolicyGradient(stabilization=RatioClip(low=0.2, high=0.28, dual=10.0), aggregation=TokenMean()),
    )


def by_size() -> OnPolicy:
    return replace(method(), credit=(Ancestors(by_size=True), Whitened()))


def progress() -> OnPolicy:
    return replace(method(), credit=(Progress(), Whitened()))


def siblings() -> OnPolicy:
    return replace(method(), credit=(Siblings(),))


def _branching(branching: Budgeted) -> OnPolicy:
    return replace(method(), collector=Trees(branching=branching))


def two_at_first() -> OnPolicy:
    return _branching(Budgeted(first=(2, 2)))


def no_fallback() -> OnPolicy:
    return _branching(Budgeted(fallback=None))


def unlikely() -> OnPolicy:
    return _branching(Budgeted(divergence=ByProbability()))


def published() -> OnPolicy:
    collector = Trees(prompts=512, branching=Budgeted(segment=512, depth=14), rounds=10)
    return replace(
        method(),
        collector=collector,
        credit=(SoftOverlong(), Ancestors(), Whitened()),
        optimizer=Adam(learning_rate=1e-6, weight_decay=0.1, schedule=Schedule(warmup=10)),
        minibatches=16,
    )
