"""Logs of acting: episodes side by side, written down one after the other, cut and joined to mixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policyopt.credit.episodes import complete_episodes, numbered
from policyopt.types import Transitions

SIDE_BY_SIDE = 16


class UniformPolicy:
    """Acts at random: uniform over the box or the choices."""

    def __init__(self, spaces: Any) -> None:
        self.spaces = spaces

    def act(self, observation: Tensor, memory: Any, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Any]:
        if self.spaces.discrete:
            return torch.randint(self.spaces.action, (len(observation),), generator=rng), {}, memory
        return 2.0 * torch.rand(len(observation), self.spaces.action, generator=rng) - 1.0, {}, memory


def logged(
    policy: Any, problem: Any, steps: int, seed: int, rng: torch.Generator, progress: Callable[[int], None]
) -> Transitions:
    """``steps`` transitions [N] of the policy acting as in training, in whole episodes but for those that the end cuts, which
    are incomplete.

    ``progress`` is told the number of steps after each move. Up to 16 environments run side by side.
    """
    width = max(1, min(SIDE_BY_SIDE, steps // 1000))
    environment, memory, moves = problem.make(width, seed), None, []
    for _ in range(-(-steps // width)):
        observation = environment.observations
        action, _, memory = policy.act(torch.from_numpy(observation), memory, rng)
        step = environment.step(action.numpy())
        moves.append(
            (observation, action.numpy(), step.rewards, step.next_observations, step.terminated, step.truncated)
        )
        progress(width)
    columns = [np.stack(c, 1) for c in zip(*moves, strict=True)]  # [width, T, …]
    last = np.zeros((width, len(moves)), bool)
    last[:, -1] = True
    flat = [torch.from_numpy(c.reshape(-1, *c.shape[2:])[:steps].copy()) for c in (*columns, last)]
    return _closed(flat)


def _closed(columns: Sequence[Tensor], begins: bool = True) -> Transitions:
    """A log of the columns observation, action, reward, next_observation, terminated, truncated and last, [N] each.

    Nothing follows the rows that are ``last``: an episode that goes on there is truncated and incomplete, as is the first
    one unless the log ``begins`` with its beginning. A termination is no truncation.
    """
    observation, action, reward, following, terminated, truncated, last = columns
    last[-1] = True
    cut = last & ~terminated & ~truncated
    truncated = (truncated | cut) & ~terminated
    episode = numbered(terminated | truncated)
    complete = torch.ones(int(episode[-1]) + 1, dtype=torch.bool)
    complete[episode[cut]] = False
    complete[0] &= begins
    return Transitions(
        observation=observation,
        action=action,
        reward=reward,
        next_observation=following,
        terminated=terminated,
        truncated=truncated,
        episode=episode,
        complete=complete[episode],
        batch_size=[len(reward)],
    )


def replayed(memory: Any, steps: int) -> Transitions:
    """The latest ``steps`` transitions of one environment's replay memory; an episode ends where the next row does not
    begin where this one led. Raises ValueError where the memory holds fewer or its rows don't follow one another."""
    if len(memory) < steps:
        raise ValueError(f"the run's memory holds {len(memory)} transitions, {steps} were asked for")
    before = min(len(memory) - steps, 1)  # a row that tells whether the first one begins an episode
    order = (memory.added - steps - before + torch.arange(before + steps)) % memory.capacity
    names = ("observation", "action", "reward", "next_observation", "terminated")
    columns = [memory.columns[name][order] for name in names]
    apart = ~torch.isclose(columns[0][1:], columns[3][:-1], atol=1e-6).all(1)
    if bool(apart.float().mean() > 0.5) and steps > 2:
        raise ValueError(
            "the run's memory mixes several environments: its episodes can't be told apart (environments=1)"
        )
    begins = memory.added == steps or (before == 1 and bool(columns[4][0] | apart[0]))
    ended = torch.cat([apart, apart.new_zeros(1)])
    return _closed([column[before:] for column in (*columns, ended, torch.zeros_like(ended))], begins)


def beginning(data: Transitions, steps: int) -> Transitions:
    """The first ``steps`` transitions of a log, the last episode incomplete where this cuts it."""
    kept = data[:steps].clone()
    kept.complete = complete_episodes(data)[kept.episode]
    if not bool(kept.terminated[-1] | kept.truncated[-1]):
        kept.truncated[-1] = True
        kept.complete[kept.episode == kept.episode[-1]] = False
    return kept


def joined(parts: Sequence[Transitions]) -> Transitions:
    """Logs one after the other, their episodes counted on."""
    shifted, count = [], 0
    for part in parts:
        shifted.append(part.replace(episode=part.episode + count, complete=complete_episodes(part)[part.episode]))
        count += int(part.episode[-1]) + 1
    rows: Any = shifted  # torch.cat joins records as it joins tensors
    whole: Any = torch.cat(rows)
    return whole  # type: ignore[no-any-return]
