"""Logged data sets: written, read back as columns, checked."""

import numpy as np
import pytest
import torch

pytest.importorskip("minari")
pytest.importorskip("h5py")

from policyopt import registry
from policyopt.problems.control.environments import Spaces
from policyopt.problems.control.logged import CACHE, Logged, write
from policyopt.types import Transitions, generator

PENDULUM = Spaces(observation=3, action=1, discrete=False, low=(-2.0,), high=(2.0,))


def log(lengths=(3, 2), spaces=PENDULUM, **changed):
    n = sum(lengths)
    rng = np.random.default_rng(0)
    episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    last = torch.diff(episode, append=torch.tensor([-1])) != 0
    seen = torch.from_numpy(rng.normal(size=(n + 1, spaces.observation)).astype(np.float32))
    action = rng.integers(spaces.action, size=n) if spaces.discrete else rng.uniform(-1, 1, (n, spaces.action))
    columns = {
        "observation": seen[:-1],
        "action": torch.from_numpy(action if spaces.discrete else action.astype(np.float32)),
        "reward": torch.from_numpy(rng.normal(size=n).astype(np.float32)),
        "next_observation": seen[1:],
        "terminated": last & (episode == 0),
        "truncated": last & (episode != 0),
        "episode": episode,
    }
    return Transitions(**{**columns, **changed}, batch_size=[n])


@pytest.mark.parametrize("spaces", [PENDULUM, Spaces(observation=4, action=2, discrete=True)])
def test_what_is_written_is_read(tmp_path, spaces):
    data = log(spaces=spaces)
    folder = write(tmp_path / "d", data, spaces, None, {"steps": 5})
    problem = registry.problem(f"minari:{folder}")
    for _ in range(2):  # from the file, then from the mapped columns
        read = problem.transitions()
        for name in ("observation", "action", "reward", "next_observation", "terminated", "truncated", "episode"):
            assert torch.allclose(getattr(read, name).double(), getattr(data, name).double(), atol=1e-6), name
    assert problem.spaces == spaces and problem.metadata["policyopt"] == {"steps": 5}
    assert (folder / CACHE / "reward.npy").exists()
    assert problem.environment is None and problem.evaluate(None, generator(0, "e")) == {}


def test_the_environment_is_that_of_the_metadata(tmp_path):
    folder = write(tmp_path / "d", log(), PENDULUM, "Pendulum-v1", {})
    problem = Logged(source=str(folder), episodes=1)
    assert problem.environment is not None and problem.environment.id == "Pendulum-v1"
    still = problem.evaluate(lambda o, m, rng, greedy: (torch.zeros(len(o), 1), {}, m), generator(0, "e"))
    assert still["eval/episode_length"] == 200.0 and still["eval/return"] < 0.0


def test_a_method_trains_on_it(tmp_path):
    folder = write(tmp_path / "d", log(lengths=(30, 40)), PENDULUM, None, {})
    learner = registry.method("td3-bc").learner(registry.problem(f"minari:{folder}"), seed=0)
    assert np.isfinite(float(learner.step()["loss/value"]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": torch.tensor([0.0, 0.0, np.nan, 0.0, 0.0])}, "row 2 of reward is nan"),
        ({"truncated": torch.zeros(5, dtype=torch.bool)}, "episode 1 must end at its last row.*row 4"),
        ({"terminated": torch.tensor([True, False, True, False, False])}, "episode 0 must end.*row 0"),
    ],
)
def test_broken_data(tmp_path, changed, message):
    folder = write(tmp_path / "d", log(**changed), PENDULUM, None, {})
    with pytest.raises(ValueError, match=message):
        Logged(source=str(folder)).transitions()


def test_files_that_disagree(tmp_path):
    import h5py

    folder = write(tmp_path / "d", log(), PENDULUM, None, {})
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/actions"][1] = 9.0
    with pytest.raises(ValueError, match=r"row 4 of action is \[9.\], outside"):
        Logged(source=str(folder)).transitions()
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        kept = file["episode_1/actions"][:1]
        del file["episode_1/actions"]
        file["episode_1/actions"] = kept
    with pytest.raises(ValueError, match=r"episode 1 .from row 3. has 2 rewards but 1 actions"):
        Logged(source=str(folder)).transitions()


def test_bad_names(tmp_path):
    with pytest.raises(ValueError, match="cannot open the data set"):
        registry.problem(f"minari:{tmp_path}/nothing")
    with pytest.raises(ValueError, match="which data set"):
        registry.problem("minari:")
    write(tmp_path / "d", log(), PENDULUM, None, {})
    with pytest.raises(ValueError, match="already"):
        write(tmp_path / "d", log(), PENDULUM, None, {})
