from dataclasses import replace

import pytest
import torch

from policyopt.learners.off_policy import Round
from policyopt.methods import prdc
from policyopt.models.neighbours import NearestPairs
from policyopt.objectives.behaviour import BehaviourRegularizer, behaviour_distance
from policyopt.problems.control.checker import Checker
from policyopt.types import generator

STATES, ACTIONS = torch.tensor([[0.0], [1.0], [0.5]]), torch.tensor([[1.0], [-1.0], [0.2]])


def nearest(state_weight, state=0.4, action=-0.5, neighbour=1, pairs=(STATES, ACTIONS)):
    found = NearestPairs(state_weight, neighbour)
    found.fit(*pairs)
    return found(torch.tensor([[state]]), torch.tensor([[action]]))


@pytest.mark.parametrize(("state_weight", "target", "loss"), [(0.0, -1.0, 0.25), (1.0, 0.2, 0.49), (10.0, 0.2, 0.49)])
def test_three_pairs(state_weight, target, loss):
    found = nearest(state_weight)
    assert found.item() == pytest.approx(target)
    assert float(behaviour_distance(torch.tensor([[-0.5]]), found)) == pytest.approx(loss)


@pytest.mark.parametrize(("state_weight", "target", "loss"), [(1.0, -1.0, 0.25), (10.0, 1.0, 2.25)])
def test_two_pairs(state_weight, target, loss):
    found = nearest(state_weight, pairs=(STATES[:2], ACTIONS[:2]))
    assert found.item() == target
    assert float(behaviour_distance(torch.tensor([[-0.5]]), found)) == pytest.approx(loss)


def test_the_second_nearest_is_one_pair_and_not_a_mean():
    assert nearest(0.0, neighbour=2).item() == pytest.approx(0.2)
    assert nearest(0.0, neighbour=3).item() == 1.0


def pairs(count=200, seed=0):
    rng = generator(seed, "pairs")
    return torch.rand(count, 3, generator=rng), 2 * torch.rand(count, 2, generator=rng) - 1


def test_a_large_state_weight_gives_the_data_s_own_action():
    states, actions = pairs()
    found = NearestPairs(1e4, 1)
    found.fit(states, actions)
    assert torch.equal(found(states, torch.zeros_like(actions)), actions)  # TD3+BC's target


def test_a_pair_of_the_data_costs_nothing():
    states, actions = pairs()
    found, action = NearestPairs(2.0, 1), actions.clone().requires_grad_()
    found.fit(states, actions)
    loss = behaviour_distance(action, found(states, action))
    loss.backward()
    assert loss.item() == 0.0 and not action.grad.any()


def test_no_gradient_goes_through_the_search():
    states, actions = pairs()
    found, action = NearestPairs(2.0, 1), torch.full((4, 2), 0.1, dtype=torch.float64, requires_grad=True)
    found.fit(states, actions)
    target = found(states[:4], action.float())
    behaviour_distance(action, target).backward()
    assert torch.allclose(action.grad, 2.0 * (action.detach() - target) / 8)
    moved = action.detach().clone()
    moved[1, 0] += 1e-6
    again = behaviour_distance(moved, found(states[:4], moved.float())) - behaviour_distance(action.detach(), target)
    assert float(again) / 1e-6 == pytest.approx(float(action.grad[1, 0]), rel=1e-3)


def test_order_and_joint_scale_of_states_do_not_matter():
    states, actions = pairs()
    query = pairs(50, seed=1)
    shuffled = torch.randperm(200, generator=generator(0, "order"))
    found = []
    for weight, scale, order in ((2.0, 1.0, torch.arange(200)), (2.0, 1.0, shuffled), (0.5, 4.0, torch.arange(200))):
        tree = NearestPairs(weight, 1)
        tree.fit(scale * states[order], actions[order])
        found.append(tree(scale * query[0], query[1]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_it_agrees_with_brute_force():
    states, actions = pairs()
    query = pairs(50, seed=1)
    tree = NearestPairs(1.5, 1)
    tree.fit(states, actions)
    keys, wanted = (torch.cat((1.5 * s, a), 1) for s, a in ((states, actions), query))
    assert torch.equal(tree(*query), actions[torch.cdist(wanted, keys).argmin(1)])


def small(method):
    updates = tuple(replace(u, model=replace(u.model, width=8)) for u in method.updates())
    return replace(method, rounds=(Round(updates=updates),), batch=16).learner(Checker(logged=300), seed=0)


def test_it_trains_on_standardized_pairs_and_knows_its_variants():
    learner = small(prdc.method())
    metrics = [learner.step() for _ in range(4)]
    assert ["loss/behaviour" in m for m in metrics] == [False, True, False, True]
    columns = learner.memory.columns
    found = learner.agent["neighbours"](columns["observation"], columns["action"])
    assert torch.equal(found, columns["action"])
    assert not any(name.startswith("neighbours") for name in learner.agent.state_dict())
    weights = [list(m.updates())[1].value_weight for m in (prdc.method(), prdc.halfcheetah(), prdc.antmaze())]
    assert weights == [2.5, 40.0, 7.5]
    reward = small(prdc.antmaze()).memory.columns["reward"]
    assert set(reward.unique().tolist()) <= {-1.0, -10_001.0}


def test_bad_input():
    with pytest.raises(ValueError, match="a neighbour from 1 on"):
        prdc.NearestPair(neighbour=0)
    with pytest.raises(ValueError, match="has 3 pairs: there is no neighbour number 4"):
        nearest(1.0, neighbour=4)
    assert BehaviourRegularizer(target=prdc.NearestPair()).weight == 1.0
