"""Methods as trees of names and values: shown, compared, overridden from the command line, written to ``config.yaml``."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, get_type_hints

import yaml

from policyopt.types import Part


def describe(value: Any) -> Any:
    """A part as {"part": class name, field: value, …}, recursively; numbers, text and None as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"part": type(value).__name__, **{f.name: describe(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", type(value).__name__)


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of ``describe``; a part itself is the leaf ``path`` with its class name."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "part":
                yield path or "method", value
            else:
                yield from flat(value, f"{path}.{key}" if path else key)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from flat(value, f"{path}.{i}")
        if not tree:
            yield path, "none"
    else:
        yield path, tree


def difference(first: Any, second: Any) -> list[tuple[str, Any, Any]]:
    """(path, first's value, second's value) where two methods differ; "-" where one has no such field."""
    one, two = dict(flat(describe(first))), dict(flat(describe(second)))
    paths = list(dict.fromkeys([*one, *two]))
    return [(p, one.get(p, "-"), two.get(p, "-")) for p in paths if one.get(p, "-") != two.get(p, "-")]


def override(method: Any, path: str, text: str) -> Any:
    """``method`` with the field at ``path`` (``optimizer.learning_rate``, ``credit.0.epsilon``) set to ``text``.

    Values are read as YAML (numbers as Python reads them too); where the field holds a part, ``text`` names another class
    of its kind, with arguments where wanted: ``RatioClip(low=0.1)``. Raises ValueError with the nearest field or part.
    """
    head, _, rest = path.partition(".")
    if isinstance(method, tuple):
        if not head.isdigit() or int(head) >= len(method):
            raise ValueError(f"{head!r} is not a position: there are {len(method)} parts, numbered from 0")
        items = list(method)
        items[int(head)] = override(items[int(head)], rest, text) if rest else _value(items[int(head)], text, None)
        return tuple(items)
    names = [f.name for f in fields(method)]
    if head not in names:
        raise ValueError(f"{type(method).__name__} has no field {head!r}{_nearest(head, names)}")
    current = getattr(method, head)
    if rest:
        if not is_dataclass(current) and not isinstance(current, tuple):
            raise ValueError(f"{head} is {current!r} and has no fields of its own, so {path!r} leads nowhere")
        return replace(method, **{head: override(current, rest, text)})
    declared = get_type_hints(type(method)).get(head)
    return replace(method, **{head: _value(current, text, declared)})


def _value(current: Any, text: str, declared: Any) -> Any:
    if isinstance(current, Part):
        return _part(current, text)
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)  # 3e-4, which YAML takes for text
    number = isinstance(current, float) or (current is None and "float" in str(declared))
    if isinstance(value, int) and not isinstance(value, bool) and number:
        value = float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    if current is not None and value is not None and type(value) is not type(current):
        raise ValueError(f"expected a {type(current).__name__} like {current!r}, got {text!r}")
    if value is None and current is not None and "None" not in str(declared):
        raise ValueError(f"expected a {type(current).__name__} like {current!r}, got {text!r}")
    return value


def _kind(part: Part) -> type[Part]:
    """The class of a stage's pieces that ``part`` is one of: its topmost ancestor below Part."""
    line = [c for c in type(part).__mro__ if issubclass(c, Part) and c is not Part]
    return line[-1]


def _family(kind: type[Part]) -> dict[str, type[Part]]:
    known = {kind.__name__: kind}
    for below in kind.__subclasses__():
        known |= _family(below)
    return {name: c for name, c in known.items() if not name.startswith("_")}


def _part(current: Part, text: str) -> Part:
    """Another part of the same kind, from ``Name`` or ``Name(field=value, …)``; nothing is evaluated but literals."""
    known = _family(_kind(current))
    try:
        call = ast.parse(text.strip(), mode="eval").body
        name = call.func if isinstance(call, ast.Call) else call
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords} if isinstance(call, ast.Call) else {}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read {text!r}: write a part as Name or Name(field=value)") from error
    if not isinstance(name, ast.Name) or name.id not in known:
        given = name.id if isinstance(name, ast.Name) else text
        raise ValueError(f"no {_kind(current).__name__} is called {given!r}{_nearest(given, list(known))}")
    names = [f.name for f in fields(known[name.id])]
    for argument in arguments:
        if argument not in names:
            raise ValueError(f"{name.id} has no field {argument!r}{_nearest(argument, names)}")
    return known[name.id](**arguments)


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(names))}"
