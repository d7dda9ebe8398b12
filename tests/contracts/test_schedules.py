"""Every registered schedule, against lists worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from accepts import cells, check_cell

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.schedule import ScaleSchedule


@cells("schedule")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("schedule", name, words, advice)


def lengths(name: str, length: int, **options: Any) -> tuple[int, ...]:
    return build("schedule", {"name": name, **options}, length=length, scale_lengths=()).lengths


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
        ("auto", 8, {}, (1, 2, 4, 8)),  # until a training chooses
        ("auto", 2, {}, (1, 2)),
    ],
)
def test_by_hand(name: str, length: int, options: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert lengths(name, length, **options) == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("geometric", {"scales": scales}) for scales in (5, 0)),
        *(("linear", {"scales": scales}) for scales in (5, -1)),
        *(("explicit", {"lengths": value}) for value in ([], [1, 0, 4], [1, -2, 4], [1.5, 4], "1,4")),
        *(("two_level", {"coarse": coarse}) for coarse in (4, 0)),
    ],
)
def test_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        lengths(name, 4, **options)
    assert caught.value.got is not None


def test_spans_and_levels_by_hand() -> None:
    schedule = ScaleSchedule((1, 2, 4))
    assert schedule.spans == (slice(0, 1), slice(1, 3), slice(3, 7))
    assert schedule.levels == (0, 1, 1, 2, 2, 2, 2) and schedule.tokens == 7 and str(schedule) == "(1, 2, 4)"
