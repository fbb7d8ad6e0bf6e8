"""Control problems: what a simulator has to offer, and any Gymnasium environment as a batch of them.

A problem makes environments that run side by side. They reset themselves, but ``step`` returns the observations BEFORE
the reset: where an episode is cut by a limit, a critic bootstraps from the state in which it was cut.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces as gym
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Act: TypeAlias = Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor], Any]]

EVALUATION_STEPS = 10_000  # an episode of an environment without a limit of its own ends here


@dataclass(frozen=True)
class Spaces:
    """Sizes: numbers in an observation; discrete choices, or numbers in an action; objectives (0: a scalar reward).

    Policies and data know continuous actions in [−1, 1]^A alone; ``low`` and ``high`` [A] are the bounds in the
    environment's own units that −1 and 1 stand for. Empty where the two are the same. Where an action consists of several
    discrete choices, ``choices`` [A] says among how many each of them is.
    """

    observation: int
    action: int
    discrete: bool
    objectives: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    choices: tuple[int, ...] = ()


class Transition(NamedTuple):
    """What a step of n environments gave: next_observations [n, S], before any reset; rewards [n] or [n, K];
    terminated, truncated [n]."""

    next_observations: Array
    rewards: Array
    terminated: Array
    truncated: Array


class VectorEnvironment(Protocol):
    """n environments side by side. ``observations`` [n, S] float32 is what to act on, after any reset."""

    @property
    def observations(self) -> Array: ...

    def step(self, actions: Array) -> Transition:
        """actions [n] (discrete), [n, A] (several choices), or [n, A] in [−1, 1], which stands for the bounds of the
        action space; numbers beyond are clipped."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@torch.no_grad()
