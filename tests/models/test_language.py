"""The sampler and the forward against the naive computation, sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from policyopt.models import products
from policyopt.models.engines import SharedPrefixEngine, padded, token_logp
from policyopt.models.language import LanguagePolicy, Prefixes, Sampling
from policyopt.models.padded import PaddedEngine
from policyopt.models.tiny import character_tokenizer
from policyopt.types import Rollouts, generator


def naive_logp(policy: LanguagePolicy, prompt: Tensor, response: Tensor) -> Tensor:
    """log π of each response token, by the model's own forward on this sequence alone."""
    plain = PaddedEngine(policy.core).model  # back to the library's attention
    logits = plain(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    logp = (logits / policy.temperature).log_softmax(-1).gather(-1, response[:, None]).squeeze(-1)
    plain.set_attn_implementation("policyopt")
    return logp


def rollouts(prompts: list[Tensor], samples: int, actions: Tensor, length: Tensor) -> Rollouts:
    prompt, prompt_length = padded(prompts)
    return Rollouts(
        actions=actions,
        mask=torch.arange(actions.shape[1]) < length[:, None],
        length=length,
        group=torch.arange(len(length)) // samples,
        prompt=prompt.repeat_interleave(samples, 0),
        prompt_length=prompt_length.repeat_interleave(samples),
        batch_size=[len(length)],
    )


@pytest.fixture
def batch(policy: LanguagePolicy) -> Rollouts:
    """Ragged prompts and responses, a response of one token among them, in shuffled order."""
    prompts = policy.encode(["3+4*2=", "1+1=", "9*9*9*9-1="])
    length = torch.tensor([5, 1, 7, 3, 2, 1])
    actions = torch.randint(4, 100, (6, 7), generator=generator(0, "actions"))
    return rollouts(prompts, 2, actions, length)[torch.tensor([3, 0, 5, 1, 4, 2])]


def test_packed_forward_equals_naive_per_sequence(policy: LanguagePolicy, batch: Rollouts) -> None:
    policy.temperature = 0.7
    logp = policy.evaluate(batch).logp
    for row, values in zip(batch, logp, strict=True):
        want = naive_logp(policy, row.prompt[: row.prompt_length], row.actions[: row.length])
        torch.testing.assert_close(values[: row.length], want, atol=2e-6, rtol=1e-5)
        assert not values[row.length :].any()


def test_both_engines_give_the_same_gradient(policy: LanguagePolicy, batch: Rollouts) -> None:
    weights = torch.randn(batch.mask.shape, generator=generator(0, "weights"))

    def gradients() -> list[Tensor]:
        outputs = policy.evaluate(batch, ("logp", "entropy"))
        return list(torch.autograd.grad(((outputs.logp + 0.3 * outputs.entropy) * weights).sum(), policy.parameters()))

    shared = gradients()
    policy.engine = PaddedEngine(policy.core)
    for one, two in zip(shared, gradients(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_prompts_that_begin_alike_share_their_head(policy: LanguagePolicy) -> None:
    """Worked examples in front of every prompt go through the model once, in sampling and in training."""
    shots = "1+1=2\n3*4=2\n9-9=0\n"
    prompts = policy.encode([shots + "3+4*2=", shots + "1=", shots + "9*9*9*9-1="])
    out = policy.extend(prompts, 2, Sampling(), generator(0, "s"), max_new_tokens=6, stop=("3",), keep=True)
    assert out.forward_tokens == len(shots) + 6 + 2 + 10 + int((out.length - 1).sum())
    batch = rollouts(prompts, 2, out.actions, out.length)
    logp = policy.evaluate(batch).logp
    torch.testing.assert_close(out.old_logp * batch.mask, logp, atol=2e-6, rtol=1e-5)
    shared = torch.autograd.grad(logp.sum(), policy.parameters())
    cut = policy.extend(out.cut([3], [1]), 1, Sampling(temperature=0), generator(0, "s"), max_new_tokens=4)
    policy.engine = PaddedEngine(policy.core)
    plain = policy.evaluate(batch).logp
    torch.testing.assert_close(logp, plain, atol=2e-6, rtol=1e-5)
    for one, two in zip(shared, torch.autograd.grad(plain.sum(), policy.parameters()), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    anew = policy.extend(out.cut([3], [1]).tokens, 1, Sampling(temperature=0), generator(0, "s"), max_new_tokens=4)
    torch.testing.assert_close(cut.old_logp, anew.old_logp, atol=2e-6, rtol=1e-5)


def test_only_masked_positions_are_scored(policy: LanguagePolicy, batch: Rollouts) -> None:
    full = policy.evaluate(batch).logp
    holes = batch.replace(mask=batch.mask & (torch.arange(7) % 2 == 0))
    torch.testing.assert_close(policy.evaluate(holes).logp, full * holes.mask)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.6), Sampling(temperature=1.3)])
def test_recorded_logp_is_that_of_the_forward(policy: LanguagePolicy, sampling: Sampling) -> None:
    policy.temperature = sampling.temperature
    prompts = policy.encode(["3+4*2=", "1+1=", "9*9*9*9-1="])
    out = policy.extend(prompts, 4, sampling, generator(0, "s"), max_new_tokens=9, stop=("7", "+-"))
    batch = rollouts(prompts, 4, out.actions, out.length)
    again = policy.evaluate(batch, ("logp", "entropy"))
    torch.testing.assert_close(out.behaviour_logp * batch.mask, again.logp, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(out.entropy * batch.mask, again.entropy, atol=1e-5, rtol=1e-5)
    assert out.length.min() < out.length.max(), "some responses must leave the batch early for this to test anything"


def test_truncated_sampling_records_the_truncated_distribution() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, -1)
    chosen = Sampling(top_p=0.75).choose(logits, generator(0, "p"))
    assert set(chosen["actions"].tolist()) == {0, 1}  # 0.5 < 0.75 <= 0.8: the smallest set that reaches 0.75
    first = chosen["actions"] == 0
    torch.testing.assert_close(chosen["behaviour_logp"][first].exp(), torch.full((int(first.sum()),), 0.625))
    torch.testing.assert_close(chosen["old_logp"][first].exp(), torch.full((int(first.sum()),), 0.5))
    assert abs(float(first.float().mean()) - 0.625) < 0.03
    assert set(Sampling(top_k=3).choose(logits, generator(1, "k"))["actions"].tolist()) == {0, 1, 2}


def test_sampling_frequencies_match_probabilities() -> None:
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    chosen = Sampling().choose(probability.log().expand(20000, -1), generator(0, "f"))
    frequency = chosen["actions"].bincount(minlength=4) / 20000
    torch.testing.assert_close(frequency, probability, atol=0.012, rtol=0)
    torch.testing.assert_close(chosen["entropy"][0], -(probability * probability.log()).sum())


def test_greedy_takes_the_most_likely_token(policy: LanguagePolicy) -> None:
    prompts = policy.encode(["3+4=", "12*5-1="])
    out = policy.extend(prompts, 1, Sampling(temperature=0.0), generator(0, "g"), max_new_tokens=6)
    for row in range(2):
        tokens = prompts[row]
        for action in out.actions[row, : out.length[row]]:
            plain = PaddedEngine(policy.core).model(input_ids=tokens[None]).logits[0, -1]
            assert int(plain.argmax()) == int(action)
            tokens = torch.cat([tokens, action[None]])


def test_extend_computes_each_prefix_once(policy: LanguagePolicy) -> None:
    prompts = policy.encode(["3+4*2=", "1+1="])
    out = policy.extend(prompts, 8, Sampling(), generator(0, "s"), max_new_tokens=5)
    # every sampled token but a row's last is fed back, the prompts go through once
    fed = int((out.length - 1).sum())
    assert out.forward_tokens == 6 + 4 + fed


def test_finished_and_cut_responses_are_told_apart(policy: LanguagePolicy) -> None:
    prompts = policy.encode(["1+1="])
    out = policy.extend(prompts, 64, Sampling(), generator(0, "s"), max_new_tokens=4, stop=("7",))
    texts = policy.decode(out.actions, out.length)
    ends = policy.end_tokens
    for row, text in enumerate(texts):
        stopped = "7" in text or bool(torch.isin(out.actions[row, out.length[row] - 1], ends))
        assert bool(out.finished[row]) == stopped
        assert stopped or int(out.length[row]) == 4
        assert "7" not in text[:-1]
    assert 0 < int(out.finished.sum()) < 64


def test_cut_prefixes_reuse_keys_and_values(policy: LanguagePolicy) -> None:
    prompts = policy.encode(["3+4*2=", "1+1=", "9*9*9*9-1="])
    out = policy.extend(prompts, 3, Sampling(), generator(0, "s"), max_new_tokens=8, stop=("4",), keep=True)
    rows, lengths = [0, 0, 4, 8, 6], [int(out.length[0]), 1, 0, 2, int(out.length[6])]
    extra = policy.encode(["5", "12", "3", "4-", "1"])
    for cut in (out.cut(rows, lengths), out.cut(rows, lengths, append=extra)):
        kept = policy.extend(cut, 2, Sampling(temperature=0), generator(1, "s"), max_new_tokens=6)
        anew = policy.extend(cut.tokens, 2, Sampling(temperature=0), generator(1, "s"), max_new_tokens=6)
        assert torch.equal(kept.actions, anew.actions)
        torch.testing.assert_close(kept.old_logp, anew.old_logp, atol=2e-6, rtol=1e-5)
        assert kept.forward_tokens < anew.forward_tokens


def test_prefix_caches_do_not_survive_an_update(policy: LanguagePolicy) -> None:
    out = policy.extend(policy.encode(["3+4*2="]), 2, Sampling(), generator(0, "s"), max_new_tokens=6, keep=True)
    cut = out.cut([0, 1], [3, 3])
    with torch.no_grad():
        policy.parameters()[0].mul_(1.5)
    kept = policy.extend(cut, 1, Sampling(temperature=0), generator(0, "s"), max_new_tokens=4)
    anew = policy.extend(Prefixes(cut.tokens), 1, Sampling(temperature=0), generator(0, "s"), max_new_tokens=4)
    assert kept.forward_tokens == anew.forward_tokens
    assert torch.equal(kept.old_logp, anew.old_logp)


def test_end_equal_to_pad_counts(policy: LanguagePolicy) -> None:
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    prompts = policy.encode(["1+1="])
    end = int(policy.end_tokens[0])
    batch = rollouts(prompts, 1, torch.tensor([[20, end]]), torch.tensor([2]))
    logp = policy.evaluate(batch).logp
    assert float(logp[0, 1]) < 0
    torch.testing.assert_close(logp[0], naive_logp(policy, prompts[0], torch.tensor([20, end])), atol=2e-6, rtol=1e-5)


SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@pytest.mark.parametrize(
    "model",
    [
        LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, eos_token_id=2)),
        Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=2, eos_token_id=2)),
        GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.0, eos_token_id=2)),
    ],
    ids=["llama", "qwen2", "gpt2"],
)
def test_architectures_share_prefixes(model: torch.nn.Module) -> None:
    policy = LanguagePolicy(model, character_tokenizer())
    assert isinstance(policy.engine, SharedPrefixEngine)
    prompts = policy.encode(["3+4*2=", "1+1="])
    out = policy.extend(prompts, 3, Sampling(), generator(0, "s"), max_new_tokens=5)
    for row in range(6):
        response = out.actions[row, : out.length[row]]
        want = naive_logp(policy, prompts[row // 3], response)
        torch.testing.assert_close(out.old_logp[row, : len(response)], want, atol=5e-6, rtol=1e-4)


def test_models_that_cannot_share_fall_back_with_a_warning() -> None:
    config = MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4, eos_token_id=2)
    with pytest.warns(UserWarning, match="sliding_window"):
        policy = LanguagePolicy(MistralForCausalLM(config), character_tokenizer())
    assert isinstance(policy.engine, PaddedEngine)
    prompts = policy.encode(["3+4*2=", "1+1="])
    out = policy.extend(prompts, 2, Sampling(), generator(0, "s"), max_new_tokens=6, stop=("3",), keep=True)
    again = policy.evaluate(rollouts(prompts, 2, out.actions, out.length)).logp
    torch.testing.assert_close(out.old_logp * (again != 0), again, atol=5e-6, rtol=1e-4)
    assert policy.extend(out.cut([0], [1]), 1, Sampling(), generator(0, "s"), max_new_tokens=2).actions.shape[0] == 1


@pytest.mark.parametrize("vocabulary", [11, 70_000])  # a large head goes another way
def test_head_matches_autograd_through_log_softmax(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ONEDNN", hasattr(torch.ops.mkldnn, "_linear_pointwise"))
    rng, width = generator(0, "head"), 5 if vocabulary == 11 else 61
    shapes = ((9, width), (vocabulary, width), (vocabulary,))
    hidden, weight, bias = (torch.randn(s, generator=rng, requires_grad=True) for s in shapes)
    actions = torch.randint(vocabulary, (9,), generator=rng)
    free, _ = token_logp(hidden, weight, None, actions)
    torch.testing.assert_close(free, (hidden @ weight.t()).log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1))
    outer = torch.randn(2, 9, generator=rng)
    logp, entropy = token_logp(hidden, weight, bias, actions, 0.8, entropy=True)
    mine = torch.autograd.grad((outer[0] * logp + outer[1] * entropy).sum(), (hidden, weight, bias))
    full = (0.8 * (hidden @ weight.t() + bias)).log_softmax(-1)
    plain_logp = full.gather(-1, actions[:, None]).squeeze(-1)
    plain_entropy = -(full.exp() * full).sum(-1)
    want = torch.autograd.grad((outer[0] * plain_logp + outer[1] * plain_entropy).sum(), (hidden, weight, bias))
    torch.testing.assert_close(logp, plain_logp)
    torch.testing.assert_close(entropy, plain_entropy)
    for one, two in zip(mine, want, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_micro_batches_cover_every_row_once_and_keep_groups_together(policy: LanguagePolicy, batch: Rollouts) -> None:
    pieces = policy.micro_batches(batch, 14)
    assert sorted(torch.cat(pieces).tolist()) == list(range(6))
    assert len(pieces) > 1
    order = batch.group[torch.cat(pieces)].tolist()
    assert order == sorted(order)


def test_bad_prompts_are_refused(policy: LanguagePolicy) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        policy.encode(["1+1=", ""])
    with pytest.raises(ValueError, match="prompt 0 has 600 tokens, but the model's context holds 512"):
        policy.encode(["1" * 600])
    with pytest.raises(ValueError, match="no chat template"):
        policy.encode([[{"role": "user", "content": "hello"}]])


def test_responses_end_with_the_context(policy: LanguagePolicy) -> None:
    out = policy.extend(policy.encode(["1" * 509]), 2, Sampling(), generator(0, "s"), max_new_tokens=50)
    assert int(out.length.max()) <= 3
