"""Make the checkpoint that ships with the package: a small Llama-shaped model that imitated noisy arithmetic.

    python scripts/make_tiny.py [folder]        about 6 minutes on one core; the same seeds give the same weights

It saw demonstrations of the default problem only, each of whose steps is wrong with probability 0.15, and answers about half
of the held-out expressions, as the demonstrations do: a start from which reinforcement learning has something to improve and
something to work with. Two rounds of cosine decay: after the first one it still falls short of its demonstrations.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from policyopt import registry
from policyopt.learners.update import Adam, Cosine
from policyopt.models.load import load_policy
from policyopt.models.tiny import SHIPPED
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget

SEED = 1  # of the weights
ROUNDS = (
    (3000, 1, Cosine(warmup=50, final=0.01)),
    (4000, 7, Cosine(warmup=100)),
)  # updates, seed of the data's order, schedule


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # the result then does not depend on the machine's number of cores
    policy, problem = load_policy("fresh", seed=SEED, device="cpu"), registry.problem("arithmetic")
    for updates, seed, schedule in ROUNDS:
        imitation = replace(registry.method("sft"), optimizer=Adam(learning_rate=3e-3, schedule=schedule))
        budget, cadence = Budget(updates=updates), Cadence(evaluations=6)
        result = run(imitation, problem, policy, budget=budget, seed=seed, cadence=cadence, progress=True)
        print(f"held-out accuracy {result.curve('eval/accuracy')[1]}")
    policy.save(folder)
    print(f"saved to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
