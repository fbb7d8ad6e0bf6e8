"""From acting to a data set and back: ``policyopt log`` and ``policyopt inspect``."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("minari")
pytest.importorskip("h5py")

from policyopt import api
from policyopt.cli import main
from policyopt.credit.episodes import complete_episodes
from policyopt.problems.control.logged import parse
from policyopt.rollouts.transitions import checked


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A soft actor-critic that has hardly begun, on the pendulum."""
    folder = tmp_path_factory.mktemp("runs") / "sac"
    settings = {
        "rounds.0.updates.0.model.width": "8",
        "rounds.0.updates.1.model.width": "8",
        "collector.warm_up": "400",
    }
    api.train(
        "sac", "gym:Pendulum-v1", budget="450-env-steps", out=folder, progress=False, evaluations=1, overrides=settings
    )
    return folder


@pytest.fixture(scope="module")
def mixture(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "mixed"
    mix = {"random": 0.5, "medium": 0.2, "medium-replay": 0.2, "expert": 0.1}
    told = []
    api.log("gym:Pendulum-v1", out, policy=run_folder, medium=run_folder, steps=2100, mix=mix, progress=told.append)
    assert sum(told) == 2100 - 420  # what is remembered isn't played
    return out


def test_a_mixture_says_where_its_parts_come_from(mixture, run_folder):
    origin = parse(str(mixture)).metadata["policyopt"]
    assert origin["problem"] == "gym:Pendulum-v1" and origin["seed"] == 0
    assert [(part["source"], part["steps"]) for part in origin["parts"]] == [
        ("random", 1050),
        ("medium", 420),
        ("medium-replay", 420),
        ("expert", 210),
    ]
    assert origin["parts"][0]["run"] is None and origin["parts"][3]["run"]["method"] == "sac"


def test_cut_episodes_are_kept_and_marked(mixture):
    """Pendulum episodes have 200 steps: whatever is shorter was cut."""
    data = checked(parse(str(mixture)))
    assert len(data) == 2100 and np.isfinite(data.reward.numpy()).all()
    lengths = torch.bincount(data.episode)
    assert torch.equal(complete_episodes(data), lengths == 200)
    cut = [int(n) for n in lengths if n != 200]
    assert cut == [50, 20, 170, 50, 10]  # random; medium; the memory's first and last; expert


def test_inspect_counts_complete_episodes_alone(mixture):
    found = api.inspect(str(mixture), random_return=-1200.0, best_return=-150.0, reference=str(mixture))
    assert found.rows == 2100 and len(found.returns) < found.episodes
    assert found.lengths.tolist() == [200] * len(found.lengths)
    assert found.quality == pytest.approx((float(found.returns.mean()) + 1200.0) / 1050.0)
    assert found.coverage == found.log_coverage == 1.0
    assert math.isnan(api.inspect(str(mixture)).quality)


def test_the_command_prints_a_table_and_draws(mixture, tmp_path, capsys):
    assert main(["inspect", str(mixture), "--figure", str(tmp_path / "d.svg")]) == 0
    assert "2100" in capsys.readouterr().out and (tmp_path / "d.svg").exists()


def test_logging_again_gives_the_same(tmp_path):
    one, other = (
        checked(parse(str(api.log("gym:Pendulum-v1", tmp_path / name, steps=300, mix={"random": 1.0}))))
        for name in ("one", "other")
    )
    assert torch.equal(one.action, other.action) and torch.equal(one.reward, other.reward)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"randm": 1.0}}, "did you mean random"),
        ({"mix": {"random": 0.5}}, "must add up to 1, got 0.5"),
        ({"mix": {"random": 1.5}}, "share of random must be above 0"),
        ({"mix": {"expert": 1.0}}, "name its folder with --policy"),
        ({"mix": {"random": 0.5, "medium-replay": 0.5}}, "name its folder with --medium"),
        ({"mix": {"random": 1.0}, "problem": "point-mass"}, "a control problem with one reward"),
        ({"mix": {"random": 1.0}, "problem": "lot-sizing"}, "with one choice or numbers as actions"),
    ],
)
def test_what_cannot_be_logged_is_said_before_anything_is_played(options, message, tmp_path):
    settings = {"problem": "gym:Pendulum-v1", "out": tmp_path / "d", "steps": 100, **options}
    with pytest.raises(ValueError, match=message):
        api.log(**settings)
    assert not (tmp_path / "d").exists()


def test_another_problem_or_a_folder_in_use(run_folder, mixture, tmp_path):
    with pytest.raises(ValueError, match="was trained on gym-Pendulum-v1, not on checker"):
        api.log("checker", tmp_path / "d", policy=run_folder, steps=100)
    with pytest.raises(ValueError, match="holds a data set already"):
        api.log("gym:Pendulum-v1", mixture, steps=100, mix={"random": 1.0})


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bc"
    settings = {"rounds.0.updates.0.model.width": "8"}
    api.train(
        "bc",
        "mixed-walks:logged=40",
        budget="10-updates",
        out=folder,
        progress=False,
        evaluations=1,
        overrides=settings,
    )
    return folder


def test_a_run_is_evaluated_by_its_own_data_or_by_others(cloned, capsys, monkeypatch):
    def played(*_):
        raise AssertionError("nothing is played")

    monkeypatch.setattr("policyopt.problems.control.environments.episode_returns", played)
    command = ["evaluate", str(cloned), "--fitted-q", "--updates", "20"]
    assert main([*command, "--horizon", "40"]) == 0
    assert main([*command, "--data", "mixed-walks:logged=20,seed=3", "--gamma", "0.9", "--samples", "2"]) == 0
    said = capsys.readouterr().out
    assert (
        "return of at most 40 steps: " in said and "return discounted by 0.9: " in said and "outside the data: " in said
    )
    found = api.fitted_q(cloned, horizon=40, updates=20)
    assert f"return of at most 40 steps: {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]" in said


def test_a_run_is_not_evaluated_by_data_that_do_not_fit(cloned, mixture, capsys):
    with pytest.raises(ValueError, match="have other observations or actions"):
        api.fitted_q(cloned, f"minari:{mixture}")
    with pytest.raises(ValueError, match="column episode"):
        api.fitted_q(cloned, "checker:logged=200")
    assert main(["evaluate", str(cloned), "--data", "checker"]) == 1
    assert "--fitted-q goes with --data" in " ".join(capsys.readouterr().err.split())
