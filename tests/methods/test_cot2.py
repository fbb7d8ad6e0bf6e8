from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.update import Adam
from policyopt.methods import cot2
from policyopt.methods.cot2 import SoftDemonstrations, soft_divergence
from policyopt.models.language import LanguagePolicy
from policyopt.models.thoughts import ContinuousThoughts, Expected
from policyopt.models.tiny import character_tokenizer, tiny_model
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.problems.language.mnns import MinimumSignedSum
from policyopt.rollouts.language import Groups
from policyopt.training.loop import run
from policyopt.types import Budget, Clock

PROBLEM = MinimumSignedSum(evaluation_size=32)
RULES = [cot2.method, cot2.mts_paper, cot2.dirichlet]


def policy(seed=0):
    tokenizer = PROBLEM.tokenizer()
    return LanguagePolicy(tiny_model(seed, len(tokenizer), layers=2, width=16, heads=2, context=16), tokenizer)


def small(method):
    collector = method.collector
    fewer = replace(collector, prompts=4, samples=3) if isinstance(collector, Groups) else replace(collector, prompts=4)
    return replace(method, collector=fewer, optimizer=Adam(learning_rate=1e-2))


def soft_batch(thinking, traces=16):
    return SoftDemonstrations(prompts=6, traces=traces)(thinking, PROBLEM, Clock(seed=3)).batches["rollouts"]


def test_soft_demonstrations_are_the_shares_of_the_traces():
    thinking = ContinuousThoughts(policy(), thoughts=3, rule=Expected())
    batch = soft_batch(thinking, traces=4)
    torch.testing.assert_close(batch.actions.sum(-1), torch.ones(6, 4))
    digits = PROBLEM.digits(batch.prompt_id.tolist())
    for row, own in zip(batch.actions, digits, strict=True):
        assert (row * 4 == (row * 4).round()).all()
        words = [{thinking.tokenizer.decode([i]) for i in step.nonzero().squeeze(-1).tolist()} for step in row]
        assert words[0] <= {f"S{own[0]}", f"S{-own[0]}"}
        assert len(words[3]) == 1
    single = soft_batch(thinking, traces=1)
    chains = replace(PROBLEM, chain=True).demonstrations(single.prompt_id.tolist())
    assert thinking.tokenizer.batch_decode(single.actions.argmax(-1)) == chains


def test_divergence_is_zero_only_at_the_target():
    target = torch.tensor([[0.25, 0.5, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert soft_divergence(target, target.log()).tolist() == [0.0, 0.0]
    other = torch.tensor([0.25, 0.25, 0.5, 0.0]).log().expand(2, -1)
    expected = [0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log(), torch.tensor(4.0).log()]
    torch.testing.assert_close(soft_divergence(target, other), torch.stack(expected))


def test_csft_loss_and_gradient_are_those_of_the_plain_model_on_mixed_embeddings():
    own = policy()
    thinking = ContinuousThoughts(own, thoughts=3, rule=Expected())
    batch, objective = soft_batch(thinking), cot2.csft().objective
    loss = objective(thinking.evaluate(batch, objective.want()), objective.prepare(batch)).value
    ours = torch.autograd.grad(loss, thinking.parameters())

    model = tiny_model(0, len(own.tokenizer), layers=2, width=16, heads=2, context=16)
    table = model.get_input_embeddings().weight
    fed = torch.cat([table[batch.prompt], batch.actions[:, :-1] @ table], 1)
    logits = model(inputs_embeds=fed).logits[:, batch.prompt.shape[1] - 1 :]
    divergence = torch.distributions.kl_divergence
    target, now = torch.distributions.Categorical(batch.actions), torch.distributions.Categorical(logits=logits)
    plain = divergence(target, now).sum(1).mean()
    torch.testing.assert_close(loss, plain)
    for a, b in zip(ours, torch.autograd.grad(plain, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_csft_learns():
    method = replace(cot2.csft(), collector=SoftDemonstrations(prompts=64), optimizer=Adam(learning_rate=1e-2))
    found = run(method, PROBLEM, policy(), budget=Budget(updates=30), seed=0)
    losses = found.curve("loss/imitation")[1]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("make", RULES)
def test_ratios_are_one_before_the_first_update(make):
    metrics = small(make()).learner(PROBLEM, policy(), seed=0).step()
    assert float(metrics["policy/kl_k3"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["policy/clip_fraction"]) == 0.0
    assert float(metrics["loss/policy"]) == pytest.approx(0.0, abs=1e-5)
    assert int(metrics["cost/tokens"]) == 4 * 3 * 4


@pytest.mark.parametrize("make", RULES)
def test_grpo_raises_the_chance_of_what_was_rewarded(make):
    """With one prompt's group and a reward for one sample, a step raises that sample's score against the others'."""
    learner = small(make()).learner(PROBLEM, policy(), seed=0)
    collected = learner.method.collector(learner.policy, PROBLEM, learner.clock).batches["rollouts"]
    collected.scores["reward"] = torch.tensor([1.0, 0.0, 0.0]).repeat(4)
    batch = learner._credited(collected)
    learner._update({"rollouts": batch}, "0-0")
    gain = ((learner.policy.evaluate(batch).logp - batch.old_logp) * batch.advantage).sum()
    assert gain.item() > 0


@pytest.mark.parametrize("make", [*RULES, cot2.csft])
def test_resumed_equals_uninterrupted(make):
    method = small(make())
    whole = method.learner(PROBLEM, policy(), seed=1)
    for _ in range(4):
        whole.step()
    first = method.learner(PROBLEM, policy(), seed=1)
    first.step()
    first.step()
    second = method.learner(PROBLEM, policy(9), seed=1)
    second.load_state_dict(first.state_dict())
    second.step()
    second.step()
    for a, b in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loop_evaluates_answers_behind_thoughts():
    found = run(small(cot2.method()), PROBLEM, policy(), budget=Budget(updates=1), seed=0)
    assert all(sample["response"].count(" ") == 0 for sample in found.samples)
    assert 0.0 <= found.last("eval/accuracy") <= 1.0


def test_defaults_and_names():
    assert registry.method("cot2") == registry.method("cot2:mts")
    assert registry.method("cot2:mts_paper").rule != registry.method("cot2").rule
    assert registry.method("cot2").rule.tokens == 3
    assert (
        registry.method("cot2").objective.stabilization.low
        == registry.method("cot2").objective.stabilization.high
        == 0.1
    )


def test_bad_input():
    with pytest.raises(ValueError, match="no soft demonstrations"):
        cot2.csft().learner(Arithmetic(), policy(), seed=0).step()
    with pytest.raises(ValueError, match="set thoughts=3"):
        replace(cot2.csft(), thoughts=2).learner(PROBLEM, policy(), seed=0).step()
    characters = character_tokenizer()
    other = LanguagePolicy(tiny_model(0, len(characters), width=16, heads=2), characters)
    with pytest.raises(ValueError, match="not one token"):
        cot2.csft().learner(PROBLEM, other, seed=0).step()
    with pytest.raises(ValueError, match="trains a language policy that it is given"):
        cot2.method().learner(PROBLEM, seed=0)
