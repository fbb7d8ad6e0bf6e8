"""Is local routing consistency lost to balance inside a sequence, and not to balance over a batch (arXiv 2505.16056)?

Small mixture-of-experts language models are trained from scratch on eight synthetic domains, one domain a sequence. The
arms differ in one thing each: the balance loss (none, over the batch, ten times stronger, inside each sequence), one
shared expert in the place of an active one, a dense first layer. Every seed draws weights, training text and held-out
text anew, the same text for all arms, so that what varies over seeds contains what varies over samples.

Beside the claim, one arm asks whether policy optimisation sharpens routing: the base model imitates demonstrations of
arithmetic chains, then PPO trains it, and its routing on held-out demonstrations is measured before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policyopt.methods import ppo, sft
from policyopt.methods.moe_lrc import (
    activation_counts,
    analyse,
    basic_interval,
    correlation,
    domain_specialisation,
    resamples,
    segment_histogram,
    segment_routing,
    token_counts,
    vocabulary_specialisation,
)
from policyopt.models.language import LanguagePolicy
from policyopt.models.mixture_of_experts import MixtureOfExperts, Routing, RoutingRecorder, balance_loss, z_loss
from policyopt.models.tiny import character_tokenizer
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.problems.language.domains import Domains
from policyopt.reports.statistics import bootstrap_interval
from policyopt.studies.claim import Claim, Effect, Gate, Results, lower_bound, paired_difference
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, generator

SEGMENT = 16
LEVEL = 0.9
BASE = MixtureOfExperts(width=96, layers=4, experts=16, active=2, expert_width=48, length=256)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model and how it is trained: ``balance`` weighs the balance loss, demanded of the batch or ``per_sequence``."""

    model: MixtureOfExperts = BASE
    balance: float = 1e-2
    per_sequence: bool = False
    z: float = 1e-3
    steps: int = 700
    batch: int = 8
    learning_rate: float = 3e-3

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        problem = Domains(length=64, evaluation_size=8) if smoke else Domains(length=self.model.length)
        model = self.model.build(problem.vocabulary, seed)
        self.train(model, problem, seed, steps=2 if smoke else self.steps)
        return evaluate(model, problem, seed)

    def train(self, model: Any, problem: Domains, seed: int, steps: int) -> None:
        """Adam, with a linear warm-up over a twentieth of the steps and a linear decay."""
        tokens, _ = problem.sample(steps * self.batch, generator(seed, "training-text"))
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate, betas=(0.9, 0.95))
        warm = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warm, 1 - s / steps))
        for batch in torch.split(tokens, self.batch):
            outputs = model(batch, output_router_logits=True)
            loss = next_token_loss(outputs.logits, batch).mean()
            total = loss + sum(self.routers(logits, len(batch)) for logits in outputs.router_logits)
            total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    def routers(self, logits: Tensor, sequences: int) -> Tensor:
        """The losses on one layer's router, whose logits [N T, E] come from ``sequences`` = N sequences."""
        grouped = logits.view(sequences if self.per_sequence else 1, -1, logits.shape[-1])
        return self.balance * balance_loss(grouped, self.model.active) + self.z * z_loss(logits)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Nats for each token but the first: logits [N, T, V], tokens [N, T] → [N, T - 1]."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


@torch.no_grad()
def evaluate(model: Any, problem: Domains, seed: int) -> dict[str, float]:
    """The loss on held-out text and the measures of its routing."""
    tokens, domains = problem.sample(problem.evaluation_size, generator(seed, "held-out-text"))
    with RoutingRecorder(model) as recorder:
        logits = torch.cat([model(part).logits for part in torch.split(tokens, 16)])
    routing = recorder.routing(torch.ones_like(tokens, dtype=torch.bool))
    found = analyse(routing, look_ahead=SEGMENT)
    found["eval/loss"] = float(next_token_loss(logits, tokens).mean())
    found[f"srp/{SEGMENT}/excess"] = found[f"srp/{SEGMENT}"] - found[f"srp/{SEGMENT}/independent"]
    found["sch/knee"] = (found["sch/2"] - found["sch/1"]) / (found["sch/4"] - found["sch/1"])
    kinds = {"input": tokens, "predicted": logits.argmax(-1), "next": tokens.roll(-1, 1)}
    return found | interval(routing, domains, seed) | specialisation(routing, domains, kinds, problem.vocabulary)


def interval(routing: Routing, domains: Tensor, seed: int, draws: int = 1000) -> dict[str, float]:
    """The interval of a model's SRP over held-out samples, each domain resampled by itself."""
    table = segment_histogram(routing, SEGMENT).sum((1, 2)).double()
    weights = resamples(domains, draws, generator(seed, "bootstrap"))
    estimate = float(segment_routing(table.sum(0)).srp)
    low, high = basic_interval(estimate, segment_routing(weights @ table).srp, LEVEL)
    return {f"srp/{SEGMENT}/low": low, f"srp/{SEGMENT}/high": high}


