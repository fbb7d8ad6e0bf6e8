"""Methods in stages are killed in every stage and resumed: the same weights, and nothing is trained again."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.rollouts.language import Groups
from policyopt.types import Budget


def start(name: str):
    """Two updates a stage on a few prompts."""
    problem = registry.problem("bigrams:train_size=40,test_size=8,letters=5,length=6")
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    method, stages = registry.method(name), []
    for stage in method.stages:
        part = stage.method
        if isinstance(part.collector, Groups):
            samples = min(part.collector.samples, 8)
            part = replace(part, collector=replace(part.collector, prompts=8, samples=samples))
        stages.append(replace(stage, method=part, until=stage.until and Budget(updates=2)))
    whole = Budget(updates=2 * len(stages))
    return replace(method, stages=tuple(stages)).learner(problem, policy, seed=0, budget=whole), len(stages)


@pytest.mark.parametrize("name", ["rso", "mpo", "mpo:toward_initial", "rto", "tgdpo"])
def test_resume_in_every_stage_is_bit_identical(name: str) -> None:
    whole, stages = start(name)
    middles = []
    for step in range(2 * stages):
        if step % 2:
            middles.append(deepcopy(whole.state_dict()))
        whole.step()
    for position, state in enumerate(middles):
        again, _ = start(name)
        again.load_state_dict(state)
        assert again.position == position
        while again.clock.step < whole.clock.step:
            again.step()
        for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
            assert torch.equal(a, b)
