"""Methods as trees of names and values: shown, compared, overridden from the command line, written to ``config.yaml``."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

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

    Values are read as YAML or as Python literals, and must be of the field's declared type; where the field holds a part,
    ``text`` names another class of its kind, with arguments where wanted: ``RatioClip(low=0.1, high=0.3)``. Nothing is
    evaluated but literals. Raises ValueError with the nearest field or part.
    """
    head, _, rest = path.partition(".")
    if isinstance(method, tuple):
        if not head.isdigit() or int(head) >= len(method):
            raise ValueError(f"{head!r} is not a position: there are {len(method)} parts, numbered from 0")
        items = list(method)
        item = items[int(head)]
        items[int(head)] = override(item, rest, text) if rest else _value(head, item, type(item), text)
        return tuple(items)
    names = [f.name for f in fields(method)]
    if head not in names:
        raise ValueError(f"{type(method).__name__} has no field {head!r}{_nearest(head, names)}")
    current = getattr(method, head)
    if rest:
        if not is_dataclass(current) and not isinstance(current, tuple):
            raise ValueError(f"{head} is {current!r} and has no fields of its own, so {path!r} leads nowhere")
        return replace(method, **{head: override(current, rest, text)})
    return replace(method, **{head: _value(head, current, get_type_hints(type(method))[head], text)})


def _value(name: str, current: Any, declared: Any, text: str) -> Any:
    """What ``text`` says, for a field that holds ``current``."""
    value = _literal(text)
    value = text if declared is str and not isinstance(value, str) else value
    kinds = [kind for kind in (declared, *get_args(declared)) if isinstance(kind, type) and issubclass(kind, Part)]
    if kinds and value is not None and get_origin(declared) is not tuple:
        return _part(kinds[0] if current is None else type(current), text)
    try:
        return _typed(value, declared)
    except ValueError:
        kind = declared.__name__ if isinstance(declared, type) else declared
        raise ValueError(f"{name}: expected {kind}, such as {current!r}, got {text!r}") from None


def _literal(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)  # 3e-4, which YAML takes for text
    return value


def _typed(value: Any, declared: Any) -> Any:
    """``value`` in its declared type: a list as a tuple, 1 as 1.0; ValueError where it is of another."""
    origin, inside = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        for kind in inside:
            with suppress(ValueError):
                return _typed(value, kind)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return tuple(_typed(item, kind) for item, kind in zip(value, kinds, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return {_typed(key, inside[0]): _typed(item, inside[1]) for key, item in value.items()}
    if declared is float and type(value) is int:
        return float(value)
    if declared is not Any and type(value) is not declared:
        raise ValueError
    return value


def _kind(part: type[Part]) -> type[Part]:
    """The class of a stage's pieces that ``part`` is one of: its topmost ancestor below Part."""
    return [c for c in part.__mro__ if issubclass(c, Part) and c is not Part][-1]


def _family(kind: type[Part]) -> dict[str, type[Part]]:
    known = {kind.__name__: kind}
    for below in kind.__subclasses__():
        known |= _family(below)
    return {name: c for name, c in known.items() if not name.startswith("_")}


def _part(like: type[Part], text: str) -> Part:
    """A part of the kind of ``like``, from ``Name`` or ``Name(field=value, …)``."""
    known = _family(_kind(like))
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read {text!r}: write a part as Name or Name(field=value)") from error
    name, given = (call.func, call.keywords) if isinstance(call, ast.Call) else (call, [])
    if not isinstance(name, ast.Name) or name.id not in known:
        wanted = name.id if isinstance(name, ast.Name) else text
        raise ValueError(f"no {_kind(like).__name__} is called {wanted!r}{_nearest(wanted, list(known))}")
    if (isinstance(call, ast.Call) and call.args) or not all(keyword.arg for keyword in given):
        raise ValueError(f"cannot read {text!r}: write a part as Name or Name(field=value)")
    part, names = known[name.id], [f.name for f in fields(known[name.id])]
    arguments = {}
    for argument, value in ((str(keyword.arg), ast.unparse(keyword.value)) for keyword in given):
        if argument not in names:
            raise ValueError(f"{part.__name__} has no field {argument!r}{_nearest(argument, names)}")
        arguments[argument] = _value(argument, getattr(part, argument, None), get_type_hints(part)[argument], value)
    try:
        return part(**arguments)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{text}: {error}") from error


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(names))}"
