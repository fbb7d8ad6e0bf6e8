"""Language policies: any `transformers` causal model that can continue prefixes and say how likely a response is.

``extend`` is the one sampler: every collector (groups, trees, windows, tools) is built on it. ``evaluate`` is the one
forward. Both speak of the distribution softmax(logits / temperature), ``temperature`` being a property of the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policyopt.models.attention import KeyValues
from policyopt.models.engines import SharedPrefixEngine, shared_head, token_logp
from policyopt.models.padded import Engine, PaddedEngine, agreeing_engine
from policyopt.types import Message, Outputs, Prompt, Rollouts


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are sampled. ``top_p`` = 1 and ``top_k`` = 0 sample the policy itself.

    temperature 0 decodes greedily. With truncated sampling (top_p < 1 or top_k > 0) the recorded ``behaviour_logp`` is that
    of the truncated distribution, while importance ratios compare untruncated ones on both sides (``old_logp``): slightly
    off-policy, and equal to one before the first update.
    """

    max_new_tokens: int | None = None  # None: what the problem allows
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"sampling needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0, got {self}")

    def choose(self, logits: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """logits [B, V] → actions, behaviour_logp, old_logp, entropy [B]."""
        logp = (logits.float() / (self.temperature or 1.0)).log_softmax(-1)
        probability = logp.exp()
        entropy = -torch.where(probability > 0, probability * logp, 0.0).sum(-1)
        if self.temperature == 0:
            best, actions = logp.max(-1)
            return {"actions": actions, "behaviour_logp": best, "old_logp": best, "entropy": entropy}
        kept = self._truncated(probability)
        cumulative = kept.double().cumsum(-1)
        total = cumulative[:, -1:]
        uniform = torch.rand(len(logits), 1, generator=rng, device=logits.device, dtype=torch.float64)
        actions = torch.searchsorted(cumulative, uniform * total, right=True).clamp(max=logits.shape[1] - 1)
        old_logp = logp.gather(-1, actions).squeeze(-1)
        behaviour = old_logp if kept is probability else old_logp - total.squeeze(-1).log().float()
        return {
            "actions": actions.squeeze(-1),
            "behaviour_logp": behaviour,
            "old_logp": old_logp,
            "entropy": entropy,
        }

    def _truncated(self, probability: Tensor) -> Tensor:
        """The probabilities that may be sampled, not renormalized; the same tensor where nothing is cut."""
        if self.top_p == 1.0 and (self.top_k == 0 or self.top_k >= probability.shape[1]):
            return probability
        ordered, index = probability.sort(-1, descending=True)
        cut = ordered.cumsum(-1) - ordered >= self.top_p
        if self.top_k:
            cut[:, self.top_k :] = True
        return torch.zeros_like(probability).scatter(-1, index, ordered.masked_fill(cut, 0.0))


@dataclass
class Prefixes:
    """Token sequences to continue, with keys and values of their beginnings where a former ``extend`` kept them.

    ``known`` is valid for the weights with the stamp ``version`` alone, and the next ``extend`` takes it away: without it the
    tokens are computed anew.
    """

    tokens: list[Tensor]
    known: KeyValues | None = None
    version: int = -1


@dataclass
class Continuations:
    """What ``extend`` sampled: sample i = prefix · samples + j continues prefix i // samples.

    actions, behaviour_logp, old_logp, entropy [M, T] (padded on the right), length [M]; finished [M] is False where the
    limit cut the response. ``forward_tokens`` counts every token that went through the model, recomputed prefixes included;
    ``sampled_tokens`` the sampled ones.
    """

    prefixes: list[Tensor]
    samples: int
    actions: Tensor
    behaviour_logp: Tensor
    old_logp: Tensor
    entropy: Tensor
    length: Tensor
    finished: Tensor
    forward_tokens: int
    version: int
    decoder: Any = None

    @property
    def sampled_tokens(self) -> int:
        return int(self.length.sum())

    def tokens(self, row: int, length: int | None = None) -> Tensor:
        """Prefix and the first ``length`` tokens of a sample (all of them by default)."""
        own = self.actions[row, : int(self.length[row]) if length is None else length]
        return torch.cat([self.prefixes[row // self.samples], own])

    def cut(self, rows: Sequence[int], lengths: Sequence[int], append: Sequence[Tensor] | None = None) -> Prefixes:
        """Prefixes that end after ``lengths[i]`` tokens of sample ``rows[i]``, with ``append[i]`` behind.

        With ``extend(…, keep=True)`` their keys and values are handed on, so that only the last token and what is
        appended are computed again.
        """
        tokens = [self.tokens(r, n) for r, n in zip(rows, lengths, strict=True)]
        known = None
        if self.decoder is not None and len(rows):
            index = torch.tensor(rows, device=self.length.device)
            computed = torch.tensor(lengths, device=index.device).clamp(max=self.length[index] - 1)
            known = self.decoder.memory(index, computed)
        if append is not None:
            tokens = [torch.cat([t, a]) for t, a in zip(tokens, append, strict=True)]
        if known is not None:  # the last token's hidden state is needed again
            total = torch.tensor([len(t) for t in tokens], device=self.length.device)
            known.length = torch.minimum(known.length, total - 1)
        return Prefixes(tokens, known, self.version)


class LanguagePolicy:
    """A causal language model with its tokenizer.

    ``model`` is a `transformers` causal LM or a `peft` model around one; ``tokenizer`` a `transformers` tokenizer.
    ``shared_prefixes`` None checks on a short batch whether the shared-prefix engine agrees with the plain forward and
    falls back with a warning where it does not.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, temperature: float = 1.0, shared_prefixes: bool | None = None
    ) -> None:
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.core = model.get_base_model() if hasattr(model, "peft_config") else model
        self.head = self.core.get_output_embeddings()
        if not isinstance(self.head, torch.nn.Linear):
            raise ValueError(f"{type(self.core).__name__} has no linear output layer, got {type(self.head).__name__}")
        config = self.core.config.get_text_config()
        if getattr(config, "final_logit_softcapping", None):
            raise ValueError(f"{type(self.core).__name__} caps its logits (final_logit_softcapping): not supported")
        self.logit_scale = float(
            getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", 0) or 1)
        )
        self.context = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self.model.eval()
        self._stops: dict[tuple[str, ...], Tensor] = {}
        self.engine: Engine
        if shared_prefixes is None:
            self.engine = agreeing_engine(self.core, self.logit_scale)
        else:
            self.engine = SharedPrefixEngine(self.core) if shared_prefixes else PaddedEngine(self.core)

    # -- facts

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def parameters(self) -> list[Tensor]:
        """The trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def version(self) -> int:
        """Rises with every in-place change of the weights; prefixes computed before are not reused."""
        return sum(p._version for p in self.model.parameters())

    @property
    def end_tokens(self) -> Tensor:
        ends = {self.tokenizer.eos_token_id, *_listed(self.core.generation_config.eos_token_id)} - {None}
        return torch.tensor(sorted(ends), dtype=torch.int64, device=self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        return logits if self.logit_scale == 1.0 else logits * self.logit_scale

    # -- actions: a step chooses one token; a subclass overrides these where a step is something else

    def inputs(self, tokens: Tensor) -> Tensor:
        """What the model is fed for a prompt [P] or for actions [.., …]: token ids, or embeddings [.., d]."""
        return tokens

    def _fed(self, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        """Ragged prompts as the model is fed them."""
        return self.inputs(torch.cat(list(rows))).split([len(row) for row in rows])

    def choose(self, logits: Tensor, step: int, sampling: Sampling, rng: torch.Generator) -> dict[str, Tensor]:
        """logits [B, V] of step ``step`` → actions [B, …], behaviour_logp, old_logp, entropy [B]."""
        return sampling.choose(logits, rng)

    def ended(self, actions: Tensor, rows: Tensor, step: int, ends: Tensor, stop: tuple[str, ...]) -> Tensor:
        """actions [M, T, …] so far, rows [B] of it → [B] True where the response is over with its step ``step``."""
        over = torch.isin(actions[rows, step], ends)
        return over | self._stopped(actions[rows, : step + 1], stop) if stop else over

    # -- text

    def encode(self, prompts: Sequence[Prompt], limit: int | None = None) -> list[Tensor]:
        """Texts as the tokenizer encodes them, messages through its chat template; one int64 tensor a prompt.

        ``limit`` keeps the last so many tokens of each.

        Raises ValueError for an empty prompt, one that fills the context, or messages without a chat template.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        plain = iter(self.tokenizer(texts)["input_ids"] if texts else [])
        encoded = []
        for number, prompt in enumerate(prompts):
            ids = next(plain) if isinstance(prompt, str) else self._templated(number, prompt)
            ids = ids if limit is None else ids[-limit:]
            if len(ids) == 0:
                raise ValueError(f"prompt {number} is empty after tokenization: {prompt!r}")
            if len(ids) >= self.context:
                raise ValueError(
                    f"prompt {number} has {len(ids)} tokens, but the model's context holds {self.context}: "
                    f"shorten the prompt (it begins with {str(prompt)[:60]!r})"
                )
            encoded.append(torch.tensor(ids, dtype=torch.int64, device=self.device))
        return encoded

    def _templated(self, number: int, messages: Sequence[Message]) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"prompt {number} is a list of messages, but this tokenizer has no chat template: "
                "give text prompts, or a model that was trained to chat"
            )
        ids: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids

    def decode(self, actions: Tensor, length: Tensor) -> list[str]:
        """actions [N, T], length [N] → N texts without special tokens."""
        rows = [row[:n] for row, n in zip(actions.tolist(), length.tolist(), strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def _stop_candidates(self, stop: tuple[str, ...]) -> Tensor:
        """[V] True for tokens after which a stop text may be complete: those that hold the last character of one."""
        if stop not in self._stops:
            texts = self.tokenizer.batch_decode([[i] for i in range(self.head.weight.shape[0])])
            ends = {text[-1] for text in stop}
            hit = [any(end in text for end in ends) for text in texts]
            self._stops[stop] = torch.tensor(hit, device=self.device)
        return self._stops[stop]

    def _stopped(self, history: Tensor, stop: tuple[str, ...]) -> Tensor:
        """history [B, t] of sampled tokens → [B] True where a stop text is complete; only candidates are decoded."""
        stopped = self._stop_candidates(stop)[history[:, -1]]
        rows = stopped.nonzero().squeeze(-1)
        tail = max(map(len, stop)) + 1  # a token holds a character or more, except for parts of one
        texts = self.tokenizer.batch_decode(history[rows, -4 * tail :].tolist())
        stopped[rows] = torch.tensor([any(s in t for s in stop) for t in texts], dtype=torch.bool, device=self.device)
        return stopped

    # -- sampling

    @torch.no_grad()
    def extend(
        self,
        prefixes: Prefixes | Sequence[Tensor],
        samples: int,
        sampling: Sampling,
        rng: torch.Generator,
        *,
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        keep: bool = False,
    ) -> Continuations:
        """Continue each of U token prefixes ``samples`` times (M = U · samples).

        A response ends with an end token or a stop text (both kept in ``actions``), or is cut after ``max_new_tokens`` or
        at the end of the context (``finished`` False). Each prefix goes through the model once; finished responses leave
        the batch at once; log-probabilities and entropies are recorded as the tokens are sampled. ``keep`` holds the keys
        and values for ``Continuations.cut``.
        """
        given = prefixes if isinstance(prefixes, Prefixes) else Prefixes(list(prefixes))
        if not given.tokens or samples < 1 or max_new_tokens < 1:
            raise ValueError("extend needs a prefix, a sample and a token at least")
        hidden, memory, forward_tokens = self._prefill(given)
        longest = max(len(p) for p in given.tokens)
        steps = min(max_new_tokens, self.context - longest)
        if steps < 1:
            raise ValueError(f"a prefix of {longest} tokens leaves no room in a context of {self.context}")
        count = len(given.tokens) * samples
        decoder = self.engine.decoder(memory, samples, steps)
        record = _Record(count, steps, self.device)
        logits = self.logits(hidden).repeat_interleave(samples, 0)
        ends, order = self.end_tokens, torch.arange(count, device=self.device)
        for step in range(steps):
            chosen = self.choose(logits, step, sampling, rng)
            record.add(order, step, chosen)
            over = self.ended(record.columns["actions"], order, step, ends, stop)
            record.finished[order] = over
            tokens, going = chosen["actions"], ~over
            if step + 1 == steps or not bool(going.any()):
                break
            if not bool(going.all()):
                picked = tokens.new_empty(count, *tokens.shape[1:])
                picked[order] = tokens
                order = decoder.retain(going)
                tokens = picked[order]
            forward_tokens += len(tokens)
            logits = self.logits(decoder.step(self.inputs(tokens)))
        return record.continuations(given.tokens, samples, forward_tokens, self.version, decoder if keep else None)

    def _prefill(self, given: Prefixes) -> tuple[Tensor, Any, int]:
        if given.known is None or given.version != self.version or isinstance(self.engine, PaddedEngine):
            return self.engine.prefill(self._fed(given.tokens))
        known, given.known = given.known, None
        suffixes = [tokens[n:] for tokens, n in zip(given.tokens, known.length.tolist(), strict=True)]
        return self.engine.resume(known, self._fed(suffixes))

    # -- the forward

    def states(self, batch: Rollouts, mask: Tensor) -> Tensor:
        """Hidden states [number of True in mask, d] before the actions where ``mask`` [N, T] is True."""
        if batch.group is None:
            first = parent = torch.arange(len(batch), device=mask.device)
        else:
            groups, parent = batch.group.unique(return_inverse=True)
            first = torch.empty_like(groups).scatter_(
                0, parent.flip(0), torch.arange(len(batch) - 1, -1, -1, device=mask.device)
            )
        prompts = [row[:n] for row, n in zip(batch.prompt[first], batch.prompt_length[first].tolist(), strict=True)]
        return self.engine.states(self._fed(prompts), parent, self.inputs(batch.actions), batch.length, mask)

    def evaluate(self, batch: Rollouts, want: Sequence[str] = ("logp",)) -> Outputs:
        """logp (and entropy where wanted) [N, T] of the actions where ``batch.mask``, zero elsewhere, with gradient.

        Rows of one ``group`` share one copy of their prompt; logits exist in chunks and only where the policy acted.
        """
        states, mask = self.states(batch, batch.mask), batch.mask
        logp, entropy = token_logp(
            states,
            self.head.weight,
            self.head.bias,
            batch.actions[mask],
            self.logit_scale / (self.temperature or 1.0),
            "entropy" in want,
        )
        blank = torch.zeros(mask.shape, device=mask.device)
        return Outputs(
            logp=blank.masked_scatter(mask, logp),
            entropy=None if entropy is None else blank.masked_scatter(mask, entropy),
        )

    def micro_batches(self, batch: Rollouts, tokens: int, whole: bool = False) -> list[Tensor]:
        """Row indices of pieces with at most ``tokens`` tokens (one row at least); rows of a group stay side by side.

        ``whole``: a group is never divided, and a piece holds one at least.
        """
        names = list(range(len(batch))) if batch.group is None else batch.group.tolist()
        order = sorted(range(len(batch)), key=names.__getitem__)
        own, prompt = batch.length.tolist(), batch.prompt_length.tolist()
        head = shared_head([row[:n] for row, n in zip(batch.prompt, prompt, strict=True)])
        parts = [list(rows) for _, rows in groupby(order, names.__getitem__ if whole else None)]
        pieces: list[list[int]] = []
        filled, last = tokens, None  # full, so that the first part begins a piece
        for part in parts:
            name, cost, asked = names[part[0]], sum(own[row] for row in part), prompt[part[0]] - head
            shared = name == last
            if filled + cost + (0 if shared else asked) > tokens:
                pieces.append([])
                filled, shared = head, False
            pieces[-1] += part
            filled, last = filled + cost + (0 if shared else asked), name
        return [torch.tensor(piece, device=batch.mask.device) for piece in pieces]

    def default_micro_batch(self) -> int:
        """Tokens whose activations take about 1 GiB: some 34 numbers of the hidden width a layer and token."""
        config = self.core.config.get_text_config()
        element = 4 if self.dtype == torch.float32 else 2
        return max(64, 2**30 // (34 * config.hidden_size * config.num_hidden_layers * element))

    def default_learning_rate(self) -> float:
        """5e-4 for models under a million parameters, 1e-5 for larger ones, ten times that for low-rank adapters."""
        if sum(p.numel() for p in self.core.parameters()) < 1_000_000:
            return 5e-4
        return 1e-4 if hasattr(self.model, "peft_config") else 1e-5

    # -- other networks of the same shape

    def copied(self) -> LanguagePolicy:
        """A policy of its own with the present weights."""
        engine = isinstance(self.engine, SharedPrefixEngine)
        return LanguagePolicy(
            deepcopy(self.model), self.tokenizer, temperature=self.temperature, shared_prefixes=engine
        )

    def frozen_copy(self) -> LanguagePolicy:
        """The same policy with its present weights, never trained."""
        copied = self.copied()
        copied.model.requires_grad_(False)
        return copied

    def critic(self, seed: int) -> Any:
        """A value network that starts from the policy's present weights."""
        from policyopt.models.language_critic import LanguageCritic  # it is built on this module

        return LanguageCritic(self, seed)

    # -- saving

    def state_dict(self) -> dict[str, Any]:
        """The trainable weights by name; all of them where none is trainable."""
        parameters = dict(self.model.named_parameters())
        return {n: p.detach() for n, p in parameters.items() if p.requires_grad} or parameters

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format (a LoRA is merged into a copy of its base)."""
        model = self.model
        if hasattr(model, "peft_config"):
            model = deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class _Record:
    """The columns of M responses while they grow."""

    def __init__(self, count: int, steps: int, device: torch.device) -> None:
        self.shape, self.columns = (count, steps), dict[str, Tensor]()
        self.length = torch.zeros(count, dtype=torch.int64, device=device)
        self.finished = torch.zeros(count, dtype=torch.bool, device=device)

    def add(self, rows: Tensor, step: int, chosen: dict[str, Tensor]) -> None:
        for name, values in chosen.items():
            if step == 0:
                self.columns[name] = values.new_zeros(*self.shape, *values.shape[1:])
            self.columns[name][rows, step] = values
        self.length[rows] = step + 1

    def continuations(
        self, prefixes: list[Tensor], samples: int, forward_tokens: int, version: int, decoder: Any
    ) -> Continuations:
        longest = int(self.length.max())
        return Continuations(
            prefixes=prefixes,
            samples=samples,
            length=self.length,
            finished=self.finished,
            forward_tokens=forward_tokens,
            version=version,
            decoder=decoder,
            **{name: column[:, :longest].contiguous() for name, column in self.columns.items()},
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
