"""Pointer policies: masked softmax, sampling, evaluation of rollouts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from policyopt.models.pointer import Pointer, PointerPolicy, masked_entropy, masked_log_softmax
from policyopt.types import Rollouts, generator

LEGAL = torch.tensor([[True, True, False, True]])


class Given(nn.Module):
    """Scores are the first feature."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features):
        return features[..., 0] * self.scale


def test_masked_softmax_by_hand():
    scores = torch.tensor([[math.log(1.0), math.log(2.0), 50.0, math.log(5.0)]])
    logp = masked_log_softmax(scores, LEGAL)
    torch.testing.assert_close(logp.exp(), torch.tensor([[0.125, 0.25, 0.0, 0.625]]))
    torch.testing.assert_close(logp, masked_log_softmax(scores + 7.0, LEGAL))
    expected = -(0.125 * math.log(0.125) + 0.25 * math.log(0.25) + 0.625 * math.log(0.625))
    assert float(masked_entropy(logp)) == pytest.approx(expected, abs=1e-6)


def test_illegal_scores_get_no_gradient():
    scores = torch.zeros(1, 4, requires_grad=True)
    logp = masked_log_softmax(scores, LEGAL)
    (logp[0, 0] + masked_entropy(logp)[0]).backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[2 / 3, -1 / 3, 0.0, -1 / 3]]))


def test_sampling_follows_the_probabilities_and_maps_choices_to_actions():
    features = torch.tensor([math.log(1.0), math.log(2.0), 9.0, math.log(5.0)]).view(1, 4, 1).expand(8000, 4, 1)
    seen = {"features": features, "legal": LEGAL.expand(8000, 4), "choice": torch.arange(10, 14).expand(8000, 4)}
    policy = PointerPolicy(Given(), lambda state: state)
    action, columns, memory = policy.act(seen, "kept", generator(0, "act"))
    shares = torch.bincount(action - 10, minlength=4) / 8000
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.25, 0.0, 0.625]), atol=0.02, rtol=0)
    torch.testing.assert_close(columns["behaviour_logp"].exp(), torch.tensor([0.125, 0.25, 0, 0.625])[action - 10])
    assert memory == "kept"
    greedy, _, _ = policy.act(seen, None, generator(0, "act"), greedy=True)
    assert set(greedy.tolist()) == {13}


def test_evaluation_of_rollouts():
    rng = generator(0, "rollouts")
    observations = torch.randn(3, 5, 4, 1, generator=rng)
    legal = torch.rand(3, 5, 4, generator=rng) < 0.5
    legal[..., 1] = True
    actions = torch.ones(3, 5, dtype=torch.long)
    batch = Rollouts(
        actions=actions, mask=torch.ones(3, 5, dtype=torch.bool), observations=observations, legal=legal, batch_size=[3]
    )
    policy = PointerPolicy(Given(), lambda state: state)
    outputs = policy.evaluate(batch, ("logp", "entropy"))
    for row in range(3):
        for step in range(5):
            kept = observations[row, step, :, 0][legal[row, step]]
            known = torch.distributions.Categorical(logits=kept)
            place = int(legal[row, step, :1].sum())
            assert float(outputs.logp[row, step]) == pytest.approx(float(known.logits[place]), abs=1e-5)
            assert float(outputs.entropy[row, step]) == pytest.approx(float(known.entropy()), abs=1e-5)
    assert policy.evaluate(batch).entropy is None


def test_building_draws_from_the_seed_alone():
    def build(seed):
        spec = Pointer(view=lambda state: state, dim=8, layers=1, heads=2, feedforward=8)
        seen = {"features": torch.zeros(1, 3, 2), "legal": torch.ones(1, 6, dtype=torch.bool)}
        return spec.build(seen, seed)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = build(0), build(0), build(1)
    assert torch.equal(torch.rand(3), expected), "the global generator is untouched"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.scorer.embed.weight, other.scorer.embed.weight)
    assert one.scorer(torch.zeros(1, 3, 2)).shape == (1, 6)


def test_heads_that_do_not_divide_are_refused():
    spec = Pointer(view=lambda state: state, dim=10, layers=1, heads=4, feedforward=8)
    with pytest.raises(ValueError, match="dim=10, heads=4"):
        spec.build({"features": torch.zeros(1, 3, 2), "legal": torch.ones(1, 3, dtype=torch.bool)}, 0)
