"""Does a chain of mixed tokens search better than a chain of tokens, and can a policy gradient improve it (arXiv 2505.23648)?

Minimum non-negative signed sums of four digits, digit multisets held out; two-layer models, trained from scratch.

A. Three ways to imitate, at two widths, with the same number of updates: the answer alone, the partial sums of the best
   signs as tokens, the partial sums of all signs as mixtures.
B. Imitation of mixtures is stopped half-way, where thoughts of three sampled tokens give half of the right answers. From
   these weights GRPO goes on: with thoughts of three tokens, of one token, with Dirichlet thoughts, and, as a control,
   with thoughts of three tokens and rewards shuffled within each group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam, Cosine, Schedule
from policyopt.methods import cot2, sft
from policyopt.models.language import LanguagePolicy
from policyopt.models.thoughts import MultiToken
from policyopt.models.tiny import tiny_model
from policyopt.problems.language.base import pass_at_k
from policyopt.problems.language.mnns import MinimumSignedSum
from policyopt.rollouts.evaluate import language_act
from policyopt.rollouts.language import Groups
from policyopt.rollouts.written import Demonstrations
from policyopt.studies.claim import Claim, lower_bound, paired_difference
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, Clock, Collected, generator

IMITATION_UPDATES = 1200
REINFORCEMENT_UPDATES = 150
BATCH = 128
RATE = 5e-3
REINFORCEMENT_RATE = 3e-4
HALF_WAY = 0.5
CHECK_EVERY = 50
ENDS_ONLY = Cadence(evaluations=1, checkpoints=1)
DECAYED = Adam(learning_rate=RATE, schedule=Cosine(warmup=50))
CONSTANT = Adam(learning_rate=RATE, schedule=Schedule(warmup=50))


def mixtures(optimizer: Adam) -> cot2.ThinkingFirst:
    return replace(cot2.csft(), collector=cot2.SoftDemonstrations(prompts=BATCH, traces=16), optimizer=optimizer)


def tokens(optimizer: Adam) -> OnPolicy:
    return replace(sft.method(), collector=Demonstrations(prompts=BATCH), optimizer=optimizer)


def model(problem: MinimumSignedSum, width: int, seed: int) -> LanguagePolicy:
    tokenizer = problem.tokenizer()
    return LanguagePolicy(tiny_model(seed, len(tokenizer), layers=2, width=width, heads=2, context=16), tokenizer)


def answers(policy: Any, problem: MinimumSignedSum, draws: int, greedy: bool, rng: torch.Generator) -> Tensor:
    """Which of ``draws`` responses to each held-out instance are right, bool [N, draws]."""
    ids = range(min(problem.evaluation_size, problem.size("test")))
    texts = language_act(policy, problem, rng)(problem.prompts(ids, "test"), draws, greedy)
    repeated = [i for i in ids for _ in range(draws)]
    right = problem.score(repeated, [text for row in texts for text in row], "test")["accuracy"]
    return right.view(len(ids), draws) == 1


@dataclass(frozen=True, kw_only=True)
class Imitated:
    """One way to imitate at one width; ``accuracy`` is that of the likeliest responses, ``pass@16`` that of 16 samples."""

    method: OnPolicy
    width: int
    chain: bool = False

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        problem = MinimumSignedSum(chain=self.chain, evaluation_size=32 if smoke else 1312)
        budget = Budget(updates=3 if smoke else IMITATION_UPDATES)
        found = run(self.method, problem, model(problem, self.width, seed), budget=budget, seed=seed, cadence=ENDS_ONLY)
        few = replace(problem, evaluation_size=min(256, problem.evaluation_size))
        sampled = answers(found.learner.policy, few, 16, False, generator(seed, "pass@16"))
        return {"accuracy": found.last("eval/accuracy"), "pass@16": pass_at_k(sampled, 16)}


@lru_cache(maxsize=8)
def half_imitated(seed: int, smoke: bool) -> dict[str, Tensor]:
    """Weights at the first check where thoughts of three tokens give half of the right answers, or at the limit."""
    problem = MinimumSignedSum(evaluation_size=32 if smoke else 512)
    method = replace(mixtures(CONSTANT), rule=MultiToken())
    limit = Budget(updates=3 if smoke else 2 * IMITATION_UPDATES)
    learner = method.learner(problem, model(problem, 32, seed), seed=seed, budget=limit)
    while learner.clock.share < 1.0:
        learner.step()
        if learner.clock.step % CHECK_EVERY == 0:
            right = answers(learner.policy, problem, 1, True, generator(seed, "half-way", learner.clock.step))
            if float(right.float().mean()) >= HALF_WAY:
                break
    return {name: weight.clone() for name, weight in learner.policy.state_dict().items()}


@dataclass(frozen=True, kw_only=True)
class ShuffledGroups(Groups):
    """Groups whose rewards are shuffled within each group: every advantage occurs as often, and says nothing."""

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        collected = super().__call__(policy, problem, clock, memory)
        batch = collected.batches["rollouts"]
        rewards = batch.scores["reward"].view(-1, self.samples)
        order = torch.rand(rewards.shape, generator=clock.generator("shuffle")).argsort(1)
        batch.scores["reward"] = rewards.gather(1, order).flatten()
        return collected


@dataclass(frozen=True, kw_only=True)
class Reinforced:
    """GRPO from half-way; ``accuracy`` with thoughts drawn by the method's own rule, four times, ``before`` and after."""

    method: cot2.ThinkingFirst

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        problem = MinimumSignedSum(evaluation_size=32 if smoke else 1312)
        policy = model(problem, 32, seed)
        policy.load_state_dict(half_imitated(seed, smoke))
        budget = Budget(updates=2 if smoke else REINFORCEMENT_UPDATES)
        start = self.method.learner(problem, policy, seed=seed).policy
        before = answers(start, problem, 4, True, generator(seed, "before")).float().mean()
        found = run(self.method, problem, policy, budget=budget, seed=seed, cadence=ENDS_ONLY)
        after = answers(found.learner.policy, problem, 4, True, generator(seed, "after")).float().mean()
        entropy = found.curve("policy/entropy")[1]
        return {
            "accuracy": float(after),
            "before": float(before),
            "gain": float(after - before),
            "entropy before": entropy[0],
            "entropy after": entropy[-1],
        }


