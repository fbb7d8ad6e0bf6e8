"""The records that cross rooms and the contracts between them.

Axes, the same everywhere: N trajectories (rows), T steps, G samples of a group, K list length or objectives, V vocabulary,
A action dimensions, S state dimensions. Log-probabilities are natural logarithms, masks are boolean, rewards float32,
identifiers int64, advantages are detached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from tensordict import TensorClass
from torch import Tensor

Message: TypeAlias = Mapping[str, str]
Prompt: TypeAlias = str | Sequence[Message]
Scores: TypeAlias = dict[str, Tensor]
Ranking: TypeAlias = tuple[Sequence[str], Sequence[float]]
"""Responses to one prompt and their scores (higher is better), the best one first; a pair is (chosen, rejected), (1, 0)."""


ABSENT: Any = None
"""The default of optional columns. Parts name the columns that they need, and learners check that somebody gives them."""


class Rollouts(TensorClass, nocast=True):
    """Experience, batch size [N]: a row is one response, or T consecutive steps of one environment.

    Preference data have this form too: the rows of a group are the responses to one prompt, and the score "reward" ranks
    them. So one forward shares their prompt, and what was sampled and what was written down are learned from alike.

    A step is one DECISION: a token, an action, a point of a simplex. Rows are stored padded on the right, once.

    Always there
        actions         [N, T, …]  what was done; language: the token ids of the response, tool output included
        mask            [N, T]     True where the policy chose
    Columns that parts ask for by name (``Part.needs``); None where nobody gave them
        behaviour_logp  [N, T]     log-probability under the distribution that was sampled, recorded while sampling
        rewards         [N, T] or [N, T, K]
        discount        [N, T]     per transition; 0 cuts a return
        terminated, truncated [N, T]  an end of the episode; a cut by a limit, where a critic bootstraps
        group, prompt_id [N]       rows that share a prompt in this batch; the prompt's identity over epochs
        scores          TensorDict of {name: [N]}: unweighted components of the reward, and their weighted sum under "reward"
        segment         [N, T]     segment, turn or tree node
        legal           [N, T, A]  valid actions
        weight          [N, T]     counts in the loss AND in its divisor
        selected        [N, T]     steps that an objective's selector picked in this minibatch
        share           [N, T, 3]  each step's share of the loss, of a mean over active steps, and of a covariance with the
                        advantage (set by the objective; preferences: [N, 2], each list's share of the loss, and of a
                        mean over lists)
        observations, next_observations [N, T, S…]
        post_observations [N, T, S…]  states after the decision and before chance (post-decision states)
        old_logp        [N, T]     centre of the importance ratio (the behaviour's where None)
        value, next_value, returns, ref_logp, entropy, advantage [N, T]
        guide_logp      [N, T]     log-probability under a further model: a teacher, a source of token rewards
    Language
        prompt          [N, P]     prompt token ids, padded on the right
        prompt_length   [N]
        length          [N]        number of valid tokens in ``actions``
    """

    actions: Tensor
    mask: Tensor
    behaviour_logp: Tensor = ABSENT
    rewards: Tensor = ABSENT
    discount: Tensor = ABSENT
    terminated: Tensor = ABSENT
    truncated: Tensor = ABSENT
    group: Tensor = ABSENT
    prompt_id: Tensor = ABSENT
    scores: Any = None
    segment: Tensor = ABSENT
    legal: Tensor = ABSENT
    weight: Tensor = ABSENT
    share: Tensor = ABSENT
    selected: Tensor = ABSENT
    observations: Tensor = ABSENT
    next_observations: Tensor = ABSENT
    post_observations: Tensor = ABSENT
    old_logp: Tensor = ABSENT
    value: Tensor = ABSENT
    next_value: Tensor = ABSENT
    returns: Tensor = ABSENT
    ref_logp: Tensor = ABSENT
    guide_logp: Tensor = ABSENT
    entropy: Tensor = ABSENT
    advantage: Tensor = ABSENT
    prompt: Tensor = ABSENT
    prompt_length: Tensor = ABSENT
    length: Tensor = ABSENT

    def __len__(self) -> int:
        return int(self.batch_size[0])


class Transitions(TensorClass, nocast=True):
    """Replay and offline data, batch size [N]: observation [N, S], action [N, A], reward [N] or [N, K], next_observation,
    terminated [N] (a time limit is not a termination), with optional cost [N] and weight [N]. Logged episodes, one after
    the other, have truncated [N] (cut, or the log ends), episode [N], which counts from 0, and complete [N]: False in
    episodes whose beginning or end the log misses, so that their return isn't known (None: all are complete)."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    cost: Tensor = ABSENT
    weight: Tensor = ABSENT
    behaviour_logp: Tensor = ABSENT
    truncated: Tensor = ABSENT
    episode: Tensor = ABSENT
    complete: Tensor = ABSENT


@dataclass
class Outputs:
    """What a policy says of a batch, with gradient: logp, entropy, value [N, T]; distribution, action in control."""

    logp: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None
    distribution: Any = None
    action: Tensor | None = None


@dataclass
class Loss:
    """A scalar to minimise, and detached numbers for the log. ``metrics`` add up over micro-batches."""

    value: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: Loss) -> Loss:
        """Of the sum, metrics included."""
        common = {key: value + self.metrics[key] for key, value in other.metrics.items() if key in self.metrics}
        return Loss(self.value + other.value, {**self.metrics, **other.metrics, **common})