def episode_returns(
    environment: VectorEnvironment, act: Act, rng: torch.Generator, memory: Any = None, gamma: float = 1.0
) -> tuple[Array, Array]:
    """The first episode of each environment, acting greedily → (discounted returns [n] or [n, K], lengths [n]).

    ``memory`` is what the policy is given at the start and hands on from step to step.
    """
    alive = np.ones(len(environment.observations), bool)
    total: Array | float = 0.0
    length, factor = np.zeros(len(alive), np.int64), 1.0
    while alive.any() and length.max() < EVALUATION_STEPS:
        action, _, memory = act(torch.from_numpy(environment.observations), memory, rng, True)
        _, rewards, terminated, truncated = environment.step(action.cpu().numpy())
        total = total + factor * (rewards.T * alive).T.astype(np.float64)
        length += alive
        factor *= gamma
        alive &= ~(terminated | truncated)
    return np.asarray(total), length


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control problem; ``episodes`` are played in an evaluation."""

    episodes: int = 10

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def spaces(self) -> Spaces:
        raise NotImplementedError

    def make(self, n: int, seed: int) -> VectorEnvironment:
        raise NotImplementedError

    def evaluate(self, act: Act, rng: torch.Generator) -> dict[str, float]:
        """Episodes from start states that ``rng`` draws, played greedily.

        With K objectives each episode has its own preference, drawn uniformly from the simplex and handed to ``act`` as
        its first memory [n, K]; ``eval/return`` is then the mean of preference · returns, the expected utility.
        """
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        environment, objectives = self.make(self.episodes, seed), self.spaces.objectives
        if not objectives:
            returns, length = episode_returns(environment, act, rng)
            return {"eval/return": float(returns.mean()), "eval/episode_length": float(length.mean())}
        preference = np.random.default_rng(seed).dirichlet(np.ones(objectives), self.episodes)
        returns, length = episode_returns(environment, act, rng, torch.from_numpy(preference).float())
        each = {f"eval/return_{i}": float(value) for i, value in enumerate(returns.mean(0))}
        utility = float((preference * returns).sum(1).mean())
        return {"eval/return": utility, **each, "eval/episode_length": float(length.mean())}


@dataclass(frozen=True, kw_only=True)
class GymnasiumProblem(Control):
    """Any registered Gymnasium (or MO-Gymnasium) environment with flat observations; ``options`` go to its constructor.

    Observations: Box (flattened) or Discrete (one-hot). Actions: Box, Discrete or MultiDiscrete. Rewards: a
    number, or a vector where the environment has a ``reward_space``.
    """

    id: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.id not in gymnasium.registry and find_spec("mo_gymnasium") is not None:
            import_module("mo_gymnasium")  # registers its environments
        if self.id not in gymnasium.registry:
            near = get_close_matches(self.id, gymnasium.registry, n=3, cutoff=0.0)
            raise ValueError(
                f"no Gymnasium environment is called {self.id!r}; nearest: {', '.join(near)}. Environments of other "
                "packages have to be installed (pip install policyopt[objectives] for MO-Gymnasium)"
            )

    @property
    def name(self) -> str:
        return f"gym-{self.id}"

    def single(self) -> gymnasium.Env[Any, Any]:
        """One fresh environment. Raises ValueError where a package that it needs is missing or an option is wrong."""
        try:
            return gymnasium.make(self.id, disable_env_checker=True, **self.options)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise ValueError(f"{self.id} needs another package: {error} (pip install policyopt[control])") from error
        except TypeError as error:
            raise ValueError(f"{self.id} does not take the options {dict(self.options)}: {error}") from error

    @cached_property
    def _probe(self) -> gymnasium.Env[Any, Any]:
        return self.single()

    @cached_property
    def spaces(self) -> Spaces:  # type: ignore[override]
        seen, done = self._probe.observation_space, self._probe.action_space
        if not isinstance(seen, gym.Discrete | gym.Box):
            raise ValueError(f"{self.id}: observations must be a Box or Discrete space, got {seen}; flatten them")
        if not isinstance(done, gym.Discrete | gym.Box | gym.MultiDiscrete):
            raise ValueError(f"{self.id}: actions must be a Box, Discrete or MultiDiscrete space, got {done}")
        rewards = getattr(self._probe.unwrapped, "reward_space", None)
        bounds = [done.low.ravel().tolist(), done.high.ravel().tolist()] if isinstance(done, gym.Box) else []
        return Spaces(
            observation=int(seen.n) if isinstance(seen, gym.Discrete) else int(np.prod(seen.shape)),
            action=int(done.n) if isinstance(done, gym.Discrete) else int(np.prod(done.shape)),
            discrete=not isinstance(done, gym.Box),
            objectives=0 if rewards is None else int(rewards.shape[0]),
            low=tuple(bounds[0]) if bounds else (),
            high=tuple(bounds[1]) if bounds else (),
            choices=tuple(done.nvec.ravel().tolist()) if isinstance(done, gym.MultiDiscrete) else (),
        )

    def make(self, n: int, seed: int) -> GymnasiumEnvironments:
        assert self.spaces
        return GymnasiumEnvironments(self.single, n, seed)


class GymnasiumEnvironments:
    """n Gymnasium environments. Each episode begins with a seed of its own, so that a saved state is the number of the
    episode and its actions so far: loading plays them again."""

    def __init__(self, single: Callable[[], gymnasium.Env[Any, Any]], n: int, seed: int) -> None:
        self.environments, self.seed = [single() for _ in range(n)], seed
        self.observation_shape = self.environments[0].observation_space.shape or ()
        self.encode = partial(_encoded, self.environments[0].observation_space)
        self.decode = _decoder(self.environments[0].action_space)
        self.episode, self.age = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.past: deque[Array] = deque()
        several = getattr(self.environments[0].unwrapped, "reward_space", None)
        self.reward_shape: tuple[int, ...] = () if several is None else several.shape
        self.observations = self._seen([self._reset(i) for i in range(n)])

    def _reset(self, i: int) -> Any:
        words = np.random.SeedSequence([self.seed, i, int(self.episode[i])]).generate_state(1)
        return self.environments[i].reset(seed=int(words[0]))[0]

    def step(self, actions: Array) -> Transition:
        """Raises ValueError, with environment and step, where one fails, or returns another shape or a number that is not
        finite."""
        played = [self._played(i, action) for i, action in enumerate(self.decode(actions))]
        observations, rewards, terminated, truncated = zip(*played, strict=True)
        result = Transition(self._seen(observations), self._rewards(rewards), np.array(terminated), np.array(truncated))
        self._check(result, actions)
        self.past.append(actions)
        self.age += 1
        self._restart(result)
        return result

    def _played(self, i: int, action: Any) -> tuple[Any, ...]:
        try:
            return self.environments[i].step(action)[:4]
        except Exception as error:
            raise ValueError(f"{self._where(i)} failed at the action {action}: {error!r}") from error

    def _where(self, i: int) -> str:
        which = f"environment {i} of {len(self.environments)}, {self.environments[i]}"
        return f"{which}: step {self.age[i]} of episode {self.episode[i]}"

    def _seen(self, observations: Sequence[Any]) -> Array:
        """Encoded. Raises ValueError where one has not the shape of the space."""
        if (i := _odd(observations, self.observation_shape)) is not None:
            space, shape = self.environments[i].observation_space, np.shape(observations[i])
            raise ValueError(f"{self._where(i)} gave an observation of the shape {shape}; its space is {space}")
        return self.encode(observations)

    def _rewards(self, rewards: Sequence[Any]) -> Array:
        """[n] or [n, K] float32. Raises ValueError where one has not the shape of a reward."""
        if (i := _odd(rewards, self.reward_shape)) is not None:
            raise ValueError(f"{self._where(i)} gave the reward {rewards[i]!r}; expected the shape {self.reward_shape}")
        return np.array(rewards, np.float32)

    def _restart(self, result: Transition) -> None:
        ended = np.flatnonzero(result.terminated | result.truncated)
        self.episode[ended] += 1
        self.age[ended] = 0
        self.observations = result.next_observations
        if len(ended):
            self.observations = self.observations.copy()
            self.observations[ended] = self.encode([self._reset(int(i)) for i in ended])
        while len(self.past) > self.age.max():
            self.past.popleft()

    def _check(self, result: Transition, actions: Array) -> None:
        if np.isfinite(result.next_observations).all() and np.isfinite(result.rewards).all():
            return
        numbers = np.concatenate([result.next_observations, result.rewards.reshape(len(actions), -1)], 1)
        i = int(np.flatnonzero(~np.isfinite(numbers).all(1))[0])
        raise ValueError(
            f"{self._where(i)} gave the observation {result.next_observations[i]} and the reward {result.rewards[i]} after "
            f"the action {actions[i]}: the simulation broke down"
        )

    def state_dict(self) -> dict[str, Any]:
        past = torch.from_numpy(np.stack(self.past)) if self.past else None
        return {
            "episode": torch.from_numpy(self.episode.copy()),
            "age": torch.from_numpy(self.age.copy()),
            "past": past,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode, self.age = state["episode"].numpy().copy(), state["age"].numpy().copy()
        self.past = deque(() if state["past"] is None else state["past"].numpy())
        legal = [self.decode(actions) for actions in self.past]
        latest = []
        for i, environment in enumerate(self.environments):
            observation = self._reset(i)
            for actions in legal[len(legal) - int(self.age[i]) :]:
                observation = environment.step(actions[i])[0]
            latest.append(observation)
        self.observations = self.encode(latest)


def _odd(values: Sequence[Any], wanted: tuple[int, ...]) -> int | None:
    """The first of the values that has another shape."""
    shapes = list(map(np.shape, values))
    return None if shapes.count(wanted) == len(shapes) else next(i for i, s in enumerate(shapes) if s != wanted)


def _encoded(space: gymnasium.Space[Any], observations: Any) -> Array:
    """n observations → [n, S] float32, discrete ones as one-hot rows."""
    if isinstance(space, gym.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[np.asarray(observations) - int(space.start)]
    return np.asarray(observations, np.float32).reshape(len(observations), -1)


def _decoder(space: gymnasium.Space[Any]) -> Callable[[Array], Any]:
    """[n] or [n, A] choices, or [n, A] numbers → n actions of the environment's own kind."""
    if isinstance(space, gym.Discrete):
        first = int(space.start)
        return lambda actions: (actions + first).tolist()
    if isinstance(space, gym.MultiDiscrete):
        return lambda actions: actions.reshape(-1, *space.nvec.shape) + space.start
    assert isinstance(space, gym.Box)
    box, kind, shape = UnitBox(space.low, space.high), space.dtype, space.shape
    return lambda actions: box.from_unit(actions.reshape(-1, *shape)).astype(kind)


