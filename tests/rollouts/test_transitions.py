from dataclasses import dataclass

import pytest
import torch

from policyopt.problems.control.checker import Checker
from policyopt.problems.control.environments import Spaces
from policyopt.rollouts.transitions import checked
from policyopt.types import Transitions


@dataclass
class Data:
    columns: dict
    name: str = "mine"
    spaces = Spaces(observation=2, action=1, discrete=False)

    def transitions(self):
        return Transitions(**self.columns, batch_size=[len(self.columns["reward"])])


def columns(**changed):
    good = {
        "observation": torch.zeros(3, 2),
        "action": torch.zeros(3, 1),
        "reward": torch.zeros(3),
        "next_observation": torch.zeros(3, 2),
        "terminated": torch.zeros(3, dtype=torch.bool),
    }
    return {**good, **changed}


def placed(shape, row, value):
    tensor = torch.zeros(shape)
    tensor[row] = value
    return tensor


def ended(episode, truncated):
    return {"episode": torch.tensor(episode), "truncated": torch.tensor(truncated)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": placed(3, 1, float("nan"))}, r"row 1 of reward is nan; every number has to be finite"),
        ({"next_observation": placed((3, 2), (2, 1), float("inf"))}, r"row 2 of next_observation, number 1, is inf"),
        ({"action": placed((3, 1), (0, 0), -2.0)}, r"row 0 of action, number 0, is -2; actions lie in \[-1, 1\]"),
        ({"observation": torch.zeros(3, 4)}, r"observation has the shape \(3, 4\), expected \(3, 2\)"),
        ({"reward": torch.zeros(3, 1)}, r"reward has the shape \(3, 1\), expected \(3,\)"),
        ({"terminated": torch.zeros(3)}, r"terminated must be of type bool, got torch.float32"),
        ({k: v[:0] for k, v in columns().items()}, "is empty"),
        (ended([0, 0, 1], [False, False, True]), "row 1 of episode 0 is its last row and neither terminated nor"),
        (ended([0, 0, 0], [True, False, True]), "row 0 of episode 0 ends it and is not its last row"),
    ],
)
def test_bad_data_is_named_by_row_and_column(changed, message):
    with pytest.raises(ValueError, match=message):
        checked(Data(columns(**changed)))


def test_choices_are_whole_and_among_those_there_are():
    @dataclass
    class Choices(Data):
        spaces = Spaces(observation=2, action=3, discrete=True)

    assert len(checked(Choices(columns(action=torch.tensor([0, 1, 2]))))) == 3
    with pytest.raises(ValueError, match="row 1 of action is 3; choices are whole, from 0 to 2"):
        checked(Choices(columns(action=torch.tensor([0, 3, 2]))))
    with pytest.raises(ValueError, match=r"row 2 of action is 0\.5; choices"):
        checked(Choices(columns(action=torch.tensor([0.0, 1.0, 0.5]))))
    with pytest.raises(ValueError, match=r"action has the shape \(3, 1\), expected \(3,\)"):
        checked(Choices(columns()))


def test_good_data_pass_and_a_problem_without_data_is_told_so():
    assert len(checked(Data(columns()))) == 3
    assert len(checked(Checker(logged=250))) == 250
    with pytest.raises(ValueError, match="has no data set"):
        checked(type("Bare", (), {"name": "bare"})())
