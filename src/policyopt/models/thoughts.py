"""Continuous thoughts: the first steps of a response are points of the vocabulary's simplex (arXiv 2505.23648).

Such a step is ONE decision. What a thought is, how it is drawn and how likely it is, says a ``Thought``; the model is fed
the mixture of embeddings that it stands for. Collectors, credit, objectives and learners see an action with one axis more,
``[N, T, K]`` token ids or ``[N, T, V]`` shares, and are none the wiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from policyopt.models.engines import SharedPrefixEngine
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.types import Outputs, Part, Rollouts


def multi_token_logp(logp: Tensor, tokens: Tensor) -> Tensor:
    """log of the product over k of p[v_k]: logp [n, V], tokens [n, K] → [n]."""
    return logp.gather(-1, tokens).sum(-1)


def dirichlet_logp(point: Tensor, concentration: Tensor) -> Tensor:
    """Log-density of Dirichlet(concentration) at ``point``, both [n, V] → [n]; entries of zero are no part of the point.

    log Γ(Σ c) - Σ log Γ(c) + Σ (c - 1) log x over the entries with x > 0.
    """
    inside = point > 0
    concentration = concentration.where(inside, 1.0)  # log Γ(1) = 0, and 1 - 1 takes the logarithm of x away
    total = (concentration * inside).sum(-1)
    kernel = (concentration - 1) * point.where(inside, 1.0).log()
    return total.lgamma() - concentration.lgamma().sum(-1) + kernel.sum(-1)


@dataclass(frozen=True, kw_only=True)
class Thought(Part):
    """What a continuous step is. ``logits`` [n, V] are the model's, ``actions`` [n, …] what was drawn."""

    def draw(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        """→ actions [n, …]."""
        raise NotImplementedError

    def log_density(self, logits: Tensor, actions: Tensor) -> Tensor:
        """Of the distribution that ``draw`` samples → [n]."""
        raise NotImplementedError

    def score(self, logits: Tensor, actions: Tensor) -> Tensor:
        """What importance ratios are made of → [n]: the log-density, unless a rule says otherwise."""
        return self.log_density(logits, actions)

    def token(self, ids: Tensor, vocabulary: int) -> Tensor:
        """Ordinary tokens [n] in the form of this rule's actions: the corners of the simplex."""
        return one_hot(ids, vocabulary).float()


@dataclass(frozen=True, kw_only=True)
class Expected(Thought):
    """The model's own distribution, nothing is drawn: the deterministic inference of the paper."""

    def draw(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        return logits.softmax(-1)

    def log_density(self, logits: Tensor, actions: Tensor) -> Tensor:
        return logits.new_zeros(len(logits))


@dataclass(frozen=True, kw_only=True)
class MultiToken(Thought):
    """K = ``tokens`` tokens, drawn independently from softmax(logits / K); the thought is the mean of their embeddings.

    Dividing by K keeps K tokens from multiplying the step of a policy gradient; the paper's code does it by default.
    """

    tokens: int = 3

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"a thought needs one token at least, got tokens={self.tokens}")

    def sampled(self, logits: Tensor) -> Tensor:
        """Log-probabilities [n, V] of each of the K tokens."""
        return (logits / self.tokens).log_softmax(-1)

    def draw(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        return self.sampled(logits).exp().multinomial(self.tokens, replacement=True, generator=rng)

    def log_density(self, logits: Tensor, actions: Tensor) -> Tensor:
        return multi_token_logp(self.sampled(logits), actions)

    def token(self, ids: Tensor, vocabulary: int) -> Tensor:
        return ids[:, None].expand(-1, self.tokens)


@dataclass(frozen=True, kw_only=True)
class GeometricMultiToken(MultiToken):
    """K tokens from the model's own distribution; the ratio is the K-th root of the product (the paper's text)."""

    def sampled(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)

    def score(self, logits: Tensor, actions: Tensor) -> Tensor:
        return self.log_density(logits, actions) / self.tokens


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Thought):
    """A point drawn from Dirichlet(``scale`` · α), α the model's distribution.

    Densities explode where an entry is tiny. So only entries with α ≥ ``floor`` take part, the others are zero; α and
    the point are held at ``floor`` at least and normalized over them. Which entries take part is read off the point, so
    that numerator and denominator of a ratio have the same.
    """

    scale: float = 1.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 < self.floor < 1):
            raise ValueError(f"needs scale > 0 and 0 < floor < 1, got scale={self.scale}, floor={self.floor}")

    def concentration(self, logits: Tensor, inside: Tensor) -> Tensor:
        """scale · α over the entries ``inside`` [n, V], zero elsewhere."""
        share = logits.softmax(-1).clamp(min=self.floor) * inside
        return self.scale * share / share.sum(-1, keepdim=True)

    def draw(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        inside = logits.softmax(-1) >= self.floor
        inside |= one_hot(logits.argmax(-1), logits.shape[-1]).bool()  # a flat distribution over many has none
        shape = self.concentration(logits, inside).double().where(inside, 1.0)
        gamma = torch._standard_gamma(shape, generator=rng) * inside
        point = gamma / gamma.sum(-1, keepdim=True)
        point = point.clamp(min=self.floor) * inside
        return (point / point.sum(-1, keepdim=True)).float()

    def log_density(self, logits: Tensor, actions: Tensor) -> Tensor:
        return dirichlet_logp(actions, self.concentration(logits, actions > 0))


class ContinuousThoughts(LanguagePolicy):
    """``policy``'s model, which takes ``thoughts`` continuous steps before the tokens of its response.

    Actions of thoughts and tokens have one form: token ids [.., K] (a token stands K times) or points [.., V] (a token is
    a corner). Points may be fed whatever the rule is, so that soft demonstrations can be. The text of a response is that
    of its tokens; a temperature of sampling is that of its tokens, thoughts are drawn at the policy's.

    Raises ValueError where the embedding layer does more than look up rows: mixtures would not be of what tokens give.
    """

    def __init__(self, policy: LanguagePolicy, *, thoughts: int, rule: Thought) -> None:
        if thoughts < 1:
            raise ValueError(f"needs at least one thought, got thoughts={thoughts}; without any take the policy itself")
        shared = isinstance(policy.engine, SharedPrefixEngine)
        super().__init__(policy.model, policy.tokenizer, temperature=policy.temperature, shared_prefixes=shared)
        self.thoughts, self.rule = thoughts, rule
        self.embedding = self.core.get_input_embeddings()
        if type(self.embedding) is not torch.nn.Embedding:
            raise ValueError(f"thoughts need a plain embedding layer, got {type(self.embedding).__name__}")

    def inputs(self, tokens: Tensor) -> Tensor:
        """Embeddings [.., d] of a prompt [P], of K tokens [.., K] (their mean) or of points [.., V] (their mixture)."""
        if tokens.is_floating_point():
            return tokens.to(self.dtype) @ self.embedding.weight
        embedded: Tensor = self.embedding(tokens)
        return embedded if tokens.dim() == 1 else embedded.mean(-2)

    def tokens(self, actions: Tensor) -> Tensor:
        """Token ids [.., T] of actions [.., T, …] that are tokens."""
        return actions.argmax(-1) if actions.is_floating_point() else actions[..., 0]

    def choose(self, logits: Tensor, step: int, sampling: Sampling, rng: torch.Generator) -> dict[str, Tensor]:
        if step >= self.thoughts:
            chosen = sampling.choose(logits, rng)
            return {**chosen, "actions": self.rule.token(chosen["actions"], logits.shape[-1])}
        logits = logits.float() / self.temperature
        actions = self.rule.draw(logits, rng)
        return {
            "actions": actions,
            "behaviour_logp": self.rule.log_density(logits, actions),
            "old_logp": self.rule.score(logits, actions),
            "entropy": _entropy(logits.log_softmax(-1)),
        }

    def ended(self, actions: Tensor, rows: Tensor, step: int, ends: Tensor, stop: tuple[str, ...]) -> Tensor:
        if step < self.thoughts:
            return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        return super().ended(self.tokens(actions[:, self.thoughts :]), rows, step - self.thoughts, ends, stop)

    def decode(self, actions: Tensor, length: Tensor) -> list[str]:
        """actions [N, T, …], length [N] → the texts behind the thoughts."""
        return super().decode(self.tokens(actions[:, self.thoughts :]), (length - self.thoughts).clamp(min=0))

    def evaluate(self, batch: Rollouts, want: Sequence[str] = ("logp",)) -> Outputs:
        """What is wanted of logp, entropy [N, T] and distribution (log-probabilities [N, T, V]), with gradient.

        The entropy is that of the model's distribution, from which thoughts are made. Needs logits of all masked steps.
        """
        mask = batch.mask
        logits = self.logits(self.states(batch, mask)).float() / self.temperature
        logp = logits.log_softmax(-1)
        thought = mask.nonzero()[:, 1] < self.thoughts
        return Outputs(
            logp=_spread(self._scores(logits, logp, batch.actions[mask], thought), mask) if "logp" in want else None,
            entropy=_spread(_entropy(logp), mask) if "entropy" in want else None,
            distribution=_spread(logp, mask) if "distribution" in want else None,
        )

    def _scores(self, logits: Tensor, logp: Tensor, actions: Tensor, thought: Tensor) -> Tensor:
        own = logits.new_empty(len(logits))
        own[thought] = self.rule.score(logits[thought], actions[thought])
        own[~thought] = logp[~thought].gather(-1, self.tokens(actions[~thought])[:, None]).squeeze(-1)
        return own

    def frozen_copy(self) -> ContinuousThoughts:
        return ContinuousThoughts(super().frozen_copy(), thoughts=self.thoughts, rule=self.rule)


def _entropy(logp: Tensor) -> Tensor:
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """values [number of True in mask, …] → [N, T, …], zero where the mask is False."""
    return values.new_zeros(*mask.shape, *values.shape[1:]).index_put(mask.nonzero(as_tuple=True), values)
