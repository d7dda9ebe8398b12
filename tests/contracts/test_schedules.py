"""Schedules against lists worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from kept import accepted, check_kept

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.schedule import ScaleSchedule


def lengths(name: str, length: int, **options: Any) -> tuple[int, ...]:
    return build("schedule", {"name": name, **options}, length=length).lengths


@pytest.mark.parametrize(
    ("name", "length", "options", "expected"),
    [
        ("geometric", 8, {"scales": 4}, (1, 2, 4, 8)),
        ("geometric", 16, {"scales": 3}, (1, 4, 16)),
        ("geometric", 8, {"scales": 8}, (1, 2, 3, 4, 5, 6, 7, 8)),  # no length twice
        ("geometric", 8, {"scales": 6}, (1, 2, 3, 4, 5, 8)),
        ("geometric", 8, {"scales": 1}, (8,)),
        ("geometric", 1, {"scales": 1}, (1,)),
        ("linear", 8, {"scales": 4}, (2, 4, 6, 8)),
        ("linear", 8, {"scales": 3}, (3, 6, 8)),
        ("explicit", 8, {"lengths": [1, 5, 8]}, (1, 5, 8)),
        ("unit", 4, {}, (1, 1, 1, 1)),
        ("single", 8, {}, (8,)),
        ("two_level", 8, {"coarse": 2}, (2, 8)),
    ],
)
def test_by_hand(name: str, length: int, options: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert lengths(name, length, **options) == expected


@pytest.mark.parametrize(
    ("name", "length", "options"),
    [
        ("geometric", 4, {"scales": 5}),
        ("geometric", 4, {"scales": 0}),
        ("linear", 4, {"scales": 5}),
        ("linear", 4, {"scales": -1}),
        ("explicit", 4, {"lengths": []}),
        ("explicit", 4, {"lengths": [1, 0, 4]}),
        ("explicit", 4, {"lengths": [1, -2, 4]}),
        ("explicit", 4, {"lengths": [1.5, 4]}),
        ("explicit", 4, {"lengths": "1,4"}),
        ("two_level", 4, {"coarse": 4}),
        ("two_level", 4, {"coarse": 0}),
    ],
)
def test_refused(name: str, length: int, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        lengths(name, length, **options)
    assert caught.value.expected is not None and caught.value.got is not None


@pytest.mark.parametrize("scales", range(1, 13))
@pytest.mark.parametrize("name", ["geometric", "linear"])
def test_growing_schedules_grow_and_end_at_the_length(name: str, scales: int) -> None:
    for length in range(scales, 40):
        made = lengths(name, length, scales=scales)
        assert len(made) == scales and made[-1] == length and list(made) == sorted(set(made))


@pytest.mark.parametrize("words", ["mage", "flat_ar", "diffuser", "tt"])
@pytest.mark.parametrize("name", names("schedule"))
def test_contracts_are_kept_in_every_composition(name: str, words: str) -> None:
    check_kept("schedule", name, words)


@pytest.mark.parametrize("name", names("schedule"))
def test_each_schedule_accepts_a_composition(name: str) -> None:
    assert accepted("schedule", name, ["mage", "flat_ar"])


@pytest.mark.parametrize("name", names("schedule"))
def test_spans_and_levels_cover_the_tokens(name: str) -> None:
    made = tiny.schedule(name)
    assert isinstance(made, ScaleSchedule)
    covered = [i for span in made.spans for i in range(span.start, span.stop)]
    assert covered == list(range(made.tokens))
    assert [made.levels.count(k) for k in range(made.scales)] == list(made)


def test_spans_by_hand() -> None:
    made = ScaleSchedule((1, 2, 4))
    assert made.spans == (slice(0, 1), slice(1, 3), slice(3, 7))
    assert made.levels == (0, 1, 1, 2, 2, 2, 2) and made.tokens == 7 and str(made) == "(1, 2, 4)"