def specialisation(routing: Routing, domains: Tensor, kinds: dict[str, Tensor], vocabulary: int) -> dict[str, float]:
    """How the experts' SRP goes with their specialisation in domains and in each kind of token.

    ``correlation/advantage`` is what domains have over the best of the kinds. The last token has no true next one: it
    is left out.
    """
    srp = segment_routing(segment_histogram(routing, SEGMENT).sum(0)).srp.flatten()
    shares = torch.nn.functional.one_hot(domains).T
    by_domain = domain_specialisation(torch.einsum("dn,nle->dle", shares, activation_counts(routing))).flatten()
    found = {"specialisation/domain": by_domain, "correlation/domain": correlation(srp, by_domain)}
    inner = Routing(experts=routing.experts[:, :, :-1], number=routing.number, valid=routing.valid[:, :-1])
    for kind, tokens in kinds.items():
        score = vocabulary_specialisation(token_counts(inner, tokens[:, :-1], vocabulary).sum(0)).flatten()
        found[f"specialisation/{kind}"], found[f"correlation/{kind}"] = score, correlation(srp, score)
    best = max(float(found[f"correlation/{kind}"]) for kind in kinds)
    advantage = {"correlation/advantage": float(found["correlation/domain"]) - best}
    return {name: float(value.nanmean()) for name, value in found.items()} | advantage


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """The base model, after ``imitation`` steps on demonstrations and again after ``optimization`` steps of PPO."""

    model: MixtureOfExperts = BASE
    imitation: int = 400
    optimization: int = 40

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        problem = Arithmetic(terms=3, evaluation_size=16 if smoke else 256)
        tokenizer = character_tokenizer()
        policy = LanguagePolicy(self.model.build(len(tokenizer), seed), tokenizer)
        found = {}
        stages = {"imitated": (sft.method(), self.imitation), "optimized": (ppo.method(), self.optimization)}
        for stage, (method, steps) in stages.items():
            budget = Budget(updates=1 if smoke else steps)
            done = run(method, problem, policy, budget=budget, seed=seed, cadence=Cadence(evaluations=1))
            found[f"eval/accuracy/{stage}"] = done.last("eval/accuracy")
            measured = analyse(demonstrated_routing(policy, problem), segments=(8,), look_ahead=8)
            found |= {f"{name}/{stage}": value for name, value in measured.items() if name in ("srp/8", "sch/2")}
        return found | {f"{m}/gain": found[f"{m}/optimized"] - found[f"{m}/imitated"] for m in ("srp/8", "sch/2")}


@torch.no_grad()
def demonstrated_routing(policy: LanguagePolicy, problem: Arithmetic, number: int = 256) -> Routing:
    """The routing of a policy that reads held-out prompts with their demonstrations."""
    ids = range(number)
    pairs = zip(problem.prompts(ids, "test"), problem.demonstrations(ids, "test"), strict=True)
    rows = policy.encode([f"{prompt}{answer}" for prompt, answer in pairs])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    valid = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    with RoutingRecorder(policy.model) as recorder:
        policy.engine.prefill(rows)
    return recorder.routing(valid)


def equal_within(metric: str, arm: str, baseline: str, share: float) -> Gate:
    """The interval of the mean ratio arm / baseline lies inside 1 ± ``share``."""

    def test(results: Results) -> Effect:
        found = bootstrap_interval(np.divide(*results.pairs(metric, arm, baseline)), level=LEVEL)
        inside = 1 - share < found.low and found.high < 1 + share
        outside = found.high < 1 - share or found.low > 1 + share
        return Effect(**found._asdict(), level=LEVEL, passed=True if inside else False if outside else None)

    return Gate(
        name=f"{metric}: {arm} / {baseline} within {share:.0%}",
        text=f"mean ratio of {metric}, {arm} over {baseline}, within {share:.0%} of 1",
        test=test,
        metric=metric,
        arms=(arm, baseline),
    )


def not_below(metric: str, arm: str, baseline: str) -> Gate:
    """The mean paired difference arm − baseline may be zero: only an interval that lies below speaks against it."""

    def test(results: Results) -> Effect:
        found = bootstrap_interval(np.subtract(*results.pairs(metric, arm, baseline)), level=LEVEL)
        return Effect(**found._asdict(), level=LEVEL, passed=found.high >= 0)

    return Gate(
        name=f"{metric}: {arm} ≥ {baseline}",
        text=f"the interval of the mean paired difference of {metric}, {arm} minus {baseline}, does not lie below 0",
        test=test,
        metric=metric,
        arms=(arm, baseline),
    )


SRP = f"srp/{SEGMENT}"

claim = Claim(
    slug="moe-lrc",
    paper="2505.16056",
    text="Balancing experts inside each sequence costs local routing consistency beyond what balancing them over the "
    "batch costs; an expert's consistency goes with its specialisation in domains more than in tokens.",
    arms={
        "batch": Variant(),
        "none": Variant(balance=0.0),
        "strong": Variant(balance=1e-1),
        "sequence": Variant(per_sequence=True),
        "shared": Variant(model=replace(BASE, experts=15, active=1, shared=1)),
        "dense-first": Variant(model=replace(BASE, dense=(0,))),
        "policy-optimized": Finetuned(),
    },
    gates=(
        paired_difference(SRP, "batch", "sequence", above=0.0, level=LEVEL),
        paired_difference("sch/2", "batch", "sequence", above=0.0, level=LEVEL),
        not_below(SRP, "none", "batch"),
        not_below("sch/2", "none", "batch"),
        equal_within("eval/loss", "sequence", "batch", 0.02),
        equal_within("eval/loss", "none", "batch", 0.02),
        lower_bound("correlation/advantage", "batch", above=0.0, level=LEVEL),
        paired_difference(f"{SRP}/excess", "batch", "shared", above=0.0, level=LEVEL, required=False),
        lower_bound("sch/knee", "batch", above=0.5, level=LEVEL, required=False),
        lower_bound("srp/8/gain", "policy-optimized", above=0.0, level=LEVEL, required=False),
    ),
    seeds=range(3),
    budget="700 steps of 8 sequences of 256 tokens (1.4M tokens) an arm and seed",
    tuning="seed 100, base arm only, all arms alike: learning rate (1.5e-3, 3e-3, 6e-3); steps and batch (400 x 16, 700 x 8: "
    "the latter learns more for less and learns every domain but the sums of arithmetic); words and operands of the text "
    "(two tries); no arm has a setting of its own to tune",
)
