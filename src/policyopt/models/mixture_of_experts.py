"""Mixture-of-experts language models: a small one to train from scratch, the losses on its routers, and a recorder of
which experts any mixture-of-experts model of ``transformers`` uses.

The network is the library's Qwen2-MoE: it has routed and shared experts and dense layers in one class, and its router
scales an expert's output by the unnormalised probability, so that the router learns even where one expert is active.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policyopt.types import Part


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which routed experts every token used; shared experts, which serve every token, do not count.

    experts [L, N, T, K]: layers that route, samples, tokens, and a token's expert ids, the heaviest weight first;
    number: routed experts of a layer; valid [N, T]: False on padding, which stands on the right.
    """

    experts: Tensor
    number: int
    valid: Tensor

    def __post_init__(self) -> None:
        if self.experts.ndim != 4:
            raise ValueError(f"routing has axes [layers, samples, tokens, active], got {list(self.experts.shape)}")
        if self.valid.shape != self.experts.shape[1:3]:
            raise ValueError(
                f"`valid` is [samples, tokens] = {list(self.experts.shape[1:3])}, got {list(self.valid.shape)}"
            )
        if self.experts.numel() and not 0 <= int(self.experts.min()) <= int(self.experts.max()) < self.number:
            raise ValueError(
                f"expert ids lie in 0..{self.number - 1} for {self.number} experts, got "
                f"{int(self.experts.min())}..{int(self.experts.max())}"
            )

    def one_cache(self) -> Routing:
        """All layers as one: expert e of layer l becomes expert l * number + e, so that they share one cache."""
        layers, samples, tokens, active = self.experts.shape
        offsets = torch.arange(layers).view(-1, 1, 1, 1) * self.number
        experts = (self.experts + offsets).permute(1, 2, 0, 3).reshape(1, samples, tokens, layers * active)
        return Routing(experts=experts, number=layers * self.number, valid=self.valid)


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts(Part):
    """The shape of a small decoder whose feed-forward layers route each token to ``active`` of ``experts`` experts.

    ``shared`` experts serve every token beside them; the layers named in ``dense`` have one feed-forward network as
    wide as what a token activates elsewhere. ``length`` is the longest sequence in tokens.
    """

    width: int = 96
    layers: int = 4
    heads: int = 4
    experts: int = 16
    active: int = 2
    expert_width: int = 48
    shared: int = 0
    dense: tuple[int, ...] = ()
    length: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.experts:
            raise ValueError(f"active must lie in 1..{self.experts}, the number of experts, got {self.active}")

    def build(self, vocabulary: int, seed: int) -> Any:
        """A ``transformers`` causal language model over ``vocabulary`` tokens, its weights drawn from ``seed``."""
        from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

        config = Qwen2MoeConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            num_experts=self.experts,
            num_experts_per_tok=self.active,
            moe_intermediate_size=self.expert_width,
            shared_expert_intermediate_size=self.shared * self.expert_width,
            intermediate_size=(self.active + self.shared) * self.expert_width,
            mlp_only_layers=list(self.dense),
            max_position_embeddings=self.length,
            tie_word_embeddings=True,
            use_cache=False,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # no shared expert: a width of 0
            torch.manual_seed(seed)
            return Qwen2MoeForCausalLM(config)


def balance_loss(logits: Tensor, active: int) -> Tensor:
    """E Σ_e f_e P_e of each group of tokens, averaged over groups: 1 where routing is balanced, E where it collapsed.

    f_e is the share of the group's assignments that go to expert e, P_e the expert's mean probability (Switch
    Transformer, arXiv 2101.03961, eq. 4 to 6, for ``active`` experts). A batch in one group is balanced as a whole; a
    group a sequence demands balance inside each sequence. logits [G, T, E], G groups of T tokens → a scalar.
    """
    experts = logits.shape[-1]
    chosen = logits.detach().topk(active, dim=-1).indices.flatten(1)
    counts = torch.zeros(len(logits), experts, device=logits.device).scatter_add_(
        1, chosen, torch.ones_like(chosen, dtype=torch.float32)
    )
    return experts * (counts / chosen.shape[1] * logits.softmax(-1).mean(1)).sum(-1).mean()


def z_loss(logits: Tensor) -> Tensor:
    """The mean over tokens of (log Σ_e exp logit_e)²: keeps router logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return logits.logsumexp(-1).square().mean()


class RoutingRecorder:
    """While open, records which experts a ``transformers`` mixture-of-experts model uses, whatever its router does.

    ``with RoutingRecorder(model) as recorder: model(tokens)``, any number of times, then ``recorder.routing(valid)``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.experts = [
            module
            for name, module in model.named_modules()
            if name.endswith("experts") and hasattr(module, "num_experts")
        ]
        if not self.experts:
            raise ValueError(f"{type(model).__name__} has no routed experts to record: give a mixture-of-experts model")
        self.records: list[list[Tensor]] = [[] for _ in self.experts]

    def __enter__(self) -> RoutingRecorder:
        self.hooks = [
            module.register_forward_pre_hook(self._hook(record), with_kwargs=True)
            for module, record in zip(self.experts, self.records, strict=True)
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    @staticmethod
    def _hook(record: list[Tensor]) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            _, index, weights = (*args, *kwargs.values())
            record.append(index.gather(-1, weights.detach().argsort(-1, descending=True)).cpu())

        return hook

    def routing(self, valid: Tensor) -> Routing:
        """Everything recorded, as N samples; the model read them padded to T tokens, or packed without any padding.

        valid [N, T], False on padding. Raises ValueError where it has neither as many places nor as many tokens.
        """
        valid = valid.bool().cpu()
        layers = torch.stack([torch.cat(record) for record in self.records])
        if layers.shape[1] == valid.sum():
            packed = layers
            layers = torch.zeros(len(packed), valid.numel(), packed.shape[2], dtype=torch.int64)
            layers[:, valid.flatten()] = packed
        if layers.shape[1] != valid.numel():
            raise ValueError(
                f"{layers.shape[1]} tokens were recorded, but `valid` {list(valid.shape)} has {valid.numel()} places "
                f"and {int(valid.sum())} tokens"
            )
        experts = layers.view(len(layers), *valid.shape, -1)
        return Routing(experts=experts, number=int(self.experts[0].num_experts), valid=valid)
