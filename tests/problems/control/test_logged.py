"""Logged data sets: written, read back as columns, checked."""

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("minari")
pytest.importorskip("h5py")

from policyopt import registry
from policyopt.problems.control.environments import Spaces
from policyopt.problems.control.logged import CACHE, Logged, write
from policyopt.rollouts.transitions import checked
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
        "complete": episode == 0,
    }
    return Transitions(**{**columns, **changed}, batch_size=[n])


@pytest.mark.parametrize("spaces", [PENDULUM, Spaces(observation=4, action=2, discrete=True)])
def test_what_is_written_is_read(tmp_path, spaces):
    data = log(spaces=spaces)
    folder = write(tmp_path / "d", data, spaces, None, {"steps": 5})
    problem = registry.problem(f"minari:{folder}")
    for _ in range(2):  # from the file, then from the mapped columns
        read = problem.transitions()
        for name in (
            "observation",
            "action",
            "reward",
            "next_observation",
            "terminated",
            "truncated",
            "episode",
            "complete",
        ):
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
        ({"truncated": torch.zeros(5, dtype=torch.bool)}, "row 4 of episode 1 is its last row and neither"),
        ({"terminated": torch.tensor([True, False, True, False, False])}, "row 0 of episode 0 ends it and is not"),
    ],
)
def test_broken_data(tmp_path, changed, message):
    folder = write(tmp_path / "d", log(**changed), PENDULUM, None, {})
    with pytest.raises(ValueError, match=message):
        checked(Logged(source=str(folder)))


def test_an_empty_data_set(tmp_path):
    from minari.dataset.minari_storage import MinariStorage

    box = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    (tmp_path / "data").mkdir()
    storage = MinariStorage.new(tmp_path / "data", box, box)
    with pytest.raises(ValueError, match="cannot open"):
        registry.problem(f"minari:{tmp_path}")
    storage.update_metadata({"dataset_id": "nothing-v0", "minari_version": "0.5.4"})
    with pytest.raises(ValueError, match="is empty: it needs at least one transition"):
        checked(Logged(source=str(tmp_path)))


def test_a_failed_write_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def full(self, episodes):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(HDF5Storage, "update_episodes", full)
        with pytest.raises(OSError, match="no space"):
            write(tmp_path / "new" / "d", log(), PENDULUM, None, {})
    assert not (tmp_path / "new" / "d").exists()
    write(tmp_path / "new" / "d", log(), PENDULUM, None, {})
    assert [path.name for path in (tmp_path / "new" / "d").iterdir()] == ["data"]


def test_episodes_are_complete_where_nothing_is_said(tmp_path):
    folder = write(tmp_path / "d", log(complete=None), PENDULUM, None, {})
    assert bool(checked(Logged(source=str(folder))).complete.all())


def test_actions_are_scaled_and_rounding_is_cut_off(tmp_path):
    import h5py

    folder = write(tmp_path / "d", log(), PENDULUM, None, {})
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/actions"][:] = np.array([[-2.0], [1.0], [2.00001]], np.float32)
    assert checked(Logged(source=str(folder))).action[:3, 0].tolist() == [-1.0, 0.5, 1.0]


def test_files_that_disagree(tmp_path):
    import h5py

    folder = write(tmp_path / "d", log(), PENDULUM, None, {})
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/actions"][1] = 9.0
    with pytest.raises(ValueError, match=r"row 4 of action, number 0, is 4.5; .* \[-1, 1\], which stand for -2 to 2"):
        checked(Logged(source=str(folder)))
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        kept = file["episode_1/actions"][:1]
        del file["episode_1/actions"]
        file["episode_1/actions"] = kept
    with pytest.raises(ValueError, match=r"episode 1 .from row 3. has 2 rewards but 1 actions"):
        checked(Logged(source=str(folder)))
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"episode 1 .* has actions of 3 numbers, the data set's space says 1"):
        checked(Logged(source=str(folder)))


def test_bad_names(tmp_path):
    with pytest.raises(ValueError, match="cannot open the data set"):
        registry.problem(f"minari:{tmp_path}/nothing")
    with pytest.raises(ValueError, match="which data set"):
        registry.problem("minari:")
    write(tmp_path / "d", log(), PENDULUM, None, {})
    with pytest.raises(ValueError, match="already"):
        write(tmp_path / "d", log(), PENDULUM, None, {})
