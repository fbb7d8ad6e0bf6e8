"""Windows: every step samples a few tokens of each response, and what is unfinished goes on in the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.models.engines import padded
from policyopt.models.language import Continuations, LanguagePolicy, Sampling
from policyopt.rollouts.language import continued_rows, prompt_ids, response_metrics, scored_rollouts
from policyopt.types import Clock, Collected, Collector, Rollouts

RECORDED = ("actions", "behaviour_logp", "old_logp", "entropy")


class Unfinished:
    """The responses that wait for their next window, and how many prompts were served so far.

    ``tokens[i]`` holds what was recorded of response i, {name: [tokens so far]}: each log-probability is that of the policy
    which sampled the token.
    """

    def __init__(self) -> None:
        self.served = 0
        self.ids: list[int] = []
        self.tokens: list[dict[str, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"served": self.served, "ids": list(self.ids), "tokens": [dict(row) for row in self.tokens]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.served, self.ids, self.tokens = state["served"], list(state["ids"]), [dict(row) for row in state["tokens"]]


@dataclass(frozen=True, kw_only=True)
class Windows(Collector):
    """``slots`` responses that grow by at most ``window`` tokens a step; a finished one makes room for the next prompt.

    Gives two batches. "rollouts": a row a slot, the tokens of this step behind the prompt and all that was sampled before
    (``whole``: all tokens of the response behind its prompt); ``terminated`` where the response ended, ``truncated`` where
    the window cut it. "completed": the responses that ended in this step, whole and scored; missing where none did.

    A response also ends at ``sampling.max_new_tokens`` (None: the problem's limit) and is scored as it stands; the reward of
    an unfinished one is 0. A stop text has to lie within one window to be seen.
    """

    gives: ClassVar[tuple[str, ...]] = (*RECORDED, "scores", "group", "prompt_id", "terminated", "truncated")
    slots: int = 256
    window: int = 32
    whole: bool = False
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if self.slots < 1 or self.window < 1:
            raise ValueError(f"slots and window must be positive, got {self.slots} and {self.window}")

    def memory(self) -> Unfinished:
        return Unfinished()

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        assert isinstance(memory, Unfinished)
        new = self.slots - len(memory.ids)
        ids = memory.ids + prompt_ids(problem, new, clock, first=memory.served)
        prompts = policy.encode(problem.prompts(ids))
        begun = [row["actions"] for row in memory.tokens] + [prompts[0][:0]] * new
        sampled = policy.extend(
            [torch.cat(pair) for pair in zip(prompts, begun, strict=True)],
            1,
            self.sampling,
            clock.generator("sample", policy.device),
            max_new_tokens=self.window,
            stop=problem.stop,
        )
        room = self._room(policy, problem, prompts, begun)
        stopped = sampled.finished & (sampled.length <= room)
        recent = replace(sampled, length=sampled.length.minimum(room), finished=stopped | (sampled.length >= room))
        tokens = _grown(memory.tokens, recent)
        over, going = (which.nonzero().squeeze(1).tolist() for which in (recent.finished, ~recent.finished))
        memory.served += new
        memory.ids, memory.tokens = [ids[i] for i in going], [tokens[i] for i in going]

        reward = torch.zeros(self.slots, device=policy.device)
        batches, metrics = dict[str, Rollouts](), dict[str, Tensor | float]()
        if over:
            done = _responses([prompts[i] for i in over], [tokens[i] for i in over], stopped[over])
            batches["completed"] = scored_rollouts(policy, problem, [ids[i] for i in over], done)
            reward[over] = batches["completed"].scores["reward"]
            metrics = response_metrics(batches["completed"], done)
        rows = continued_rows(ids, _responses(prompts, tokens, recent.finished) if self.whole else recent)
        batches["rollouts"] = rows.replace(scores=TensorDict({"reward": reward}, [self.slots]))
        metrics |= {
            "response/completed": float(len(over)),
            "policy/entropy": (rows.entropy * rows.mask).sum() / rows.mask.sum(),
            "cost/tokens": sampled.sampled_tokens,
            "cost/forward_tokens": sampled.forward_tokens,
            "cost/positions": sampled.actions.shape[1],
        }
        return Collected(batches, metrics)

    def _room(self, policy: Any, problem: Any, prompts: Sequence[Tensor], begun: Sequence[Tensor]) -> Tensor:
        """How many tokens each response may still have, [slots]."""
        limit = self.sampling.max_new_tokens or problem.max_new_tokens
        most = [min(limit, policy.context - len(p)) - len(b) for p, b in zip(prompts, begun, strict=True)]
        return torch.tensor(most, device=policy.device)


def _grown(tokens: Sequence[Mapping[str, Tensor]], recent: Continuations) -> list[dict[str, Tensor]]:
    """What was recorded of each response with the present window behind; those beyond ``tokens`` are new."""
    grown = []
    for i, length in enumerate(recent.length.tolist()):
        own = {name: getattr(recent, name)[i, :length].clone() for name in RECORDED}
        grown.append({name: torch.cat([tokens[i][name], own[name]]) for name in RECORDED} if i < len(tokens) else own)
    return grown


def _responses(prompts: list[Tensor], tokens: Sequence[Mapping[str, Tensor]], finished: Tensor) -> Continuations:
    """Whole responses as continuations of their prompts."""
    columns = {name: padded([row[name] for row in tokens])[0] for name in RECORDED}
    _, length = padded([row["actions"] for row in tokens])
    return Continuations(
        prefixes=prompts, samples=1, **columns, length=length, finished=finished, forward_tokens=0, version=-1
    )