class UnitBox:
    """The box from ``low`` to ``high`` [A] as [−1, 1]^A; numbers without finite bounds stay as they are."""

    def __init__(self, low: Any, high: Any) -> None:
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        bounded = np.isfinite(low) & np.isfinite(high) & (low < high)
        self.least, self.most = np.where(bounded, -1.0, low), np.where(bounded, 1.0, high)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self.middle, self.half = 0.5 * (low + high), 0.5 * (high - low)

    def from_unit(self, actions: Array) -> Array:
        """Actions in [−1, 1], clipped, in the box."""
        return np.asarray(self.middle + self.half * np.clip(actions, self.least, self.most))

    def to_unit(self, actions: Array) -> Array:
        """What is in the environment's units, in [−1, 1]."""
        return np.asarray((actions - self.middle) / self.half, np.float32)


def parse(text: str = "", *, episodes: int = 10) -> GymnasiumProblem:
    """``"CartPole-v1"``, ``"fruit-tree-v0,depth=5"`` (options of the environment behind its id) → the problem."""
    id_, *pieces = text.split(",")
    options = {}
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if not equals:
            raise ValueError(f"cannot read the option {piece!r} of {id_}: write name=value")
        try:
            options[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name.strip()] = value
    return GymnasiumProblem(id=id_, options=options, episodes=episodes)
