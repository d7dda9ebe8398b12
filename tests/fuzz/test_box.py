"""The box finds what it is for: it would be no proof otherwise."""

from __future__ import annotations

import os
import signal
import sys
import time

import box
import pytest

from trajgen.core.errors import ConfigError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits on memory are those of Linux")


def act(kind: str, seed: int) -> None:
    if kind == "refuse":
        raise ConfigError("no")
    if kind == "raise":
        raise KeyError("x")
    if kind == "leave":
        raise SystemExit(0)
    if kind == "hang":
        time.sleep(60)
    if kind == "spin":
        while True:
            pass
    if kind == "swell":
        bytearray(3 * 2**30)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "talk":
        raise ConfigError("no" * 10**6, got="no" * 10**6, expected="no" * 10**4, fix="no" * 10**4)


def test_each_way_to_end_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "SECONDS", 0.5)
    monkeypatch.setattr(box, "PATIENCE", 4)
    kinds = ["refuse", "work", "raise", "leave", "hang", "work", "spin", "swell", "die", "refuse", "talk"]
    tally = box.play([(kind, seed) for seed, kind in enumerate(kinds)], act)
    assert (tally.refused, tally.worked) == (3, 2)
    found = {kind: what for (kind, _), what in tally.defects.items()}
    assert {*found} == {"raise", "leave", "hang", "spin", "swell", "die"}
    assert "KeyError" in found["raise"] and "SystemExit" in found["leave"] and "MemoryError" in found["swell"]
    assert "hangs" in found["hang"] and "hangs" in found["spin"] and "ended the process" in found["die"]
    assert "die, seed 8" in str(tally)


def test_memory_that_is_used_is_seen() -> None:
    def use(kind: str, seed: int) -> None:
        held = bytearray(seed)
        held[::4096] = b"x" * len(held[::4096])

    assert 200 * 2**20 < box.play([("use", 2**28)], use).peak < box.MEMORY
