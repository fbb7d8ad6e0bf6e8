"""BRPO: budget-relative policy optimization, so that thinking may be cut short at any time (arXiv 2505.13438).

Each thinking trace is cut at budgets b_1 < … < b_S, and the same policy answers A times from every truncated trace. With r_j
the mean score at budget j and P a prior over budgets, the tokens between b_{j-1} and b_j (j = 0 … S-1) have the advantage

    R_j - ( j V1_j + (S - j) V2_j ) / S,     R_j = Σ_{i≥j} P_i r_i,     V2_j = mean of R_j over the prompt's traces, own included,
    V1_j = Σ_{i<j} 2^i r_i / Σ_{i<j} 2^i · Σ_{i≥j} P_i     (what the trace itself reached at earlier budgets)

and an answer its score minus the mean of the answers to the same truncated trace, whatever P is.

    method    uniform prior     linear    P_j ∝ b_j     base    the largest budget alone
    v1_only, v2_only, no_baseline    the baseline is V1, V2 (a group mean as in GRPO), nothing
    coupled    only the last answer is trained, against the group's mean
    grpo       one budget, one answer: Dr. GRPO

The loss is PPO's clip, summed over tokens and divided by rows · a constant length. Trace and answers are rows of their own
here, a prefix of tokens standing in for the tree attention mask. Budgets that a trace doesn't reach share one truncation
point, with A answers for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.credit.groups import Credit, group_index, group_mean, over_steps
from policyopt.learners.on_policy import OnPolicy
from policyopt.models.language import Continuations, LanguagePolicy
from policyopt.objectives.estimators import FixedLength
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip
from policyopt.rollouts.kept import joined
from policyopt.rollouts.language import Groups, continued_rows, prompt_ids, response_metrics
from policyopt.rollouts.segments import branch
from policyopt.types import Clock, Collected, Part, Rollouts

FAMILY = "language"
VARIANTS = ("linear", "base", "v1_only", "v2_only", "no_baseline", "coupled", "grpo")

BUDGETS = (5, 11, 17, 23)


# -- priors over S budgets


def uniform(budgets: tuple[int, ...]) -> tuple[float, ...]:
    """All budgets are as likely."""
    return (1.0 / len(budgets),) * len(budgets)


def proportional(budgets: tuple[int, ...]) -> tuple[float, ...]:
    """A budget is as likely as it is long."""
    return tuple(budget / sum(budgets) for budget in budgets)


def largest(budgets: tuple[int, ...]) -> tuple[float, ...]:
    """The largest alone."""
    return (*(0.0 for _ in budgets[1:]), 1.0)


# -- the mathematics: rewards at budgets [N, S], prior [S], group [N] of the traces of a prompt


def still_to_come(rewards: Tensor, prior: Tensor) -> Tensor:
    """R [N, S] = Σ_{i≥j} P_i r_i."""
    return (rewards * prior).flip(1).cumsum(1).flip(1)


def own_baseline(rewards: Tensor, prior: Tensor) -> Tensor:
    """V1 [N, S]: the mean of a trace's earlier rewards, weights doubling towards the latest, times the prior still to come;
    0 for the first segment, which nothing precedes."""
    weight = 2.0 ** torch.arange(rewards.shape[1], device=rewards.device)
    before = (rewards * weight).cumsum(1)[:, :-1] / weight.cumsum(0)[:-1]
    left = prior.flip(0).cumsum(0).flip(0)
    return torch.cat([torch.zeros_like(rewards[:, :1]), before * left[1:]], 1)


def group_baseline(returns: Tensor, group: Tensor) -> Tensor:
    """V2 [N, S]: the mean of the group's returns [N, S], own included; 0 for a group of one."""
    index, size = group_index(group)
    mean = torch.stack([group_mean(column, group) for column in returns.unbind(1)], 1)
    return torch.where((size[index] > 1)[:, None], mean, 0.0)


@dataclass(frozen=True, kw_only=True)
class Baseline(Part):
    """What is subtracted, from V1 and V2 [N, S]. Default: (j V1 + (S - j) V2) / S."""

    def __call__(self, own: Tensor, group: Tensor) -> Tensor:
        share = torch.arange(own.shape[1], device=own.device) / own.shape[1]
        return share * own + (1 - share) * group


@dataclass(frozen=True, kw_only=True)
class OwnOnly(Baseline):
    """V1 alone."""

    def __call__(self, own: Tensor, group: Tensor) -> Tensor:
        return own


@dataclass(frozen=True, kw_only=True)
class GroupOnly(Baseline):
    """V2 alone."""

    def __call__(self, own: Tensor, group: Tensor) -> Tensor:
        return group


