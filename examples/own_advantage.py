"""Your own idea of an advantage in GRPO: the rank of a response within its group, instead of its normalized reward.

    python examples/own_advantage.py [updates]

A part is a frozen dataclass: it names the columns that it reads and gives (checked before training starts), and its fields
are its hyperparameters. Methods are dataclasses too, so that `replace` exchanges one part and leaves the rest.
"""

import sys
from dataclasses import dataclass, replace

import torch

from policyopt import train
from policyopt.credit.groups import Credit, over_steps
from policyopt.methods import grpo


@dataclass(frozen=True, kw_only=True)
class Ranked(Credit):
    """Advantage = scale · (share of the group that is worse - share that is better), in [-scale, scale]."""

    needs = ("scores", "group")
    gives = ("advantage",)
    scale: float = 1.0

    def __call__(self, batch, memory=None):
        reward = batch.scores["reward"]
        together = batch.group[:, None] == batch.group[None, :]
        better = torch.sign(reward[:, None] - reward[None, :]) * together
        return batch.replace(advantage=over_steps(self.scale * better.sum(1) / together.sum(1), batch))


if __name__ == "__main__":
    updates = sys.argv[1] if len(sys.argv) > 1 else "60"
    method = replace(grpo.method(), credit=(Ranked(scale=1.5),))
    result = train(method, "arithmetic", "tiny", budget=f"{updates}-updates", evaluations=4)
    print(f"accuracy: {result.curve('eval/accuracy')[1][0]:.2f} before, {result.last('eval/accuracy'):.2f} after")
