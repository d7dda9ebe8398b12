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
    outcomes = box.play([(kind, seed) for seed, kind in enumerate(kinds)], act)
    assert (outcomes.refused, outcomes.worked) == (3, 2)
    defects = {kind: what for (kind, _), what in outcomes.defects.items()}
    assert {*defects} == {"raise", "leave", "hang", "spin", "swell", "die"}
    assert "KeyError" in defects["raise"] and "SystemExit" in defects["leave"] and "MemoryError" in defects["swell"]
    assert "hangs" in defects["hang"] and "hangs" in defects["spin"] and "ended the process" in defects["die"]
    assert "die, seed 8" in str(outcomes)


def test_memory_that_is_used_is_seen() -> None:
    def use(kind: str, seed: int) -> None:
        memory = bytearray(seed)
        memory[::4096] = b"x" * len(memory[::4096])

    assert 200 * 2**20 < box.play([("use", 2**28)], use).peak < box.MEMORY
