"""A2PR's claim: on data of which a tenth is good, following advantages beats following everything.

The data are walks to a goal whose actions are good with probability 0.1 and random otherwise. A2PR, TD3+BC and A2PR
without its autoencoder have the same data, networks, rate, batches and updates. On a second data set, good throughout,
A2PR must not be worse than TD3+BC.
"""

from __future__ import annotations

from policyopt.methods import a2pr, td3_bc
from policyopt.studies.claim import Claim, lower_bound, paired_difference
from policyopt.studies.offline import Learned, reduced

UPDATES, RATE = 3000, 1e-3
SLACK = 1.43  # 5% of what lies between the behaviour's return (-33.5) and that of the straight way (-4.8)
A2PR = reduced(a2pr.method(), RATE)
TD3_BC = reduced(td3_bc.method(), RATE)

claim = Claim(
    slug="a2pr",
    paper="2405.19909",
    text="On data of which a tenth is good, pulling to the action of the larger advantage earns more than TD3+BC.",
    arms={
        "A2PR": Learned(method=A2PR, good=0.1, updates=UPDATES),
        "TD3+BC": Learned(method=TD3_BC, good=0.1, updates=UPDATES),
        "A2PR, data only": Learned(method=reduced(a2pr.data_only(), RATE), good=0.1, updates=UPDATES),
        "A2PR, clean": Learned(method=A2PR, good=1.0, updates=UPDATES),
        "TD3+BC, clean": Learned(method=TD3_BC, good=1.0, updates=UPDATES),
    },
    gates=(
        paired_difference("return", "A2PR", "TD3+BC", above=0.0),
        paired_difference("return", "A2PR, clean", "TD3+BC, clean", above=-SLACK),
        paired_difference("return", "A2PR", "A2PR, data only", above=0.0, required=False),
        lower_bound("advantage_gain", "A2PR", above=-1e-6, required=False),
    ),
    seeds=range(5),
    budget="20000 logged transitions and 3000 updates with batches of 128 an arm and seed",
    tuning="none, for no arm: the authors' weights (w₂ = 0.5, α = 2.5 in all); networks, rate and budget fixed beforehand",
    axis="updates",
)
