import pickle

import pytest
import torch

from policyopt.models.thoughts import ContinuousThoughts, MultiToken
from policyopt.problems.language.mnns import MinimumSignedSum
from policyopt.rollouts.language import Groups
from policyopt.studies.cot2 import SHUFFLED, claim, half_imitated, model
from policyopt.types import Clock


@pytest.mark.parametrize(
    "name", ["tokens, width 16", "mixtures, width 16", "grpo, shuffled rewards", "grpo, dirichlet"]
)
def test_arms_run_repeat_and_report_what_gates_read(name):
    run = pickle.loads(pickle.dumps(claim.arms[name]))
    metrics = run(100, True)
    assert metrics == claim.arms[name](100, True)
    assert {gate.metric for gate in claim.gates if name in gate.arms} <= set(metrics)


def test_arms_of_reinforcement_begin_with_the_same_weights():
    assert half_imitated(100, True) is half_imitated(100, True)
    metrics = [claim.arms[name](100, True)["before"] for name in ("grpo", "grpo, shuffled rewards")]
    assert metrics[0] == metrics[1]


def test_shuffling_keeps_each_groups_rewards():
    problem = MinimumSignedSum(max_new_tokens=4)
    own = ContinuousThoughts(model(problem, 16, 0), thoughts=3, rule=MultiToken())
    plain = Groups(prompts=SHUFFLED.prompts, samples=SHUFFLED.samples)
    rewards = []
    for collector in (plain, SHUFFLED):
        batch = collector(own, problem, Clock(seed=1)).batches["rollouts"]
        rewards.append(batch.scores["reward"].view(-1, 8))
    assert torch.equal(rewards[0].sum(1), rewards[1].sum(1))
    assert not torch.equal(*rewards)


def test_scored_seeds_are_no_tuning_seeds():
    assert len(claim.seeds) == 5
    assert not set(claim.seeds) & {100, 101}
