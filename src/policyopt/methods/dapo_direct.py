"""DAPO: direct advantage policy optimization, step by step and offline (arXiv 2412.18279; not ByteDance's DAPO).

A state s is a prompt with the steps written so far, an action a the next step (up to a separator), the reward comes at the end.
With π_ref the policy that samples, in three stages that never train together:

    gather    responses of π_ref are split into steps; from each state N completions, v(s) = the share that ends right
    critic    V fitted to v(s) by cross-entropy with soft targets, on states of their own
    policy    ½ ( A(s, a)/β - Σ_t (log π - log π_ref) )², over the distinct first steps a of each state's completions,
              A(s, a_i) = V(s + a_i) - mean_j V(s + a_j), the true reward in the place of V where the step ends the response

States whose advantages differ by less than 0.1 are dropped; all steps of a state come in one batch.

    method             one pass through the stages          iterated    two, from the policy and the critic of the first
    critic_baseline    A = V(s + a) - V(s)                  response_level    a whole response is one step: no critic

β = 0.5 suits small models that see the data many times (0.01 in the paper). The exact reward at a last step is our reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.credit.groups import group_index, group_mean, over_steps
from policyopt.learners.annotators import evaluated
from policyopt.learners.critic_training import CriticFit, SoftTargets
from policyopt.learners.gathering import Gathering, GatheringLearner
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.stages import Stage, Stages
from policyopt.models.engines import inside
from policyopt.models.language import LanguagePolicy
from policyopt.objectives.policy_gradient import Objective, row_count
from policyopt.objectives.preference import LogRatio, square_loss
from policyopt.rollouts.kept import Kept
from policyopt.rollouts.language import Groups, prompt_ids, respond, response_metrics, scored_rollouts
from policyopt.rollouts.segments import branch, distinct
from policyopt.types import Budget, Clock, Collected, Learner, Loss, Outputs, Part, Rollouts

FAMILY = "language"
VARIANTS = ("iterated", "critic_baseline", "response_level")


# -- the mathematics


def step_regression(log_ratio: Tensor, advantage: Tensor, beta: float) -> Tensor:
    """½ (A/β - log-ratio of the step)², elementwise (Eq. 15)."""
    return 0.5 * square_loss(log_ratio, advantage / beta)


def wide_enough(advantage: Tensor, group: Tensor, gap: float) -> Tensor:
    """advantage [N], state [N] → [N] True where the advantages of the row's state differ by ``gap`` or more."""
    index, size = group_index(group)
    blank = advantage.new_zeros(len(size))
    high = blank.scatter_reduce(0, index, advantage, "amax", include_self=False)
    low = blank.scatter_reduce(0, index, advantage, "amin", include_self=False)
    return ((high - low) >= gap)[index]


