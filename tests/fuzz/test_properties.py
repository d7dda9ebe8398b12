"""Properties that hold for every input that hypothesis thinks of; where they are stronger than a spoilt file."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trajgen.cli.overrides import parse
from trajgen.core.errors import ConfigError, DataError, TrajgenError
from trajgen.core.options import convert
from trajgen.core.registry import KINDS, build
from trajgen.core.types import Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.experiments.definition import merge_overrides, option_of, read_axis

settings.register_profile("fuzz", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("fuzz")

PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
"""Whatever JSON or YAML can hold."""


def require_fix(error: TrajgenError) -> None:
    """A refusal says what to do."""
    assert error.fix, error


# --- words of the command line --------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["sampler", "sampler.name", "sampler.temperature", "evaluation.episodes", "evaluation", "a", "a.b", ""]
)
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["[" * 600, "greedy", "{a: 1}", "[1, 2]", "2026-02-31", "9" * 5000, "&a [*a]", "!!python/name:os.system", "? "]
    ),
)
WORDS = st.lists(st.one_of(st.builds("{}={}".format, KEYS, VALUES), st.text(max_size=12)), max_size=5)


@given(WORDS)
@example(["sampler=greedy", "evaluation.episodes=3"])
def test_words_are_read_or_refused(words: list[str]) -> None:
    try:
        values = parse(words)
    except ConfigError as error:
        require_fix(error)
        return
    for word in words:
        node: Any = values
        for part in word.partition("=")[0].split("."):
            assert isinstance(node, dict)
            node = node.get(part, values)  # a later word may have taken its place
    assert all(isinstance(values[key], dict) for key in values if key in KINDS and values[key] == "greedy")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?", fullmatch=True), st.integers() | st.booleans(), max_size=4
    )
)
def test_words_say_what_was_meant(overrides: dict[str, Any]) -> None:
    heads = [key.split(".")[0] for key in overrides]
    assume(len({*heads}) == len(heads))  # a value and a group of one name contradict each other
    values = parse([f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    for key, value in overrides.items():
        head, _, last = key.partition(".")
        assert (values[head][last] if last else values[head]) == value


@given(
    st.text(max_size=40)
    | st.lists(st.text("ab=., []{}'\"~", max_size=10), max_size=5).map(lambda p: f"[{','.join(p)}]")
)
def test_an_axis_is_read_or_refused(text: str) -> None:
    try:
        variants = read_axis(text)
    except ConfigError as error:
        require_fix(error)
        return
    assert variants and all(variant.train and not variant.evaluate for variant in variants.values())


@given(
    st.lists(
        st.builds("{}={}".format, st.sampled_from(["prior", "prior.depth", "seed", "~a", "+b"]), st.integers(0, 3))
    )
)
def test_of_overrides_of_one_option_the_last_one_stays(words: list[str]) -> None:
    merged = merge_overrides(words)
    assert {option_of(word): word for word in words} == {option_of(word): word for word in merged}
    assert len({option_of(word) for word in merged}) == len(merged) and merge_overrides(merged) == merged


# --- schedules -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(["geometric", "linear"]), st.integers(1, 200), st.integers(-1, 220))
def test_growing_schedules_grow_to_the_latent_s_length(name: str, length: int, scales: int) -> None:
    try:
        schedule = build("schedule", {"name": name, "scales": scales}, length=length)
    except ConfigError:
        assert not 1 <= scales <= length
        return
    assert schedule.scales == scales and schedule.lengths[-1] == length
    assert all(one < two for one, two in itertools.pairwise(schedule.lengths))


@given(st.lists(st.integers(-1, 6) | st.booleans() | st.floats() | st.text(max_size=2), max_size=6))
def test_spans_and_levels_of_a_schedule_tile_its_tokens(lengths: list[Any]) -> None:
    try:
        schedule = build("schedule", {"name": "explicit", "lengths": lengths}, length=8)
    except ConfigError:
        assert not lengths or any(type(n) is not int or n < 1 for n in lengths)
        return
    covered = [index for span in schedule.spans for index in range(schedule.tokens)[span]]
    assert covered == list(range(sum(lengths)))
    assert [schedule.levels.count(k) for k in range(schedule.scales)] == lengths


# --- the option schema -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    share: float = 0.5
    kind: Literal["one", "two", 3] = "one"


@dataclass(frozen=True)
class Outer:
    size: int
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    table: dict[str, list[float | None]] = field(default_factory=dict)


ANNOTATIONS: list[Any] = [
    int, float, bool, str, None | int, float | str, Literal["a", 1], tuple[int, ...], tuple[int, str], list[float],
    dict[str, int], dict[str, tuple[float, float]], Inner, Outer, Outer | None, Any,
]  # fmt: skip


@given(PLAIN, st.sampled_from(ANNOTATIONS))
def test_values_are_converted_to_their_type_or_refused(value: Any, annotation: Any) -> None:
    try:
        converted = convert(value, annotation, "option")
    except ConfigError as error:
        converted, refused = None, error
    else:
        refused = None
    if refused is not None:
        assert refused.fix and len(str(refused)) < 10_000
        return
    if annotation is float:
        assert type(converted) is float and (converted == value or math.isnan(converted))
    elif annotation in (int, bool, str):
        assert type(converted) is annotation and converted == value
    if type(converted) not in (Inner, Outer) and not isinstance(converted, tuple) and "nan" not in repr(converted):
        assert convert(converted, annotation, "option") == converted


OUTERS = st.fixed_dictionaries(
    {"size": st.integers() | PLAIN},
    optional={
        "inner": st.fixed_dictionaries(
            {}, optional={"share": st.floats(allow_nan=False), "kind": st.sampled_from(["one", 3])}
        ),
        "names": st.lists(st.text(max_size=3), max_size=2),
        "pair": st.tuples(st.integers(), st.floats(allow_nan=False)).map(list),
        "table": st.dictionaries(
            st.text(max_size=2), st.lists(st.none() | st.floats(allow_nan=False), max_size=2), max_size=2
        ),
    },
)


@given(OUTERS)
def test_an_options_dataclass_keeps_every_value(plain: dict[str, Any]) -> None:
    try:
        converted = convert(plain, Outer, "outer")
    except ConfigError:
        assert type(plain["size"]) is not int
        return
    assert converted.size == plain["size"] and converted.names == tuple(plain.get("names", ()))
    assert list(converted.pair) == plain.get("pair", [1, 2.0]) and converted.table == plain.get("table", {})
    for key, value in plain.get("inner", {}).items():
        assert getattr(converted.inner, key) == value


@given(st.dictionaries(st.text(max_size=3), PLAIN, min_size=1, max_size=3))
def test_an_option_that_is_not_known_is_refused(plain: dict[str, Any]) -> None:
    assume(not {*plain} <= {"share", "kind"})
    with pytest.raises(ConfigError, match="Unknown option"):
        convert(plain, Inner, "inner")


# --- episodes --------------------------------------------------------------------------------------------------------

SPACE = Space(state_dim=2, action_dim=1, goal_dim=2)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def valid_episode(draw: st.DrawFn) -> Episode:
    """An episode without fault, of any number type that holds its values."""
    steps = draw(st.integers(1, 7))
    goals = draw(st.booleans())
    dtype = draw(st.sampled_from([np.float32, np.float64]))

    def array(*shape: int) -> np.ndarray[Any, Any]:
        return draw(arrays.arrays(np.float32, shape, elements=NUMBERS)).astype(dtype)

    goal = array(steps + 1, 2) if goals else np.zeros((steps + 1, 2), int)
    return Episode(array(steps + 1, 2), array(steps, 1), array(steps), draw(st.booleans()), goal, goal)


@given(st.lists(valid_episode(), min_size=1, max_size=4))
def test_episodes_come_out_as_they_went_in(raw: list[Episode]) -> None:
    joined_up = Episodes.collect(raw, name="made", space=SPACE)
    assert len(joined_up) == len(raw) and joined_up.steps == sum(map(len, raw))
    for episode, start, end in zip(raw, joined_up.starts, joined_up.ends, strict=True):
        assert np.array_equal(joined_up.states[start : end + 1], episode.states)
        assert np.array_equal(joined_up.actions[start:end], episode.actions) and not joined_up.actions[end].any()
        assert np.array_equal(joined_up.rewards[start:end], episode.rewards) and joined_up.rewards[end] == 0
    assert joined_up.terminated.tolist() == [episode.terminated for episode in raw]


ODD = arrays.arrays(
    st.sampled_from([np.dtype(t) for t in ("f8", "f4", "i8", "u1", "?", "c16", "S3", "U2", "O", "M8[s]")]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
ANY = ODD | arrays.arrays(np.float64, st.sampled_from([(4,), (4, 1), (5, 2), (4, 2)]), elements=st.floats())


@given(st.lists(st.builds(Episode, ANY, ANY, ANY, st.booleans(), st.none() | ANY, st.none() | ANY), max_size=3))
def test_odd_episodes_are_refused_or_finite(raw: list[Episode]) -> None:
    try:
        collected = Episodes.collect(raw, name="made", space=SPACE)
    except DataError as error:
        require_fix(error)
        return
    assert (
        np.isfinite(collected.states).all()
        and np.isfinite(collected.rewards).all()
        and len(collected.states) == collected.steps + len(raw)
    )


@given(
    st.lists(valid_episode(), min_size=1, max_size=3),
    st.integers(0, 2),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e39]),
)
def test_what_is_not_finite_is_named(raw: list[Episode], which: int, value: float) -> None:
    episode = raw[which % len(raw)]
    states = episode.states.astype(np.float64)
    states[-1, 1] = value
    spoilt = [
        Episode(states, e.actions, e.rewards, e.terminated, e.goals, e.achieved) if e is episode else e for e in raw
    ]
    with pytest.raises(DataError, match=f"episode {which % len(raw)}, field 'states', row {len(states) - 1}"):
        Episodes.collect(spoilt, name="made", space=SPACE)


@given(st.text(max_size=5000), st.text(max_size=5000))
def test_a_message_stays_readable(rule: str, got: str) -> None:
    error = TrajgenError(rule, got=got, fix="mend it")
    assert len(str(error)) < 5000 and str(error).endswith("mend it") and error.got == got
