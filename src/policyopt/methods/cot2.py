"""CoT2: chains of thought in the simplex over the vocabulary, which carry many traces at once (arXiv 2505.23648).

Before its answer the model takes steps α_t = softmax(logits_t) that are not tokens; the next input is the mixture of
embeddings that α_t, or a random point around it, stands for. Two stages:

    csft          imitation of soft demonstrations: step t is taught the share of the best traces at each token
    method, mts   GRPO; a thought is K tokens drawn from softmax(logits / K), as in the paper's code
    mts_paper     GRPO; K tokens drawn from α_t, and the K-th root of their likelihood in the ratio, as in its text
    dirichlet     GRPO; a thought is a point drawn from Dirichlet(α_t)

All three clip the ratio at 1 ± 0.1 step by step, a thought being one step, without a KL penalty. Advantages are those of
``grpo``: the paper's code divides the variance by G instead of G - 1. The answer is sampled in training; evaluation draws
thoughts and takes the likeliest answer. Imitation forces its teacher: thoughts are fed as demonstrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.update import Adam
from policyopt.methods import grpo
from policyopt.models.engines import padded
from policyopt.models.language import LanguagePolicy
from policyopt.models.thoughts import ContinuousThoughts, Dirichlet, Expected, GeometricMultiToken, MultiToken, Thought
from policyopt.objectives.estimators import SequenceSum
from policyopt.objectives.policy_gradient import Aggregation, Objective, PolicyGradient, RatioClip, SequenceMean
from policyopt.rollouts.language import Groups, prompt_ids
from policyopt.types import Budget, Clock, Collected, Collector, Loss, Outputs, Rollouts

FAMILY = "language"
VARIANTS = ("csft", "mts", "mts_paper", "dirichlet")


def soft_divergence(target: Tensor, logp: Tensor) -> Tensor:
    """KL(target ‖ p): target [.., V] shares, logp [.., V] → [..]. Zero exactly where p is the target."""
    return (torch.xlogy(target, target) - target * logp.masked_fill(target == 0, 0.0)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class SoftDemonstrations(Collector):
    """Demonstrations whose actions [N, T, V] are the shares of the ``traces`` best traces of each prompt at each token.

    Raises ValueError for a problem without such demonstrations, for words that are no tokens, and where the number of
    steps is not the policy's thoughts and one token.
    """

    gives: ClassVar[tuple[str, ...]] = ("prompt_id",)
    prompts: int = 16
    traces: int = 16

    def __call__(self, policy: ContinuousThoughts, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        if not hasattr(problem, "soft_demonstrations"):
            raise ValueError(f"the problem {problem.name!r} has no soft demonstrations: choose signed-sum")
        ids = prompt_ids(problem, self.prompts, clock)
        shares = problem.soft_demonstrations(ids, self.traces)
        if len(shares[0]) != policy.thoughts + 1:
            raise ValueError(
                f"{problem.name} demonstrates {len(shares[0])} steps, but the policy takes {policy.thoughts} thoughts "
                f"and a token: set thoughts={len(shares[0]) - 1}"
            )
        actions = soft_actions(policy, shares)
        prompt, prompt_length = padded(policy.encode(problem.prompts(ids)))
        length = torch.full((len(ids),), actions.shape[1], device=policy.device)
        batch = Rollouts(
            actions=actions,
            mask=torch.ones(actions.shape[:2], dtype=torch.bool, device=policy.device),
            prompt_id=torch.tensor(ids, device=policy.device),
            prompt=prompt,
            prompt_length=prompt_length,
            length=length,
            batch_size=[len(ids)],
        )
        return Collected({"rollouts": batch}, {"cost/tokens": batch.mask.sum()})


def soft_actions(policy: LanguagePolicy, shares: Sequence[Sequence[Mapping[str, float]]]) -> Tensor:
    """Shares of words, for each of N prompts and T steps → points of the simplex [N, T, V]."""
    entries = [(n, t, w, x) for n, row in enumerate(shares) for t, step in enumerate(row) for w, x in step.items()]
    token = _tokens(policy, sorted({word for _, _, word, _ in entries}))
    actions = torch.zeros(len(shares), len(shares[0]), policy.head.weight.shape[0])
    row, step, index = torch.tensor([(n, t, token[w]) for n, t, w, _ in entries]).unbind(-1)
    actions[row, step, index] = torch.tensor([share for *_, share in entries])
    return actions.to(policy.device)


def _tokens(policy: LanguagePolicy, words: Sequence[str]) -> dict[str, int]:
    encoded = policy.tokenizer(list(words), add_special_tokens=False)["input_ids"]
    for word, ids in zip(words, encoded, strict=True):
        if len(ids) != 1 or ids[0] == policy.tokenizer.unk_token_id:
            raise ValueError(f"{word!r} is not one token of this tokenizer: use the problem's own, problem.tokenizer()")
    return {word: ids[0] for word, ids in zip(words, encoded, strict=True)}


@dataclass(frozen=True, kw_only=True)
class SoftImitation(Objective):
    """Σ_t KL(α*_t ‖ α_t), α*_t being the actions; at the last step, a single token, this is its cross-entropy."""

    aggregation: Aggregation = SequenceSum()

    def want(self) -> tuple[str, ...]:
        return ("distribution",)

    def prepare(self, batch: Rollouts) -> Rollouts:
        share = self.aggregation(batch)
        return batch.replace(share=torch.stack([share, share], -1))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        value = (batch.share[..., 0] * soft_divergence(batch.actions, outputs.distribution)).sum()
        return Loss(value, {"loss/imitation": value.detach()})


@dataclass(frozen=True, kw_only=True)
class ThinkingFirst(OnPolicy):
    """An on-policy method for the given policy's model with ``thoughts`` continuous steps before its answer."""

    thoughts: int = 3
    rule: Thought = MultiToken()

    def learner(
        self, problem: Any, policy: LanguagePolicy | None = None, *, seed: int, budget: Budget | None = None
    ) -> OnPolicyLearner:
        thinking = policy and ContinuousThoughts(policy, thoughts=self.thoughts, rule=self.rule)
        return super().learner(problem, thinking, seed=seed, budget=budget)


def csft() -> ThinkingFirst:
    return ThinkingFirst(
        collector=SoftDemonstrations(prompts=16, traces=16),
        objective=SoftImitation(),
        optimizer=Adam(learning_rate=1e-4, weight_decay=0.01),
        rule=Expected(),
    )


def method() -> ThinkingFirst:
    return ThinkingFirst(
        collector=Groups(prompts=16, samples=8),
        credit=grpo.method().credit,
        objective=PolicyGradient(stabilization=RatioClip(low=0.1, high=0.1), aggregation=SequenceMean()),
        optimizer=Adam(learning_rate=5e-6, weight_decay=0.01),
    )


mts = method


def mts_paper() -> ThinkingFirst:
    return replace(method(), rule=GeometricMultiToken())


def dirichlet() -> ThinkingFirst:
    return replace(method(), rule=Dirichlet())
