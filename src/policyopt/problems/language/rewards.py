"""Reward functions named in text, with TRL's signature: ``reward(prompts, completions, **columns) -> list[float]``.

``completions`` are texts where the prompts are texts, and lists of one assistant message where they are messages; every
other column of the data comes by its name. A function is named ``module:function``, ``file.py:function`` or, for one of
``BUILT_IN``, by its name alone.

A function may return None for a row that it does not apply to: it then adds nothing to that row's reward. NaN and
infinity are errors, since they would only surface later, as a ruined update.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from policyopt.problems.language.base import choose

RewardFunction: TypeAlias = Callable[..., Sequence[float | None]]


def exact_match(completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the completion, without spaces around it, is the text of the column ``answer``, else 0."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(text.strip() == str(truth).strip()) for text, truth in zip(texts, answer, strict=True)]


BUILT_IN: Mapping[str, RewardFunction] = {"exact_match": exact_match}


def parse_rewards(text: str) -> tuple[dict[str, str], dict[str, float]]:
    """``"rewards.py:correct=1.0,rewards.py:short=0.1"`` as {name: source} and {name: weight}; a weight left out is 1.

    The name is the function's; one that is called ``reward``, as the weighted sum is, gets its module's name in front.

    Raises:
        ValueError: a weight that is no number, or two functions of one name.
    """
    sources: dict[str, str] = {}
    weights: dict[str, float] = {}
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        source, weight = piece.rsplit("=", 1) if "=" in piece else (piece, "1")
        home, _, name = source.rpartition(":")
        if name == "reward":
            name = f"{Path(home).stem.rpartition('.')[2]}_reward"
        if name in sources:
            raise ValueError(f"two reward functions are called {name!r}: {sources[name]} and {source}; rename one")
        sources[name], weights[name] = source, _weight(weight, piece)
    if not sources:
        raise ValueError(f"no reward function in {text!r}; name one as file.py:function or module:function")
    return sources, weights


def _weight(text: str, piece: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"cannot read the weight in {piece!r}; write file.py:function=0.5")
    return weight


def load_function(source: str) -> RewardFunction:
    """The function that ``module:function``, ``file.py:function`` or a built-in name stands for.

    Raises:
        ValueError: no such file, module or function (the nearest name is told), or its import fails (the cause).
    """
    home, colon, name = source.rpartition(":")
    if not colon:
        choose(source, list(BUILT_IN), "a reward function without a file or module must be built in;")
        return BUILT_IN[source]
    function: RewardFunction = load_name(home, name, "reward function")
    return function


def load_name(home: str, name: str, what: str) -> Any:
    """The function or class ``name`` of a module or ``.py`` file; ``what`` it is for stands in the errors (ValueError)."""
    path = Path(home).expanduser().resolve()
    module = _load_file(path, what) if home.endswith(".py") else _load_module(home, what)
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    choose(name, functions, f"the {what} in {home}:")
    return getattr(module, name)


def _load_module(name: str, what: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:
        raise ValueError(
            f"cannot import the module {name!r} of a {what}: {error!r}; a file is named {name}.py:…"
        ) from error


@lru_cache(maxsize=64)
def _load_file(file: Path, what: str) -> ModuleType:
    if not file.is_file():
        siblings = sorted(other.name for other in file.parent.glob("*.py"))
        raise ValueError(
            f"no file {file.name!r} for a {what}; {file.parent} has {', '.join(siblings) or 'no .py file'}"
        )
    name = f"policyopt_file_{blake2b(str(file).encode(), digest_size=6).hexdigest()}"
    spec = spec_from_file_location(name, file)
    assert spec is not None  # a name that ends in .py has a loader
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses in the file look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"the {what}'s file {str(file)!r} fails on import: {error!r}") from error
    return module


def check_arguments(name: str, function: RewardFunction, columns: Sequence[str]) -> None:
    """Raises ValueError where the function requires an argument that is neither prompts, completions nor a column."""
    given = ["prompts", "completions", *columns]
    for argument in inspect.signature(function).parameters.values():
        required = argument.default is argument.empty and argument.kind in (
            argument.POSITIONAL_OR_KEYWORD,
            argument.KEYWORD_ONLY,
        )
        if required:
            choose(argument.name, given, f"the reward function {name!r} asks for a column; the column")


def call(
    name: str, function: RewardFunction, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
) -> Tensor:
    """The function's rewards as float32 [N], 0 where it returns None.

    Raises:
        ValueError: the function raises (kept as the cause; the row is told where one row alone makes it raise), returns
            something else than N numbers, or a number that is not finite.
    """
    arguments = _accepted(function, {"prompts": prompts, "completions": completions, **columns})
    try:
        returned = function(**arguments)
    except Exception as error:
        row = _first_failure(function, arguments, len(completions))
        where = (
            "" if row is None else f" at row {row} of the batch, prompt {prompts[row]!r}, response {completions[row]!r}"
        )
        raise ValueError(f"the reward function {name!r} raised {error!r}{where}") from error
    if isinstance(returned, Tensor) or hasattr(returned, "tolist"):
        returned = returned.tolist()
    if not isinstance(returned, list | tuple) or len(returned) != len(completions):
        size = f"{len(returned)} values" if isinstance(returned, list | tuple) else repr(returned)[:80]
        raise ValueError(
            f"the reward function {name!r} must return a list of {len(completions)} numbers, one a response; got {size}"
        )
    return torch.tensor([_number(value, name, row) for row, value in enumerate(returned)], dtype=torch.float32)


def _accepted(function: RewardFunction, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that the function takes: all of them where it has ``**columns``."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def _first_failure(function: RewardFunction, arguments: Mapping[str, Sequence[Any]], rows: int) -> int | None:
    for row in range(rows):
        try:
            function(**{name: [values[row]] for name, values in arguments.items()})
        except Exception:
            return row
    return None


def _number(value: Any, name: str, row: int) -> float:
    if value is None:
        return 0.0
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"the reward function {name!r} returned {value!r} for row {row} of the batch; expected a finite number, or "
            f"None where it does not apply"
        )
    return number
