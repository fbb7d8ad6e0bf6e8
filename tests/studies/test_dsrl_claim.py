import pytest

from policyopt.studies.dsrl import Base, claim, summary


def test_summary_is_the_end_and_the_mean_of_the_curve():
    found = summary([0.0, 100.0, 300.0], [0.0, 1.0, 0.5])
    assert found["success"] == 0.5
    assert found["auc"] == pytest.approx((50.0 + 150.0) / 300.0)


def test_every_arm_that_learns_has_the_same_budget_and_networks():
    learned = [arm for arm in claim.arms.values() if not isinstance(arm, Base)]
    assert len({arm.method.collector for arm in learned}) == 1
    assert len({arm.method.batch for arm in learned}) == 1
    assert len({arm.method.rounds[0].repeat for arm in learned}) == 1
    assert len({update.optimizer for arm in learned for update in arm.method.updates()}) == 1
    models = {update.model for arm in learned for update in arm.method.updates() if update.trains == "critic"}
    assert len(models) == 1


def test_a_smoke_run_reports_what_the_gates_ask():
    for name in ("base", "SAC"):
        assert {"success", "auc", "curve/x", "curve/success"} <= claim.arms[name](100, True).keys()