@dataclass(frozen=True, kw_only=True)
class NoBaseline(Baseline):
    """Nothing is subtracted."""

    def __call__(self, own: Tensor, group: Tensor) -> Tensor:
        return torch.zeros_like(own)


def thinking_advantage(rewards: Tensor, prior: Tensor, group: Tensor, baseline: Baseline) -> Tensor:
    """Advantage [N, S] of the tokens of each segment."""
    returns = still_to_come(rewards, prior)
    return returns - baseline(own_baseline(rewards, prior), group_baseline(returns, group))


# -- rows: traces with segments 0 … S-1 and their rewards under the score "budgets" [N, S]; answers with segment S + j


@dataclass(frozen=True, kw_only=True)
class ThinkingAdvantage(Credit):
    """Advantages of the traces; ``prior`` has one probability a budget."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group", "segment")
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    prior: tuple[float, ...]
    baseline: Baseline = Baseline()

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        size = len(self.prior)
        rewards = batch.scores["budgets"]
        if rewards.shape[1] != size:
            raise ValueError(f"the prior is over {size} budgets, but the traces have {rewards.shape[1]}: give one each")
        prior = torch.tensor(self.prior, device=rewards.device)
        thinking = batch.segment[:, 0] < size
        advantage = torch.zeros(batch.mask.shape, device=rewards.device)
        each = thinking_advantage(rewards[thinking], prior, batch.group[thinking], self.baseline)
        advantage[thinking] = each.gather(1, batch.segment[thinking].clamp(max=size - 1))
        return batch.replace(advantage=advantage * batch.mask)


@dataclass(frozen=True, kw_only=True)
class AnswerAdvantage(Credit):
    """Advantages of the answers: score - mean over the answers to the same truncated trace; with one answer a budget - mean
    over the prompt's answers at that budget, since nothing else answers the same."""

    needs: ClassVar[tuple[str, ...]] = ("scores", "group", "prompt_id", "segment", "advantage")

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        rows = batch.segment[:, 0] >= batch.scores["budgets"].shape[1]
        answers = batch[rows]
        advantage = batch.advantage.clone()
        advantage[rows] = over_steps(self.advantage(answers, len(batch) - len(answers)), answers)
        return batch.replace(advantage=advantage)

    def advantage(self, answers: Rollouts, traces: int) -> Tensor:
        """[answers]."""
        single = len(answers) == traces * answers.scores["budgets"].shape[1]
        reward = answers.scores["reward"]
        return reward - group_mean(reward, _at_budget(answers) if single else answers.group)


@dataclass(frozen=True, kw_only=True)
class CoupledAnswer(AnswerAdvantage):
    """Only the last answer of each trace counts: its score - the mean of the prompt's last answers."""

    def advantage(self, answers: Rollouts, traces: int) -> Tensor:
        each = len(answers) // traces
        last = torch.arange(len(answers), device=answers.mask.device) % each == each - 1
        reward = answers.scores["reward"][last]
        advantage = torch.zeros(len(answers), device=reward.device)
        advantage[last] = reward - group_mean(reward, answers.prompt_id[last])
        return advantage


def _at_budget(answers: Rollouts) -> Tensor:
    """[answers], the same for answers to one prompt at one budget."""
    return answers.prompt_id * (int(answers.segment.max()) + 1) + answers.segment[:, 0]


# -- how traces and answers are sampled


