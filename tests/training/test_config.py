"""Methods as trees of names and values: described, compared, overridden, written down and read again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from policyopt import api
from policyopt.learners.update import Adam, Cosine
from policyopt.methods import grpo, ppo, sft
from policyopt.objectives.estimators import SequenceSum, WeightClip
from policyopt.objectives.policy_gradient import RatioClip, SequenceMean, TokenMean
from policyopt.training.config import describe, difference, flat, override
from policyopt.types import Part


@dataclass(frozen=True, kw_only=True)
class Colour(Part):
    red: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Dark(Colour):
    black: float = 0.9


@dataclass(frozen=True, kw_only=True)
class _Hidden(Colour):
    pass


@dataclass(frozen=True, kw_only=True)
class Outer(Part):
    inner: Colour = Colour()
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Everything(Part):
    count: int = 3
    rate: float = 0.1
    flag: bool = False
    name: str = "plain"
    maybe: int | None = None
    share: float | None = None
    limit: float | None = 1.0
    pair: tuple[float, float] = (0.9, 0.99)
    colour: Colour = Colour()
    accent: Colour | None = None
    nested: Outer = Outer()
    colours: tuple[Colour, ...] = (Colour(), Dark(black=0.2))


METHOD = Everything()


def leaf(method: Any, path: str) -> Any:
    return dict(flat(describe(method)))[path]


def test_describe_shows_every_kind_of_value() -> None:
    assert describe(METHOD) == {
        "part": "Everything",
        "count": 3,
        "rate": 0.1,
        "flag": False,
        "name": "plain",
        "maybe": None,
        "share": None,
        "limit": 1.0,
        "pair": [0.9, 0.99],
        "colour": {"part": "Colour", "red": 0.5},
        "accent": None,
        "nested": {"part": "Outer", "inner": {"part": "Colour", "red": 0.5}, "size": 1},
        "colours": [{"part": "Colour", "red": 0.5}, {"part": "Dark", "red": 0.5, "black": 0.2}],
    }
    assert describe({"a": Colour(), 1: describe}) == {"a": {"part": "Colour", "red": 0.5}, "1": "describe"}
    assert yaml.safe_load(yaml.safe_dump(describe(ppo.method()))) == describe(ppo.method())


def test_flat_names_leaves_as_override_takes_them() -> None:
    leaves = dict(flat(describe(METHOD)))
    assert leaves["method"] == "Everything"
    assert leaves["colours.1"] == "Dark"
    assert leaves["colours.1.black"] == 0.2
    assert leaves["pair.0"] == 0.9
    assert dict(flat(describe(replace(METHOD, colours=()))))["colours"] == "none"


@pytest.mark.parametrize("method", [METHOD, grpo.method(), ppo.method(), sft.method()], ids=lambda m: type(m).__name__)
def test_every_shown_leaf_can_be_set_to_what_it_shows(method: Any) -> None:
    for path, value in flat(describe(method)):
        if path != "method" and value not in ("none", None, "Sampling"):  # no other kind of sampling there is
            assert leaf(override(method, path, str(value)), path) == value, path


def test_difference_lists_what_differs_and_only_that() -> None:
    other = replace(METHOD, rate=0.2, colour=Dark(red=0.5), colours=(Colour(),))
    assert difference(METHOD, other) == [
        ("rate", 0.1, 0.2),
        ("colour", "Colour", "Dark"),
        ("colours.1", "Dark", "-"),
        ("colours.1.red", 0.5, "-"),
        ("colours.1.black", 0.2, "-"),
        ("colour.black", "-", 0.9),
    ]
    assert difference(METHOD, METHOD) == []
    assert ("objective.aggregation", "SequenceMean", "TokenMean") in difference(grpo.method(), grpo.token_mean())


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("count", "7", 7),
        ("rate", "3e-4", 3e-4),
        ("rate", "1", 1.0),
        ("flag", "true", True),
        ("name", "other", "other"),
        ("maybe", "5", 5),
        ("maybe", "null", None),
        ("name", "3", "3"),
        ("accent", "Dark", Dark()),
        ("accent", "null", None),
        ("nested", "Outer(inner=Dark(black=0.3), size=2)", Outer(inner=Dark(black=0.3), size=2)),
        ("share", "1", 1.0),
        ("limit", "null", None),
        ("limit", "2", 2.0),
        ("pair", "[0.8, 0.9]", (0.8, 0.9)),
        ("pair", "(0.8, 0.9)", (0.8, 0.9)),
        ("pair.1", "0.5", (0.9, 0.5)),
        ("colour.red", "1", Colour(red=1.0)),
        ("colour", "Dark", Dark()),
        ("colour", "Dark(black=0.1, red=1)", Dark(black=0.1, red=1.0)),
        ("colours.1.black", "0.7", (Colour(), Dark(black=0.7))),
        ("colours.1", "Colour(red=0.25)", (Colour(), Colour(red=0.25))),
    ],
)
def test_override_sets_one_field(path: str, text: str, value: Any) -> None:
    head = path.partition(".")[0]
    changed = override(METHOD, path, text)
    got = getattr(changed, head)
    assert got == value
    assert type(got) is type(value)
    assert replace(changed, **{head: getattr(METHOD, head)}) == METHOD, "nothing else has changed"


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("rat", "1", "Everything has no field 'rat'; did you mean 'rate'?"),
        ("zzz", "1", "Everything has no field 'zzz'; there are accent, colour, colours, count"),
        ("colour.redd", "1", "Colour has no field 'redd'; did you mean 'red'?"),
        ("rate.x", "1", "rate is 0.1 and has no fields of its own, so 'rate.x' leads nowhere"),
        ("colours.2", "Dark", "'2' is not a position: there are 2 parts, numbered from 0"),
        ("colours.first", "Dark", "'first' is not a position"),
        ("count", "1.5", "count: expected int, such as 3, got '1.5'"),
        ("count", "many", "count: expected int, such as 3, got 'many'"),
        ("count", "true", "count: expected int, such as 3, got 'true'"),
        ("rate", "true", "rate: expected float, such as 0.1, got 'true'"),
        ("rate", "null", "rate: expected float, such as 0.1, got 'null'"),
        ("flag", "1", "flag: expected bool, such as False, got '1'"),
        ("pair", "0.9", "pair: expected tuple[float, float], such as (0.9, 0.99), got '0.9'"),
        ("maybe", "many", "maybe: expected int | None, such as None, got 'many'"),
        ("share", "many", "share: expected float | None, such as None, got 'many'"),
        ("pair", "[a, b]", "pair: expected tuple[float, float]"),
        ("pair", "[0.9]", "pair: expected tuple[float, float]"),
        ("colour", "Darc", "no Colour is called 'Darc'; did you mean 'Dark'?"),
        ("colour", "_Hidden", "no Colour is called '_Hidden'"),
        ("colour", "Everything", "no Colour is called 'Everything'"),
        ("colour", "Dark(blac=1)", "Dark has no field 'blac'; did you mean 'black'?"),
        ("colour", "Dark(0.1)", "write a part as Name or Name(field=value)"),
        ("colour", "Dark(black=", "write a part as Name or Name(field=value)"),
        ("colour", "Dark(black='much')", "black: expected float, such as 0.9, got"),
        ("colour", "Dark(**{'black': 1})", "write a part as Name or Name(field=value)"),
        ("colours", "3", "colours: expected tuple["),
        ("colours", "[Dark]", "colours: expected tuple["),
        ("rate", "[1", "rate: expected float, such as 0.1, got '[1'"),
    ],
)
def test_what_cannot_be_set_is_refused(path: str, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared as text)
        override(METHOD, path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {0}')",
        "Dark(black=__import__('os').system('touch {0}'))",
        "(lambda: open('{0}', 'w'))()",
        "Dark(black=open('{0}', 'w'))",
        "!!python/object/apply:os.system ['touch {0}']",
    ],
)
@pytest.mark.parametrize("path", ["colour", "rate", "maybe", "pair"])
def test_nothing_that_is_written_is_executed(path: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected|cannot read|no Colour"):
        override(METHOD, path, text.replace("{0}", str(tmp_path / "touched")))
    assert not list(tmp_path.iterdir())


def test_parts_of_a_real_method_by_name() -> None:
    method = override(grpo.method(), "objective.stabilization", "WeightClip(high=0.5)")
    assert method.objective.stabilization == WeightClip(high=0.5)
    method = override(method, "objective.aggregation", "SequenceSum")
    assert method.objective.aggregation == SequenceSum()
    method = override(method, "optimizer.schedule", "Cosine(final=0.1, warmup=5)")
    assert method.optimizer == Adam(schedule=Cosine(final=0.1, warmup=5))
    method = override(method, "optimizer.gradient_clip", "null")
    assert method.optimizer.gradient_clip is None
    with pytest.raises(ValueError, match=r"no Aggregation is called 'SequenceMeen'; did you mean 'SequenceMean'"):
        override(method, "objective.aggregation", "SequenceMeen")
    with pytest.raises(ValueError, match=r"learning_rate must be positive, got -1\.0"):
        override(method, "optimizer.learning_rate", "-1")


def test_variants_are_what_overrides_would_make_of_the_method() -> None:
    assert override(grpo.method(), "objective.aggregation", "TokenMean") == grpo.token_mean()
    assert override(grpo.dapo(), "objective.stabilization.high", "0.2").objective.stabilization == RatioClip()
    assert grpo.method().objective.aggregation == SequenceMean()
    assert grpo.dapo().objective.aggregation == TokenMean()


# -- config.yaml

CHOSEN = api.Settings(
    method="grpo:dapo",
    problem="arithmetic:terms=2",
    policy="fresh",
    budget="3-updates",
    seed=5,
    overrides={"optimizer.learning_rate": "3e-4", "objective.stabilization": "RatioClip(low=0.1)"},
    micro_batch=64,
    threads=1,
)


def written(settings: api.Settings, folder: Path) -> Path:
    api._write_config(settings, settings.build()[0], folder)
    return folder / "config.yaml"


def rewritten(file: Path, change: Any) -> Path:
    record = yaml.safe_load(file.read_text())
    change(record)
    file.write_text(yaml.safe_dump(record))
    return file


@pytest.mark.parametrize("settings", [CHOSEN, replace(CHOSEN, warm_start=2)], ids=["plain", "warm start"])
def test_a_config_repeats_exactly(settings: api.Settings, tmp_path: Path) -> None:
    file = written(settings, tmp_path)
    assert api.read_config(file) == settings
    assert api.read_config(tmp_path) == settings, "a run folder will do"
    assert api.read_config(file).build()[0] == settings.build()[0]


@pytest.mark.parametrize("settings", [CHOSEN, replace(CHOSEN, warm_start=2)], ids=["plain", "warm start"])
def test_a_config_whose_defaults_have_changed_is_refused(settings: api.Settings, tmp_path: Path) -> None:
    def former(record: dict[str, Any]) -> None:
        method = record["resolved"] if settings.warm_start == 0 else record["resolved"]["stages"][-1]["method"]
        method["credit"][0]["epsilon"] = 1e-4

    with pytest.raises(ValueError, match=r"other defaults: .*credit\.0\.epsilon was 0\.0001 and is 1e-06"):
        api.read_config(rewritten(written(settings, tmp_path), former))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["settings"].update(sead=1), "unknown setting 'sead'; did you mean 'seed'?"),
        (lambda r: r.pop("settings"), "is not a run's configuration: it has no `settings`"),
        (lambda r: r.update(repeatable=False), "run that script again to repeat it"),
        (lambda r: r["settings"].update(method="grp"), "no method is called 'grp'; did you mean grpo"),
        (
            lambda r: r["settings"]["overrides"].update(epoch="2"),
            "OnPolicy has no field 'epoch'; did you mean 'epochs'?",
        ),
        (lambda r: r["settings"].pop("method"), "the setting 'method' is missing"),
        (lambda r: r.update(settings=3), "it has no `settings`"),
    ],
)
def test_a_config_that_cannot_be_repeated_says_why(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared as text)
        api.read_config(rewritten(written(CHOSEN, tmp_path), change))
    assert message in str(caught.value)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("settings: [1")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        api.read_config(tmp_path)
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        api.read_config(tmp_path / "nowhere")


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    written(CHOSEN, tmp_path)
    with pytest.raises(ValueError, match="holds a run already: choose another folder"):
        written(CHOSEN, tmp_path)


def test_settings_apply_to_a_method_object_as_well() -> None:
    chosen = replace(CHOSEN, warm_start=2)
    assert chosen.configured(grpo.dapo()) == chosen.configured()
    assert CHOSEN.configured(sft.method()).optimizer.learning_rate == 3e-4
