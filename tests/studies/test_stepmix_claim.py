import pickle

import pytest

from policyopt.studies.stepmix import claim


@pytest.mark.parametrize("arm", ["stepmix 5×3×4", "epsmix 5×5×3", "ucbvi 5×5×3", "stepmix offline 5×3×4"])
def test_arms_run_repeat_and_report_what_gates_read(arm):
    run = pickle.loads(pickle.dumps(claim.arms[arm]))
    metrics = run(100, True)
    assert metrics == claim.arms[arm](100, True)
    assert {gate.metric for gate in claim.gates} <= set(metrics)
    assert (metrics["violations"] > 0) == (metrics["worst_margin"] < 0) == (arm == "ucbvi 5×5×3")


def test_scored_seeds_are_no_tuning_seeds():
    assert len(claim.seeds) == 10
    assert not set(claim.seeds) & {100, 101, 102}
