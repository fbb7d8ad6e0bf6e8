"""Rules of thumb for some Gymnasium environments, as somebody may write them down after reading a description: priors.

observations [N, S] → actions [N, A], in the environment's own units.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from policyopt.problems.control.environments import Array


def mountain_car(observations: Array) -> Array:
    """MountainCarContinuous: push the way the car rolls, once it rolls. Reaches the goal in about 4 episodes of 10."""
    velocity = observations[:, 1:2]
    return np.where(np.abs(velocity) > 0.005, np.sign(velocity), 0.0)


def pendulum(observations: Array) -> Array:
    """Pendulum: pump energy while it hangs, hold it near the top."""
    cosine, sine, speed = observations.T
    missing = 30.0 * (1.0 - cosine) - speed**2
    pump = np.where(missing > 0.0, 2.0 * np.sign(speed), -2.0 * np.sign(speed))
    hold = -10.0 * np.arctan2(sine, cosine) - 2.0 * speed
    return np.clip(np.where(cosine > 0.9, hold, pump), -2.0, 2.0)[:, None]


RULES: dict[str, Callable[[Array], Array]] = {
    "gym-MountainCarContinuous-v0": mountain_car,
    "gym-Pendulum-v1": pendulum,
}