@dataclass(frozen=True, kw_only=True)
class Anytime(Groups):
    """``samples`` thinking traces to each prompt, and ``answers`` answers to each of them at every budget.

    ``close`` ends the thinking; it is written by force where a budget cuts it, or where the response ends without it. ``ask``
    comes behind, and asks for the answer. An answer has at most ``answer_tokens`` tokens.
    """

    gives: ClassVar[tuple[str, ...]] = (*Groups.gives, "segment")
    budgets: tuple[int, ...] = BUDGETS
    answers: int = 4
    answer_tokens: int = 1
    close: str = ";"
    ask: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < 1:
            raise ValueError(f"budgets must be positive and rise, got {self.budgets}")
        if self.answers < 1 or self.answer_tokens < 1 or not self.close:
            raise ValueError("there must be an answer, a token for it, and a text that closes the thinking")

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        ids = prompt_ids(problem, self.prompts, clock)
        rng, asked = clock.generator("sample", policy.device), policy.encode(problem.prompts(ids))
        longest, stop = self.budgets[-1], (self.close,)
        thought = policy.extend(asked, self.samples, self.sampling, rng, max_new_tokens=longest, stop=stop, keep=True)
        cuts, insert = self._truncated(policy, thought)
        found = branch(
            policy,
            problem,
            ids,
            thought,
            cuts,
            self.answers,
            self.sampling,
            rng,
            insert=insert,
            max_new_tokens=self.answer_tokens,
        )
        traces = self._traces(continued_rows(ids, thought), found.rollouts)
        batch = joined([traces, self._answers(found.rollouts, cuts)])
        metrics = response_metrics(traces, thought)
        spent = {name: metrics[name] + count for name, count in found.cost.items()}
        return Collected({"rollouts": batch}, {**metrics, **spent})

    def _truncated(self, policy: LanguagePolicy, thought: Continuations) -> tuple[Tensor, list[Tensor]]:
        """Cut points [N · S, 2], a trace's budgets side by side, and what is inserted behind each."""
        last = thought.actions.gather(1, thought.length[:, None] - 1).squeeze(1)
        ended = thought.finished & torch.isin(last, policy.end_tokens)
        length, budgets = thought.length - ended.long(), torch.tensor(self.budgets, device=last.device)
        position = torch.minimum(budgets, length[:, None])
        forced = ~(thought.finished & ~ended)[:, None] | (length[:, None] > budgets)
        rows = torch.arange(len(length), device=last.device)[:, None].expand_as(position)
        texts = policy.tokenizer([self.ask, self.close + self.ask], add_special_tokens=False)["input_ids"]
        inserted = [torch.tensor(tokens, dtype=torch.int64, device=last.device) for tokens in texts]
        return torch.stack([rows, position], -1).flatten(0, 1), [inserted[f] for f in forced.long().flatten().tolist()]

    def _traces(self, traces: Rollouts, answers: Rollouts) -> Rollouts:
        """Segments by budgets; every score at the largest budget, and the rewards at all of them."""
        shape = (len(traces), len(self.budgets), self.answers)
        scores = {name: value.view(shape)[:, -1].mean(1) for name, value in answers.scores.items()}
        scores["budgets"] = answers.scores["reward"].view(shape).mean(2)
        step = torch.arange(traces.mask.shape[1], device=traces.mask.device)
        ends = torch.tensor(self.budgets[:-1], dtype=torch.int64, device=step.device)
        segment = torch.bucketize(step, ends, right=True).expand(traces.mask.shape)
        return traces.replace(segment=segment, scores=TensorDict(scores, [len(traces)]))

    def _answers(self, answers: Rollouts, cuts: Tensor) -> Rollouts:
        """Answers to the same truncated trace are one group."""
        size, count = len(self.budgets), len(answers)
        _, point = cuts.unique(dim=0, return_inverse=True)
        budget = torch.arange(len(cuts), device=cuts.device) % size
        segment = (size + budget).repeat_interleave(self.answers)[:, None].expand(answers.mask.shape)
        scores = {**dict(answers.scores.items()), "budgets": torch.zeros(count, size, device=cuts.device)}
        return answers.replace(
            segment=segment, group=point.repeat_interleave(self.answers), scores=TensorDict(scores, [count])
        )


def anytime(
    prior: tuple[float, ...],
    *,
    budgets: tuple[int, ...] = BUDGETS,
    answers: int = 4,
    baseline: Baseline | None = None,
    answer: AnswerAdvantage | None = None,
) -> OnPolicy:
    """Traces cut at ``budgets``, ``answers`` to each beginning, weighted by ``prior``; None: the parts' defaults."""
    return OnPolicy(
        collector=Anytime(prompts=16, samples=8, budgets=budgets, answers=answers),
        credit=(ThinkingAdvantage(prior=prior, baseline=baseline or Baseline()), answer or AnswerAdvantage()),
        objective=PolicyGradient(
            stabilization=RatioClip(low=0.2, high=0.2), aggregation=FixedLength(length=budgets[-1])
        ),
        minibatches=2,
    )


def method() -> OnPolicy:
    return anytime(uniform(BUDGETS))


def linear() -> OnPolicy:
    return anytime(proportional(BUDGETS))


def base() -> OnPolicy:
    return anytime(largest(BUDGETS))


def v1_only() -> OnPolicy:
    return anytime(uniform(BUDGETS), baseline=OwnOnly())


def v2_only() -> OnPolicy:
    return anytime(uniform(BUDGETS), baseline=GroupOnly())


def no_baseline() -> OnPolicy:
    return anytime(uniform(BUDGETS), baseline=NoBaseline())


def coupled() -> OnPolicy:
    return anytime(uniform(BUDGETS), answer=CoupledAnswer())


def grpo() -> OnPolicy:
    return anytime((1.0,), budgets=BUDGETS[-1:], answers=1)
