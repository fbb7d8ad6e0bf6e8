"""ReMax: REINFORCE with the reward of the greedy response as baseline (arXiv 2310.10505).

For each prompt the policy also answers greedily; that answer's reward is subtracted from the sampled one's. The baseline
does not depend on the sample, so the gradient stays unbiased, and no critic is trained. The loss is a token mean, as in the
authors' code. The divergence to the initial policy enters the return (coefficient β = 0.05, discount γ = 0.99), in two forms:

    method          ``OneStep``: G_t = -β k1_t + γ^(T-t+1) clamp(r - b, ±5), each token's own divergence only (the authors' code)
    cumulative      the divergence accumulates over later tokens, the greedy reward is subtracted from the return (verl's form)
    plain           G_t = r - b: no divergence, no discount, no clamp (the paper's pseudo-code)

Sampling is with top-p 1 here (0.9 in the authors' code), so that the log-probabilities are those of the policy itself.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import Credit, over_steps
from policyopt.credit.returns import discounted_returns
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.models.language import LanguagePolicy
from policyopt.objectives.policy_gradient import Current, PolicyGradient, TokenMean
from policyopt.rollouts.language import Groups, respond
from policyopt.types import Clock, Collected, Rollouts

FAMILY = "language"
VARIANTS = ("cumulative", "plain")


def one_step_return(difference: Tensor, k1: Tensor, mask: Tensor, beta: float, gamma: float) -> Tensor:
    """G_t = -β k1_t + γ^(T-t+1) d for t = 1 … T, the last chosen step T included in the power (so it has one γ).

    difference [N] is d = clamp(r - b), k1 [N, T] = log π - log reference; → [N, T], zero outside ``mask``.
    """
    remaining = mask.flip(1).cumsum(1).flip(1)
    return (gamma**remaining * difference[:, None] - beta * k1) * mask


@dataclass(frozen=True, kw_only=True)
class WithGreedy(Groups):
    """Groups, and for each prompt the score of the current policy's greedy response, as ``scores["greedy"]``."""

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        collected = super().__call__(policy, problem, clock)
        batch = collected.batches["rollouts"]
        ids = batch.prompt_id[:: self.samples].tolist()
        greedy = replace(self.sampling, temperature=0.0)
        answers = respond(policy, problem, ids, 1, greedy, clock.generator("greedy", policy.device))
        reward = problem.score(ids, policy.decode(answers.actions, answers.length))["reward"]
        scores = {**dict(batch.scores.items()), "greedy": reward.to(policy.device).repeat_interleave(self.samples)}
        metrics = {**collected.metrics, "reward/greedy": reward.mean()}
        for name, count in (("tokens", answers.sampled_tokens), ("forward_tokens", answers.forward_tokens)):
            metrics[f"cost/{name}"] = metrics[f"cost/{name}"] + count
        return Collected({"rollouts": batch.replace(scores=scores)}, metrics)


@dataclass(frozen=True, kw_only=True)
class GreedyBaseline(Credit):
    """Advantage = r - b at every step."""

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("advantage",)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(advantage=over_steps(batch.scores["reward"] - batch.scores["greedy"], batch))


@dataclass(frozen=True, kw_only=True)
class OneStep(Credit):
    """The authors' return: each token's own divergence, and the discounted, clamped reward difference."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "behaviour_logp", "ref_logp")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    beta: float = 0.05
    gamma: float = 0.99
    clamp: float = 5.0

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        difference = (batch.scores["reward"] - batch.scores["greedy"]).clamp(-self.clamp, self.clamp)
        k1 = batch.behaviour_logp - batch.ref_logp
        return batch.replace(advantage=one_step_return(difference, k1, batch.mask, self.beta, self.gamma))


@dataclass(frozen=True, kw_only=True)
class Cumulative(Credit):
    """Returns of the token rewards -β k1_t (+ r at the end), minus the greedy reward."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "behaviour_logp", "ref_logp")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    beta: float = 0.05

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        k1 = (batch.behaviour_logp - batch.ref_logp) * batch.mask
        later = discounted_returns(-self.beta * k1, torch.ones_like(k1))
        difference = batch.scores["reward"] - batch.scores["greedy"]
        return batch.replace(advantage=(later + difference[:, None]) * batch.mask)


def method() -> OnPolicy:
    return OnPolicy(
        collector=WithGreedy(prompts=256, samples=1),
        annotators=(Reference(),),
        credit=(OneStep(),),
        objective=PolicyGradient(denominator=Current(), aggregation=TokenMean()),
    )


def cumulative() -> OnPolicy:
    return replace(method(), credit=(Cumulative(),))


def plain() -> OnPolicy:
    return replace(method(), annotators=(), credit=(GreedyBaseline(),))