@dataclass
class Budget:
    """What a run may spend, in what is scarce; None is no limit. Methods are compared under the same budget.

    tokens: sampled tokens, every one counts (imitation counts the tokens that it trains on); env_steps: environment
    steps; updates: learner steps; seconds: wall time, the one limit under which a repeat is not bit-identical.
    """

    tokens: int | None = None
    env_steps: int | None = None
    updates: int | None = None
    seconds: float | None = None

    UNITS: ClassVar[tuple[str, ...]] = ("tokens", "env_steps", "updates", "seconds")

    def __post_init__(self) -> None:
        limits = {unit: getattr(self, unit) for unit in self.UNITS}
        if all(limit is None for limit in limits.values()):
            raise ValueError(f"a budget needs at least one limit of {', '.join(self.UNITS)}")
        for unit, limit in limits.items():
            if limit is not None and limit <= 0:
                raise ValueError(f"a budget must be positive, got {unit}={limit}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``"2M-tokens"``, ``"200-updates"``, ``"90-seconds"``, ``"1e6-env-steps"``, or several joined by commas."""
        limits: dict[str, Any] = {}
        for piece in text.split(","):
            number, _, unit = piece.strip().partition("-")
            unit = unit.replace("-", "_")
            scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(number[-1:], 1.0)
            try:
                amount = float(number[:-1] if scale != 1.0 else number) * scale
            except ValueError:
                amount = float("nan")
            if unit not in cls.UNITS or not amount > 0:
                raise ValueError(
                    f"cannot read the budget {piece!r}: write a number, a dash and one of "
                    f"{', '.join(u.replace('_', '-') for u in cls.UNITS)}, such as 2M-tokens or 200-updates"
                )
            limits[unit] = amount if unit == "seconds" else round(amount)
        return cls(**limits)

    def __str__(self) -> str:
        limits = ((unit.replace("_", "-"), getattr(self, unit)) for unit in self.UNITS)
        return ",".join(f"{limit}-{unit}" for unit, limit in limits if limit is not None)

    def share(self, spent: Mapping[str, float]) -> float:
        """The largest share of any limit that is spent, 1 or more when the budget is used up."""
        return max(spent.get(unit, 0.0) / getattr(self, unit) for unit in self.UNITS if getattr(self, unit) is not None)


def generator(seed: int, stream: str, step: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one use, a function of (seed, stream, step): nothing to save, nothing to skip on resume."""
    words = np.random.SeedSequence([seed, step, *stream.encode()]).generate_state(2, np.uint32)
    made = torch.Generator(device=device)
    made.manual_seed(int(words[0]) << 31 ^ int(words[1]))
    return made


@dataclass
class Clock:
    """A learner's time: steps taken, what they cost, and the share of the budget spent. Schedules and random streams are
    functions of it, so that a learner has no generator to save and none to skip on resume."""

    seed: int = 0
    step: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    share: float = 0.0
    _since: float | None = field(default=None, repr=False, compare=False)

    def generator(self, stream: str, device: str | torch.device = "cpu") -> torch.Generator:
        return generator(self.seed, stream, self.step, device)

    def advance(self, metrics: Mapping[str, Any], budget: Budget | None) -> None:
        """One step later: adds up every ``cost/<unit>`` of ``metrics``, and wall time where the budget limits it."""
        self.step += 1
        if budget is not None and budget.seconds is not None:
            now = monotonic()
            self.spent["seconds"] = self.spent.get("seconds", 0.0) + (now - (self._since or now))
            self._since = now
        for name, value in metrics.items():
            if name.startswith("cost/"):
                self.spent[name[5:]] = self.spent.get(name[5:], 0.0) + float(value)
        self.spent["updates"] = self.step
        self.share = 0.0 if budget is None else budget.share(self.spent)

    def start(self) -> None:
        """Begin to count wall time."""
        self._since = monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self.step, "spent": dict(self.spent), "share": self.share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self.step, self.spent, self.share = (
            state["seed"],
            state["step"],
            dict(state["spent"]),
            state["share"],
        )


@runtime_checkable
class Memory(Protocol):
    """What a part remembers between calls; the learner owns it, hands it in at each call and saves it."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stage's exchangeable piece: hyperparameters, never state.

    ``needs`` and ``gives`` name the columns of the record that it reads and writes; they are checked when a learner is built.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()

    def memory(self) -> Memory | None:
        """A fresh memory for one learner, or None when the part remembers nothing."""
        return None


@dataclass
class Collected:
    """Named batches of experience (``rollouts``, ``demonstrations``, …), and numbers for the log with what was spent."""

    batches: dict[str, Any]
    metrics: dict[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Collector(Part):
    """Gathers experience: how the policy meets the problem."""

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        raise NotImplementedError

    def held_out(self, policy: Any, problem: Any) -> Any:
        """A held-out batch of the same form, on which the objective is measured at evaluations; None: there is none."""
        return None


class Policy(Protocol):
    """Who acts. ``act`` serves environments; a language policy has ``extend`` as well (see ``models.language``)."""

    def act(
        self, observation: Any, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Any, dict[str, Any], Any]: ...
    def evaluate(self, batch: Any, want: Sequence[str] = ("logp",)) -> Outputs: ...


class Learner(Protocol):
    """Everything trainable, from a tabular bandit to a language model.

    ``step`` does one unit of its own choosing and returns numbers for the log (tensors are read only when logged), among
    them what it spent: ``cost/tokens``, ``cost/env_steps``. ``state_dict`` holds nested dictionaries and lists of tensors,
    numbers, strings, booleans and None, so that it can be saved without pickling.
    """

    policy: Any  # what evaluation acts with; may be a composite of several, or None
    clock: Clock  # advanced by the learner at the end of each step

    def step(self) -> Mapping[str, Tensor | float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Method(Protocol):
    """A frozen dataclass: its fields are the hyperparameters and the parts of a method."""

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> Learner: ...


class Problem(Protocol):
    """What is asked, with training and held-out instances kept apart. It knows nothing of models or methods."""

    name: str

    def evaluate(self, act: Any, rng: torch.Generator) -> dict[str, float]: ...
