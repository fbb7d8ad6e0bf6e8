"""Your own model: any causal language model of `transformers` with its tokenizer, here a small GPT-2 made on the spot.

    python examples/own_policy.py [updates]

A model that cannot read its task yet has nothing to be rewarded for, so it imitates demonstrations first: `Stages`.
"""

import sys

from transformers import GPT2Config, GPT2LMHeadModel

from policyopt import train
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import rloo, sft
from policyopt.models.language import LanguagePolicy
from policyopt.models.tiny import character_tokenizer
from policyopt.types import Budget

tokenizer = character_tokenizer()  # AutoTokenizer.from_pretrained("./my-model") for one of yours
config = GPT2Config(
    vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=64, eos_token_id=2, bos_token_id=1
)
policy = LanguagePolicy(GPT2LMHeadModel(config), tokenizer, temperature=1.0)

if __name__ == "__main__":
    updates = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    imitate = Stage(name="imitate", method=sft.method(), until=Budget(updates=updates))
    method = Stages(stages=(imitate, Stage(name="improve", method=rloo.method())))
    result = train(method, "arithmetic:terms=3", policy, budget=Budget(updates=2 * updates), evaluations=4)
    print(f"accuracy: {result.curve('eval/accuracy')[1][0]:.2f} before, {result.last('eval/accuracy'):.2f} after")
    policy.save(result.folder / "policy")  # in Hugging Face format, to be loaded with --policy
