"""The policy of a control problem: a perceptron, Gaussian or (once or several times) categorical, as the actions ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from policyopt.models.categorical import CategoricalPolicy, MultiCategoricalPolicy
from policyopt.models.gaussian import GaussianPolicy
from policyopt.models.mlp import Architecture, PerceptronPolicy
from policyopt.types import generator


@dataclass(frozen=True, kw_only=True)
class MLP(Architecture):
    """Hidden layers of policy and critic, and whether observations are standardized by their running moments."""

    hidden: tuple[int, ...] = (64, 64)
    standardize: bool = True
    several: ClassVar[type[MultiCategoricalPolicy]] = MultiCategoricalPolicy

    def build(self, problem: Any, seed: int) -> PerceptronPolicy:
        """Raises ValueError for a problem without observation and action spaces."""
        spaces = getattr(problem, "spaces", None)
        if spaces is None:
            raise ValueError(
                f"{getattr(problem, 'name', problem)!r} is no control problem (it has no observation and action spaces): "
                "choose one such as gym:CartPole-v1 or point-mass"
            )
        rng, options = generator(seed, "policy"), {"objectives": spaces.objectives, "standardize": self.standardize}
        if spaces.choices:
            return self.several(spaces.observation, spaces.choices, self.hidden, rng, **options)
        kind = CategoricalPolicy if spaces.discrete else GaussianPolicy
        return kind(spaces.observation, spaces.action, self.hidden, rng, **options)
