"""Data sets that do not fit into memory: mapped files give the same batches, and follow the set they are made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sizes
import torch
from small_sets import episode, save

from trajgen.core.errors import DataError
from trajgen.core.types import Space
from trajgen.data import mapped, minari, store
from trajgen.data.episodes import Episodes
from trajgen.data.fingerprint import fingerprint
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows, fit_normalizer

ID = "tests/walks-v0"
GIB = 2**30


def write(seed: int = 0, lengths: tuple[int, ...] = (50, 7, 33), **changes: Any) -> None:
    """Random walks with goals that change once, as a dictionary observation."""
    random = np.random.default_rng(seed)
    episodes = []
    for number, steps in enumerate(lengths):
        here = np.cumsum(random.normal(0, 0.3, (steps + 1, 2)), 0)
        goal = np.where(np.arange(steps + 1)[:, None] < steps // 2, here[steps // 2], here[-1])
        observations = {"state": np.concatenate([here, random.normal(size=here.shape)], 1), "goal": goal, "here": here}
        actions, rewards = random.uniform(-1, 1, (steps, 3)).astype(np.float32), random.normal(size=steps)
        unchanged = episode(observations, actions, rewards, terminated=number % 2 == 0)
        episodes.append(unchanged | (changes if number == 1 else {}))
    save(ID, episodes, {"state": 4, "goal": 2, "here": 2}, 3, force=True)


def options(**changes: Any) -> DataOptions:
    base: dict[str, Any] = {"id": ID, "state_key": "state", "horizon": 4, "stride": 3, "chunk": 5, "memory_map": True}
    return DataOptions(**(base | changes))


GOALS: dict[str, Any] = {"goals": "hindsight", "goal_key": "goal", "achieved_key": "here"}


def files() -> dict[str, int]:
    """The mapped files, and when each was written."""
    paths = (store.folder(ID) / mapped.FOLDER).rglob("*.np*")
    return {str(path.relative_to(store.folder(ID))): path.stat().st_mtime_ns for path in paths}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"state_key": ("here", "state")},
        {"goals": "dataset", "goal_key": "goal"},
        GOALS,
        {**GOALS, "goal_radius": 0.5},
        {**GOALS, "goal_radius": 0.5, "terminate_at_goal": True},
        {"max_padding": 0.0, "discount": 1.0, "stride": 1},
    ],
    ids=str,
)
def test_mapped_batches_are_those_of_memory_to_the_last_bit(changes: dict[str, Any]) -> None:
    write()
    choice = options(**changes)
    here, there = (minari.load(ID, replace(choice, memory_map=value)) for value in (False, True))
    assert not mapped.is_mapped(here) and mapped.is_mapped(there)
    norms = [fit_normalizer(episodes, choice) for episodes in (here, there)]
    for name, values in norms[0].state_dict().items():
        assert torch.equal(values, norms[1].state_dict()[name]), name
    one, other = (Windows(episodes, choice, norms[0], seed=3) for episodes in (here, there))
    assert len(one) == len(other)
    for step in range(30):  # more windows than mapped memory is kept for
        for name, values in vars(one.batch(step, 16)).items():
            again = getattr(other.batch(step, 16), name)
            assert values is again is None or (torch.equal(values, again) and values.stride() == again.stride()), name
    assert fingerprint(here) == fingerprint(there)  # a run goes on with either


def test_arrays_are_laid_out_once() -> None:
    write()
    first = minari.load(ID, options())
    Windows(first, options(), fit_normalizer(first, options()))
    before = files()
    assert {Path(name).name for name in before} == {"states.npy", "actions.npy", "rewards.npy", "index.npy"}
    again = minari.load(ID, options())
    Windows(again, options(), fit_normalizer(again, options()))
    assert files() == before
    minari.load(ID, options(**GOALS))  # other entries have files of their own
    assert files().items() > before.items()


def test_nothing_but_arrays_is_left_in_their_folder() -> None:
    write()
    minari.load(ID, options())
    (folder,) = (store.folder(ID) / mapped.FOLDER).iterdir()
    assert folder.is_dir()


def test_a_changed_set_is_laid_out_anew() -> None:
    write()
    old = minari.load(ID, options()).states.copy()
    folder = store.folder(ID) / mapped.FOLDER
    shutil.move(folder, folder.parent.parent / "kept")
    write(seed=1)
    shutil.move(folder.parent.parent / "kept", folder)
    new = minari.load(ID, options())
    assert not np.array_equal(new.states, old)
    assert np.array_equal(new.states, minari.load(ID, options(memory_map=False)).states)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-8], lambda content: content[:-4] + b"abcd", lambda _: b"", None]
)
@pytest.mark.parametrize("name", ["states.npy", "rewards.npy", "index.npy", "about.json"])
def test_damaged_files_are_laid_out_anew(name: str, damage: Any) -> None:
    write()
    choice = options()
    episodes = minari.load(ID, replace(choice, memory_map=False))
    norm = fit_normalizer(episodes, choice)
    expected = Windows(episodes, choice, norm).batch(0, 32)
    spoilt = minari.load(ID, choice)
    Windows(spoilt, choice, norm)
    (path,) = (store.folder(ID) / mapped.FOLDER).rglob(name)
    del spoilt
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    batch = Windows(minari.load(ID, choice), choice, norm).batch(0, 32)
    assert torch.equal(batch.returns, expected.returns) and torch.equal(batch.states, expected.states)


def test_an_interrupted_layout_leaves_nothing_that_is_taken_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    write()

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mapped.np, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            minari.load(ID, options())
    assert files() == {}
    killed = store.folder(ID) / mapped.FOLDER / f"{mapped.UNFINISHED}x"
    killed.mkdir()
    assert minari.load(ID, options()).steps == 90 and not killed.exists()


def test_a_fault_in_the_data_is_named_as_in_memory() -> None:
    write(rewards=np.array([0, 0, np.nan, 0, 0, 0, 0]))
    with pytest.raises(DataError, match=r"episode 1, field 'rewards', row 2"):
        minari.load(ID, options())
    assert files() == {}


def test_a_folder_that_cannot_be_written_is_said_with_the_ways_out() -> None:
    write()
    (store.folder(ID) / mapped.FOLDER).write_text("a file in its place")
    with pytest.raises(DataError) as caught:
        minari.load(ID, options())
    assert "data.memory_map=false" in str(caught.value.fix) and mapped.FOLDER in str(caught.value)


def test_a_full_disk_is_said_before_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="GiB are needed"):
        minari.load(ID, options())


def test_sets_that_would_fill_half_of_the_memory_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    size = mapped.size_of(93, Space(4, 3))
    assert size == 93 * 8 * 4
    for limit, expected in ((2 * size - 1, True), (2 * size, False)):
        monkeypatch.setattr(mapped, "memory_limits", lambda limit=limit: iter([limit, 10 * GIB]))
        assert mapped.is_mapped(minari.load(ID, options(memory_map=None))) is expected


def test_a_set_lies_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy of any field: the arrays are allocated once, and filled episode by episode."""
    write()
    allocated: list[tuple[str, tuple[int, ...]]] = []
    collect = vars(Episodes)["collect"].__func__

    def watched(cls: Any, raw: Any, *, rows: Any = None, **rest: Any) -> Any:
        assert rows == 93 and not isinstance(raw, list)

        def allocate(field: str, shape: tuple[int, ...]) -> Any:
            allocated.append((field, shape))
            return np.zeros(shape, np.float32)

        return collect(cls, raw, rows=rows, **rest, allocate=allocate)

    monkeypatch.setattr(Episodes, "collect", classmethod(watched))
    minari.load(ID, options(memory_map=False))
    assert allocated == [("states", (93, 4)), ("actions", (93, 3)), ("rewards", (93,))]


