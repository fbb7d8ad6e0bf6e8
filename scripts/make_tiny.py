"""Make the checkpoint that ships with the package: a small Llama-shaped model that imitated noisy arithmetic.

    python scripts/make_tiny.py [folder]        about 4 minutes on one core; the same seed gives the same weights

It saw demonstrations of the default problem only, each of whose steps is wrong with probability 0.15, so it answers some 45%
of the held-out expressions: a start from which reinforcement learning has something to improve and something to work with.
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

UPDATES, SEED = 3000, 1


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # the result then does not depend on the machine's number of cores
    imitation = replace(
        registry.method("sft"), optimizer=Adam(learning_rate=3e-3, schedule=Cosine(warmup=50, final=0.01))
    )
    policy, problem = load_policy("fresh", seed=SEED, device="cpu"), registry.problem("arithmetic")
    result = run(
        imitation,
        problem,
        policy,
        budget=Budget(updates=UPDATES),
        seed=SEED,
        cadence=Cadence(evaluations=6),
        progress=True,
    )
    policy.save(folder)
    print(f"held-out accuracy {result.curve('eval/accuracy')[1]}, saved to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
