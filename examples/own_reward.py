"""Your own data and your own reward function: here a model learns to answer in even digits.

    python examples/own_reward.py [updates]

A row needs a `prompt`; every other column is passed to the reward functions by its name. A reward function returns one
number a response. From the command line the same is: policyopt train grpo --problem dataset:rows.jsonl --reward rewards.py:even
"""

import sys

from policyopt import train
from policyopt.problems.language.dataset import DatasetProblem

rows = [{"prompt": f"{a}+{b}=", "digits": 3} for a in range(20) for b in range(20)]


def even(completions, digits, **columns):
    """The share of the wanted number of digits that are there and even."""
    return [sum(c in "02468" for c in text[:n]) / n for text, n in zip(completions, digits, strict=True)]


problem = DatasetProblem(
    name="even-digits",
    train=rows[:350],
    test=rows[350:],
    rewards={"even": even},
    max_new_tokens=4,
)

if __name__ == "__main__":
    updates = sys.argv[1] if len(sys.argv) > 1 else "60"
    result = train("grpo", problem, "tiny", budget=f"{updates}-updates", evaluations=4)
    print(f"even digits: {result.curve('eval/even')[1][0]:.2f} before, {result.last('eval/even'):.2f} after")
    print(f"everything about the run is in {result.folder}")