def reinforce(method: cot2.ThinkingFirst, collector: Groups) -> Reinforced:
    optimizer = replace(method.optimizer, learning_rate=REINFORCEMENT_RATE)
    return Reinforced(method=replace(method, collector=collector, optimizer=optimizer))


GROUPS = Groups(prompts=64, samples=8)
SHUFFLED = ShuffledGroups(prompts=64, samples=8)
WIDTHS = (16, 32)

claim = Claim(
    slug="cot2",
    paper="2505.23648",
    text=(
        "At the same number of updates, imitating mixtures of all partial sums answers more held-out sums than imitating "
        "the best chain of tokens (by over 5 points at width 32), and GRPO over sampled thoughts improves it further, "
        "which GRPO with shuffled rewards does not."
    ),
    arms={
        **{f"no chain, width {w}": Imitated(method=tokens(DECAYED), width=w) for w in WIDTHS},
        **{f"tokens, width {w}": Imitated(method=tokens(DECAYED), width=w, chain=True) for w in WIDTHS},
        **{f"mixtures, width {w}": Imitated(method=mixtures(DECAYED), width=w) for w in WIDTHS},
        "grpo": reinforce(cot2.method(), GROUPS),
        "grpo, shuffled rewards": reinforce(cot2.method(), SHUFFLED),
        "grpo, one token": reinforce(replace(cot2.method(), rule=MultiToken(tokens=1)), GROUPS),
        "grpo, dirichlet": reinforce(cot2.dirichlet(), GROUPS),
    },
    gates=(
        paired_difference("accuracy", "mixtures, width 32", "tokens, width 32", above=0.05),
        lower_bound("gain", "grpo", above=0.0),
        paired_difference("accuracy", "grpo", "grpo, shuffled rewards", above=0.0),
        paired_difference("accuracy", "mixtures, width 16", "tokens, width 16", above=0.0, required=False),
        paired_difference("accuracy", "tokens, width 32", "no chain, width 32", above=0.0, required=False),
        lower_bound("gain", "grpo, one token", above=0.0, required=False),
        lower_bound("gain", "grpo, dirichlet", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=(
        f"{IMITATION_UPDATES} updates of {BATCH} demonstrations for every way to imitate; {REINFORCEMENT_UPDATES} updates of "
        "64 prompts and 8 responses for every run of GRPO"
    ),
    tuning=(
        "learning rate of imitation: 2e-3 and 5e-3, of tokens and mixtures alike, at width 32 and 800 updates on seed 100; of "
        "GRPO: 1e-4 and 3e-4 on seed 100 with thoughts of three tokens. Two tries each, the better one used for all arms"
    ),
)
