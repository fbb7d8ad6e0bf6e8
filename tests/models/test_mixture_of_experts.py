"""The small mixture-of-experts model, the losses on its routers, and the recorder of routing."""

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
)

from policyopt.models.mixture_of_experts import MixtureOfExperts, RoutingRecorder, balance_loss, z_loss
from policyopt.types import generator

SMALL = MixtureOfExperts(width=16, layers=3, heads=2, experts=6, active=2, expert_width=8, length=16)
TINY = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "use_cache": False}


def tokens(rows=3, length=7):
    return torch.randint(11, (rows, length), generator=generator(0, "tokens"))


def test_balance_loss_is_one_when_balanced_and_the_number_of_experts_when_collapsed():
    even = 20 * torch.eye(4).repeat(1, 3, 1)
    assert balance_loss(even, 1).item() == pytest.approx(1.0, abs=1e-5)
    collapsed = torch.tensor([20.0, 0, 0, 0]).expand(1, 12, 4)
    assert balance_loss(collapsed, 1).item() == pytest.approx(4.0, abs=1e-5)


def test_balance_loss_equals_the_library_s_up_to_its_scale():
    """``transformers`` counts a token once for each active expert, so that its loss is ``active`` times ours."""
    from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func

    logits = torch.randn(40, 6, generator=generator(0, "logits"))
    theirs = load_balancing_loss_func((logits,), num_experts=6, top_k=2)
    assert balance_loss(logits[None], 2).item() == pytest.approx(theirs.item() / 2, rel=1e-5)


def test_each_sequence_apart_is_unbalanced_where_the_batch_is_balanced():
    """Two sequences that each use one expert: balanced together, collapsed apart."""
    logits = 20 * torch.eye(2)[:, None].expand(2, 5, 2)
    assert balance_loss(logits.reshape(1, 10, 2), 1).item() == pytest.approx(1.0, abs=1e-5)
    assert balance_loss(logits, 1).item() == pytest.approx(2.0, abs=1e-5)


def test_descending_the_balance_loss_lowers_the_crowded_expert():
    logits = torch.randn(1, 50, 4, generator=generator(0, "logits")) + torch.tensor([2.0, 0, 0, 0])
    logits.requires_grad_()
    balance_loss(logits, 1).backward()
    assert logits.grad[0].sum(0)[0] > 0
    assert (logits.grad[0].sum(0)[1:] < 0).all()


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [3.0, -1e9]])
    assert z_loss(logits).item() == pytest.approx((torch.tensor(2.0).log().item() ** 2 + 9) / 2)


def test_build_repeats_its_weights_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = SMALL.build(11, 5), SMALL.build(11, 5), SMALL.build(11, 6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_shared_experts_and_dense_layers_do_not_route():
    shared = MixtureOfExperts(**{**vars(SMALL), "experts": 5, "active": 1, "shared": 1, "dense": (0,)})
    model = shared.build(11, 0)
    with RoutingRecorder(model) as recorder:
        model(tokens())
    routing = recorder.routing(torch.ones(3, 7))
    assert routing.experts.shape == (2, 3, 7, 1)
    assert routing.number == 5


def test_one_active_expert_still_teaches_its_router():
    model = MixtureOfExperts(**{**vars(SMALL), "active": 1}).build(11, 0)
    model(tokens(), labels=tokens()).loss.backward()
    assert model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0


def test_the_recorder_holds_the_router_s_choice_over_several_calls():
    model = SMALL.build(11, 0)
    text = tokens(4)
    with RoutingRecorder(model) as recorder:
        for part in text.split(2):
            model(part)
    routing = recorder.routing(torch.ones(4, 7))
    logits = model(text, output_router_logits=True).router_logits
    assert len(recorder.records[0]) == 2
    assert torch.equal(routing.experts, torch.stack(logits).topk(2).indices.view(3, 4, 7, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MixtralForCausalLM(
            MixtralConfig(**TINY, intermediate_size=8, num_local_experts=4, num_key_value_heads=2)
        ),
        lambda: OlmoeForCausalLM(OlmoeConfig(**TINY, intermediate_size=8, num_experts=4, num_experts_per_tok=2)),
        lambda: DeepseekV3ForCausalLM(
            DeepseekV3Config(
                **{**TINY, "num_hidden_layers": 3},
                intermediate_size=8,
                moe_intermediate_size=8,
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_group=2,
                topk_group=1,
                first_k_dense_replace=1,
                num_key_value_heads=2,
                q_lora_rank=8,
                kv_lora_rank=8,
                qk_rope_head_dim=4,
                qk_nope_head_dim=4,
                v_head_dim=8,
            )
        ),
    ],
    ids=["mixtral", "olmoe", "deepseek-v3"],
)
def test_the_recorder_reads_other_models(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(tokens())
    routing = recorder.routing(torch.ones(3, 7))
    assert routing.experts.shape == (2, 3, 7, 2)
    assert routing.number == 4
    assert (routing.experts[..., 0] != routing.experts[..., 1]).all()


def test_the_recorder_lets_go_and_names_what_is_wrong():
    model = SMALL.build(11, 0)
    with RoutingRecorder(model) as recorder:
        model(tokens())
    model(tokens())
    assert len(recorder.records[0]) == 1
    with pytest.raises(ValueError, match="21 tokens were recorded"):
        recorder.routing(torch.ones(3, 8))
    with pytest.raises(ValueError, match="LlamaForCausalLM has no routed experts"):
        RoutingRecorder(LlamaForCausalLM(LlamaConfig(**TINY, intermediate_size=8, num_key_value_heads=2)))


def test_packed_tokens_go_to_their_places():
    model, text = SMALL.build(11, 0), tokens(2)
    valid = torch.tensor([[True] * 3 + [False] * 4, [True] * 7])
    with RoutingRecorder(model) as packed:
        model(text[:1, :3])
        model(text[1:])
    with RoutingRecorder(model) as padded:
        model(text)
    one, two = packed.routing(valid), padded.routing(valid)
    assert torch.equal(one.experts[:, valid], two.experts[:, valid])
    assert torch.equal(one.valid, valid)


def test_more_active_experts_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"1\.\.4.*got 5"):
        MixtureOfExperts(experts=4, active=5)
