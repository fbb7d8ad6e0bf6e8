import pytest
import torch
from torch import nn

from policyopt.objectives.behaviour import BehaviourRegularizer, behaviour_distance, value_scale


def test_the_scale_of_values_by_hand():
    values = torch.tensor([10.0, -20.0, 30.0], requires_grad=True)
    assert float(value_scale(values, 2.5)) == 0.125
    assert not value_scale(values, 2.5).requires_grad


def test_distance_is_a_mean_over_rows_and_dimensions():
    action, target = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
    assert float(behaviour_distance(action, target)) == (1.0 + 4.0) / 4
    assert float(behaviour_distance(action, target, torch.tensor([0.0, 0.5]))) == 0.5 * 4.0 / 4


def test_the_weight_multiplies_and_cannot_be_negative():
    class Data:
        action = torch.zeros(1, 1)

    loss = BehaviourRegularizer(weight=3.0)(nn.ModuleDict(), Data(), torch.ones(1, 1), torch.Generator())
    assert float(loss) == 3.0
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        BehaviourRegularizer(weight=-1.0)
