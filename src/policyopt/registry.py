"""Names → methods, problems, policies, studies. Nothing is imported before it is asked for, so that ``--help`` is instant."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

PROBLEMS = {
    "arithmetic": ("policyopt.problems.language.arithmetic", "chains of operations with a verifiable answer (shipped)"),
    "thinking": (
        "policyopt.problems.language.thinking",
        "arithmetic chains, answered at several budgets of thinking",
    ),
    "reasoning-gym": ("policyopt.problems.language.reasoning", "any generator of the package reasoning-gym"),
    "dataset": ("policyopt.problems.language.dataset", "your prompts (a file or hub id) and your reward functions"),
    "preferences": (
        "policyopt.problems.language.preferences",
        "your preference data (a file or hub id), pairs or ranked lists",
    ),
    "signed-sum": (
        "policyopt.problems.language.mnns",
        "least non-negative signed sum of digits, for continuous thoughts",
    ),
    "bigrams": (
        "policyopt.problems.language.bigrams",
        "strings with a known true reward, for preferences with settable noise",
    ),
    "gym": ("policyopt.problems.control.environments", "any Gymnasium or MO-Gymnasium environment, by its id"),
    "point-mass": ("policyopt.problems.control.point_mass", "a point mass with three objectives"),
    "two-gap": ("policyopt.problems.control.two_gap", "a point mass behind a wall with two gaps, with demonstrations"),
    "multi-goal": ("policyopt.problems.control.multi_goal", "a point between four goals that are equally good"),
    "checker": (
        "policyopt.problems.control.checker",
        "logged walks to a goal that are good in places, for offline methods",
    ),
    "lqr": ("policyopt.problems.control.lqr", "a linear system with quadratic costs, with exact values"),
    "chain": ("policyopt.problems.control.chain", "a small reward nearby, a large one far away, with exact values"),
    "four-rooms": ("policyopt.problems.control.four_rooms", "a grid of four rooms, with four actions, deterministic"),
    "mixed-walks": (
        "policyopt.problems.control.mixed_walks",
        "logged episodes of an expert among random ones, for offline methods and their samplings",
    ),
    "minari": ("policyopt.problems.control.logged", "a logged data set, by its Minari id or its folder"),
    "tabular": ("policyopt.problems.decision.tabular", "random finite episodic decision processes with exact values"),
    "routing": ("policyopt.problems.decision.routing", "travelling salesman, vehicle routing, orienteering"),
    "lot-sizing": ("policyopt.problems.decision.lot_sizing", "what machines make next, before the demand is known"),
    "slippery-lake": ("policyopt.problems.decision.slippery_lake", "a walk to a goal in which moves may slip"),
    "knapsack": ("policyopt.problems.decision.knapsack", "knapsacks with exact solutions"),
}


@dataclass(frozen=True)
class Entry:
    """A method as its file says it: slug, title line, family, kind (method, wrapper or analysis), named variants."""

    slug: str
    title: str
    family: str
    kind: str
    variants: tuple[str, ...]


def unknown(what: str, name: str, names: list[str]) -> ValueError:
    """The error for a name that isn't known, with the nearest ones."""
    near = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(names))}"
    return ValueError(f"no {what} is called {name!r}; {hint}")


def _constant(tree: ast.Module, name: str) -> Any:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    return None


@lru_cache(maxsize=1)
def methods() -> dict[str, Entry]:
    """All methods by slug, read from their files without importing them."""
    entries = {}
    for path in sorted((HERE / "methods").glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = ast.parse(path.read_text())
        title = (ast.get_docstring(tree) or "").split("\n")[0]
        slug = path.stem.replace("_", "-")
        family = _constant(tree, "FAMILY") or "other"
        variants = tuple(_constant(tree, "VARIANTS") or ())
        entries[slug] = Entry(slug, title, family, _constant(tree, "KIND") or "method", variants)
    return entries


def problems() -> dict[str, str]:
    """The problems that ship, with one line each."""
    return {name: text for name, (_, text) in PROBLEMS.items()}


def method(name: str) -> Any:
    """``"grpo"`` or a variant, ``"grpo:dapo"`` → the frozen method."""
    slug, _, variant = name.partition(":")
    known = methods()
    if slug not in known:
        raise unknown("method", slug, list(known))
    if known[slug].kind != "method":
        raise ValueError(f"{slug} is a {known[slug].kind}, not a method to train: try `policyopt reproduce {slug}`")
    if variant and variant.replace("-", "_") not in {v.replace("-", "_") for v in known[slug].variants}:
        raise unknown(f"variant of {slug}", variant, list(known[slug].variants))
    module = import_module(f"policyopt.methods.{slug.replace('-', '_')}")
    return getattr(module, variant.replace("-", "_") or "method")()


def suited(name: str, problem: Any) -> str:
    """``name``, or its variant ``control`` where it has one and the problem has observation and action spaces: a method whose
    collector and usual settings differ there needs no other name."""
    fits = ":" not in name and hasattr(problem, "spaces") and "control" in methods()[name].variants
    return f"{name}:control" if fits else name


def problem(spec: str, **options: Any) -> Any:
    """``"arithmetic"``, ``"arithmetic:terms=6"``, ``"reasoning-gym:chain_sum"``, ``"dataset:train.jsonl"`` → the problem.
    ``"file.py:name"`` is one of your own: what the function or class of that name makes without arguments."""
    name, _, rest = spec.partition(":")
    own = name.endswith(".py")
    if not own and name not in PROBLEMS:
        raise unknown("problem", name, list(PROBLEMS))
    from policyopt.problems.language.rewards import load_name

    parse = load_name(name, rest, "problem") if own else import_module(PROBLEMS[name][0]).parse
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in signature(parse).parameters:
            raise ValueError(f"the problem {name} takes no {option}; dataset:… does")
    return parse(**given) if own else parse(rest, **given)


def policy(spec: str, problem: Any, **options: Any) -> Any:
    """A policy for ``problem``: its own kind where it makes one (``problem.policy(spec, …)``), a language model for a
    language problem; None for the others, whose methods bring their own networks."""
    from policyopt.models.load import load_policy
    from policyopt.problems.language.base import LanguageProblem

    if hasattr(problem, "policy"):
        return problem.policy(spec, **options)
    if not isinstance(problem, LanguageProblem):
        return None
    own = problem.tokenizer() if hasattr(problem, "tokenizer") else None  # a problem with words of its own
    return load_policy(spec, tokenizer=own, **options)


def studies() -> list[str]:
    """The slugs that have a study."""
    reserved = {"__init__", "claim", "arms", "gates", "workers", "bandits", "offline", "preferences"}
    return [p.stem.replace("_", "-") for p in sorted((HERE / "studies").glob("*.py")) if p.stem not in reserved]


def study(slug: str) -> Any:
    """The claim of ``slug``."""
    if slug not in studies():
        raise unknown("study", slug, studies())
    return import_module(f"policyopt.studies.{slug.replace('-', '_')}").claim
