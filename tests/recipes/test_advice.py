"""Who follows the advice of a refusal arrives at something that works, whatever two components were chosen."""

from __future__ import annotations

import os
import random
import re
from itertools import combinations
from typing import Any

import pytest

from trajgen.config import compose
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS, names
from trajgen.experiments.preparation import dry_run

RECIPES = ("mage", "diffuser", "tt", "dt", "iql", "bc")
STEPS = 5
"""The most refusals that are met one after the other."""
ROUNDS = int(os.environ.get("TRAJGEN_ADVICE_ROUNDS", "1"))
"""Components that are drawn for each pair of kinds; those of every other pair are nightly."""
WORD = re.compile(r"~?[a-z_.]+=(?:\[[^\]]*\]|[\w.,-]+)|~[a-z_.]+")


def cases() -> list[Any]:
    draw = random.Random(21)
    pairs = [pair for _ in range(ROUNDS) for pair in combinations(KINDS, 2)]
    drawn = [
        (f"recipe={draw.choice(RECIPES)}", *(f"{kind}={draw.choice(names(kind))}" for kind in pair)) for pair in pairs
    ]
    return [pytest.param(case, marks=pytest.mark.nightly if i % 2 else ()) for i, case in enumerate(drawn)]


def refusal(words: list[str]) -> ConfigError | None:
    """The error that the words of a command line meet; None if they work."""
    try:
        dry_run(compose(words))
    except ConfigError as error:
        return error
    return None


def advice(error: ConfigError) -> list[str]:
    """The words of the first alternative that has any."""
    for part in re.split(r",? or |; ", error.fix or ""):
        if words := WORD.findall(part):
            return words
    raise AssertionError(f"no words to type: {error}")


def follow(words: list[str], advised: list[str]) -> list[str]:
    """The words of a command line as a person changes them."""
    keys = {word.lstrip("~").partition("=")[0] for word in advised}

    def stays(word: str) -> bool:
        key = word.lstrip("~").partition("=")[0]
        return key not in keys and key.partition(".")[0] not in keys & {*KINDS}

    return [*filter(stays, words), *advised]


@pytest.mark.parametrize("case", cases(), ids=" ".join)
def test_advice_leads_to_what_works(case: tuple[str, ...]) -> None:
    words, refusals = list(case), list[str]()
    while (error := refusal(words)) and len(refusals) < STEPS:
        refusals.append(f"{' '.join(words)}: {error}")
        words = follow(words, advice(error))
    assert error is None, "\n".join([*refusals, f"{' '.join(words)}: {error}"])