def balanced(reward: Tensor, group: Tensor, kept: int) -> Tensor:
    """Rows of ``kept`` responses to each prompt, as many right (reward above 0) as wrong ones as can be; reward, group [N]."""
    rows: list[int] = []
    for prompt in group.unique():
        own = (group == prompt).nonzero().squeeze(1)
        right, wrong = (own[chosen].tolist() for chosen in (reward[own] > 0, reward[own] <= 0))
        share = min(len(right), max(kept // 2, kept - len(wrong)))
        rows += [*right[:share], *wrong[: kept - share]]
    return torch.tensor(sorted(rows), device=group.device)


def first_of_a_kind(rows: Tensor) -> Tensor:
    """rows [N, X] → [N] True for the first of those that are equal."""
    _, kind = rows.unique(dim=0, return_inverse=True)
    place = torch.arange(len(rows), device=rows.device)
    first = place.new_full((int(kind.max()) + 1,), len(rows)).scatter_reduce(0, kind, place, "amin")
    return first[kind] == place


# -- gather: completions [states · N], their group is the state, ``segment`` numbers the steps of each


@dataclass(frozen=True, kw_only=True)
class Steps(Groups):
    """``completions`` of every distinct state of ``kept`` responses to each prompt (of ``samples``, balanced by outcome).

    A step ends with a token that holds ``separator``; without one a response is a single step.
    """

    gives: ClassVar[tuple[str, ...]] = (*Groups.gives, "segment")
    samples: int = 8
    kept: int = 2
    completions: int = 8
    separator: str = ","

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.kept <= self.samples or self.completions < 2:
            raise ValueError(
                f"from 1 to samples={self.samples} responses are kept, with 2 completions or more of each state; got "
                f"kept={self.kept}, completions={self.completions}"
            )

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        ids, rng = prompt_ids(problem, self.prompts, clock), clock.generator("sample", policy.device)
        sampled = respond(policy, problem, ids, self.samples, self.sampling, rng, keep=True)
        responses = scored_rollouts(policy, problem, ids, sampled)
        rows = balanced(responses.scores["reward"], responses.group, self.kept)
        splits = self._splits(policy)
        begins = splits[responses.actions[rows]].roll(1, 1)
        begins[:, 0] = True
        row, position = (begins & responses.mask[rows]).nonzero(as_tuple=True)
        cuts = torch.stack([rows[row], position], 1)
        cuts = cuts[distinct(sampled, cuts)[0]]
        found = branch(policy, problem, ids, sampled, cuts, self.completions, self.sampling, rng)
        ended = splits[found.rollouts.actions].long()
        metrics = response_metrics(responses, sampled)
        spent = {name: metrics[name] + count for name, count in found.cost.items()}
        data = found.rollouts.replace(segment=ended.cumsum(1) - ended)
        return Collected({"rollouts": data}, {**metrics, **spent, "states": float(len(cuts))})

    def _splits(self, policy: LanguagePolicy) -> Tensor:
        """[V] True for tokens that end a step."""
        texts = policy.tokenizer.batch_decode([[i] for i in range(policy.head.weight.shape[0])])
        return torch.tensor([bool(self.separator) and self.separator in text for text in texts], device=policy.device)


# -- critic


def states(completions: Rollouts) -> Rollouts:
    """One row a state, with a single step before which the critic looks; ``returns`` is the share that ended right."""
    first = first_of_a_kind(completions.group[:, None])
    value, rows = group_mean(completions.scores["reward"], completions.group)[first], completions[first]
    one = torch.ones_like(rows.length)
    return _rows(rows, one, returns=value[:, None])


def _rows(batch: Rollouts, length: Tensor, **columns: Tensor) -> Rollouts:
    """The first ``length`` [N] tokens of each row, with these columns; groups, prompts and scores stay."""
    longest = int(length.max())
    return Rollouts(
        actions=batch.actions[:, :longest],
        mask=inside(length, longest),
        group=batch.group,
        prompt_id=batch.prompt_id,
        scores=TensorDict({"reward": batch.scores["reward"]}, [len(batch)]),
        prompt=batch.prompt,
        prompt_length=batch.prompt_length,
        length=length,
        batch_size=[len(batch)],
    ).replace(**columns)


@dataclass(frozen=True, kw_only=True)
class KeptStates(Kept):
    """Kept rows with the critic's targets or the steps' advantages."""

    gives: ClassVar[tuple[str, ...]] = (*Kept.gives, "returns", "advantage")


@dataclass(frozen=True, kw_only=True)
class CriticStage(Stage):
    """Fits a critic to the states that ``from_`` gathered; where the stage comes again, it goes on with its critic."""

    from_: str = "gather"

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        collector = replace(self.method.collector, data=states(completions_of(artifacts, self.from_)))
        method = replace(self.method, collector=collector)
        made = CriticFit(method, problem, policy, seed, self.until or budget)
        former = artifacts.get(self.name)
        if isinstance(former, CriticFit):
            made.model.load_state_dict(former.model.state_dict())
        return made


# -- policy


def completions_of(artifacts: Mapping[str, Learner], name: str) -> Rollouts:
    """What the finished stage ``name`` gathered; ValueError where it didn't."""
    gathered = artifacts.get(name)
    if not isinstance(gathered, GatheringLearner):
        raise ValueError(f"no stage named {name!r} gathered completions before this one")
    return gathered.data


def step_lengths(completions: Rollouts) -> Tensor:
    """[N] tokens of the first step of each row."""
    return ((completions.segment == 0) & completions.mask).sum(1)


def value_after(critic: Any, completions: Rollouts, position: Tensor, limit: int) -> Tensor:
    """σ(V) of the state after ``position`` [N] tokens of each row, the row's reward where nothing follows."""
    value = completions.scores["reward"].clone()
    inner = (position < completions.length).nonzero().squeeze(1)
    if len(inner):
        if critic is None:
            raise ValueError("steps that do not end their response need a critic: put a CriticStage before this one")
        step = torch.arange(completions.mask.shape[1], device=position.device)
        looked = completions[inner].replace(mask=step == position[inner, None])
        value[inner] = evaluated(critic, looked, "value", limit).sum(1).sigmoid()
    return value


@dataclass(frozen=True, kw_only=True)
class Baseline(Part):
    """What is subtracted from the values [N] after the first steps: their mean over the state, duplicates counted."""

    def __call__(self, value: Tensor, critic: Any, completions: Rollouts, limit: int) -> Tensor:
        return group_mean(value, completions.group)


@dataclass(frozen=True, kw_only=True)
class CriticBaseline(Baseline):
    """The critic's value of the state itself."""

    def __call__(self, value: Tensor, critic: Any, completions: Rollouts, limit: int) -> Tensor:
        return value_after(critic, completions, torch.zeros_like(completions.length), limit)


def steps_to_learn(completions: Rollouts, advantage: Tensor, gap: float) -> Rollouts:
    """The distinct first steps of each state whose advantages [N] differ by ``gap``; π_ref is what sampled them.

    Raises ValueError where no state is left.
    """
    length = step_lengths(completions)
    logp = completions.old_logp[:, : int(length.max())]
    steps = _rows(completions, length, ref_logp=logp)
    steps = steps.replace(advantage=over_steps(advantage, steps))
    each = torch.cat([steps.group[:, None], steps.actions * steps.mask], 1)
    kept = first_of_a_kind(each) & wide_enough(advantage, steps.group, gap)
    if not bool(kept.any()):
        raise ValueError(f"no state has steps whose advantages differ by {gap}: gather more, or lower the gap")
    return steps[kept]


@dataclass(frozen=True, kw_only=True)
class StepRegression(Objective):
    """The squared loss, a mean over (state, step) pairs; the log-ratio is a sum over the step's tokens."""

    whole_groups: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("ref_logp", "advantage")
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}")

    def prepare(self, batch: Rollouts) -> Rollouts:
        return batch.replace(share=(1 / row_count(batch)).expand(len(batch), 1))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        ratio, advantage = LogRatio()(outputs, batch), batch.advantage[:, 0]
        share = batch.share[:, 0]
        total = (share * step_regression(ratio, advantage, self.beta)).sum()
        sized = (share * ratio.detach().abs()).sum()
        return Loss(total, {"loss/policy": total.detach(), "policy/log_ratio": sized})


@dataclass(frozen=True, kw_only=True)
class PolicyStage(Stage):
    """Learns from the steps that ``from_`` gathered, valued by the critic of the stage ``critic``."""

    from_: str = "gather"
    critic: str = "critic"
    gap: float = 0.1
    baseline: Baseline = Baseline()

    def build(
        self, artifacts: Mapping[str, Learner], problem: Any, policy: Any, seed: int, budget: Budget | None
    ) -> Learner:
        completions, fitted = completions_of(artifacts, self.from_), artifacts.get(self.critic)
        critic = fitted.model if isinstance(fitted, CriticFit) else None
        limit = policy.default_micro_batch()
        value = value_after(critic, completions, step_lengths(completions), limit)
        advantage = value - self.baseline(value, critic, completions, limit)
        data = steps_to_learn(completions, advantage, self.gap)
        method = replace(self.method, collector=replace(self.method.collector, data=data))
        return Stage.build(replace(self, method=method), artifacts, problem, policy, seed, budget)


GATHERING, FITTING, REGRESSION = Budget(updates=24), Budget(updates=800), Budget(updates=150)


def staged(
    gather: Steps, *, gathering: Budget = GATHERING, fitting: Budget = FITTING, baseline: Baseline | None = None
) -> Stages:
    """The three stages; the last one goes on to the end of the budget."""
    return Stages(
        stages=(
            Stage(name="gather", method=Gathering(collector=gather), until=gathering),
            CriticStage(
                name="critic", method=OnPolicy(collector=KeptStates(groups=64), objective=SoftTargets()), until=fitting
            ),
            PolicyStage(name="policy", method=regression(), baseline=baseline or Baseline()),
        )
    )


def regression() -> OnPolicy:
    return OnPolicy(collector=KeptStates(groups=64), objective=StepRegression())


def method() -> Stages:
    return staged(Steps())


def iterated() -> Stages:
    *first, last = method().stages
    return Stages(stages=(*first, replace(last, until=REGRESSION)), repeat=2)


def critic_baseline() -> Stages:
    return staged(Steps(), baseline=CriticBaseline())


def response_level() -> Stages:
    gather, _, policy = staged(Steps(samples=1, kept=1, separator="")).stages
    return Stages(stages=(gather, policy))