# --- under a limit --------------------------------------------------------------------------------------------------


def under(limit: int, *tries: str) -> list[dict[str, Any]]:
    """What new processes reach with ``limit`` bytes of their own: for each a way to map and a number of batches."""
    done = subprocess.run(
        [sys.executable, sizes.__file__, str(limit), *tries],
        capture_output=True,
        text=True,
        timeout=3000,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")


@linux
def test_200_mib_are_trained_on_with_120() -> None:
    sizes.write(200)
    without, figures = under(120 * 2**20, "false", "1", "true", "20")
    assert "failed" in without  # the limit bites
    assert figures.get("mapped") == "memmap", figures
    choice = sizes.options(False)
    episodes = minari.load(sizes.ID, choice)
    source = Windows(episodes, choice, fit_normalizer(episodes, choice))
    assert figures["steps"] == episodes.steps == 204 * 4000
    assert figures["sum"] == sum(float(source.batch(step, 64).states.double().sum()) for step in range(20))


@linux
@pytest.mark.timeout(3600)
@pytest.mark.skipif("TRAJGEN_LARGE_TESTS" not in os.environ, reason="writes 10 GiB: TRAJGEN_LARGE_TESTS=1")
def test_5_gib_are_trained_on_with_2() -> None:
    try:
        sizes.write(5 * 1024, steps=20_000)
        (control,) = under(2 * GIB, "false", "1")
        limit = 2 * GIB - control["imported"]  # 2 GiB in all
        few, many = under(limit, "auto", "10", "true", "1000")
        assert "failed" in control
        assert few["steps"] == many["steps"] > 20_000_000
        assert many["held"] < few["held"] + 32 * 2**20 < 320 * 2**20, (few, many)  # no more for more batches
    finally:
        shutil.rmtree(store.folder(sizes.ID), ignore_errors=True)
