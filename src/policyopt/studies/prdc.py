"""PRDC's claim: where a behaviour is bad in places, the nearest pair of the whole data set is the better thing to follow.

The data are walks to a goal, good and random in alternate cells of the plane. PRDC, TD3+BC and behaviour cloning have the
same data, networks, batches and updates. On a second data set, good everywhere, PRDC must not be worse than TD3+BC.
"""

from __future__ import annotations

from dataclasses import replace

from policyopt.learners.data import Standardize
from policyopt.methods import bc, prdc, td3_bc
from policyopt.studies.claim import Claim, paired_difference
from policyopt.studies.offline import Learned, reduced

SLACK = 0.39  # 5% of what lies between the behaviour's return (-12.6) and that of the straight way (-4.8)
PRDC = reduced(prdc.nearest(state_weight=3.0))
TD3_BC = reduced(td3_bc.method())

claim = Claim(
    slug="prdc",
    paper="2306.06569",
    text="On data that are bad in alternate places, pulling to the nearest pair earns more than pulling to the data's action.",
    arms={
        "PRDC": Learned(method=PRDC),
        "TD3+BC": Learned(method=TD3_BC),
        "BC": Learned(method=replace(reduced(bc.method()), standardize=Standardize())),
        "PRDC, clean": Learned(method=PRDC, good=1.0),
        "TD3+BC, clean": Learned(method=TD3_BC, good=1.0),
    },
    gates=(
        paired_difference("return", "PRDC", "TD3+BC", above=0.0),
        paired_difference("return", "PRDC", "BC", above=0.0),
        paired_difference("return", "PRDC, clean", "TD3+BC, clean", above=-SLACK),
        paired_difference("value_error", "PRDC", "TD3+BC", below=0.0, required=False),
    ),
    seeds=range(5),
    budget="20000 logged transitions and 6000 updates with batches of 128 an arm and seed",
    tuning=(
        "on the data of seed 100: PRDC's state weight among 0.3, 1 and 3, TD3+BC's weight of the values among 1, 2.5 and 5, "
        "three tries each; behaviour cloning has nothing to settle; networks, rates and budget fixed beforehand"
    ),
    axis="updates",
)
