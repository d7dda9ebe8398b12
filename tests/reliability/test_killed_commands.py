"""Commands that are killed at any moment lose nothing, and can be repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trajgen.core.files import PARTIAL, new_folder
from trajgen.data import store

SCRIPT = Path(__file__).with_name("kill_commands.py")
KILLS = int(os.environ.get("TRAJGEN_KILLS", "2"))
"""Kills of commands: 2 are those of 'data make' and 'data import', and the nightly 64 those of three recipes too."""
OTHERS = int(os.environ.get("TRAJGEN_OTHER_FAULTS", "0"))
"""Further commands, which meet SIGTERM and then SIGKILL, too little memory, jumps of the clock, or the loss of data."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


@pytest.mark.timeout(120 + 60 * (KILLS + OTHERS))
def test_killed_commands_lose_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, str(SCRIPT), str(tmp_path), str(KILLS), str(OTHERS)]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    print({name: count["times"] for name, count in counts.items()}, done.stderr.splitlines()[-1])
    assert sum(count["times"] for count in counts.values()) == KILLS + OTHERS
    assert not any(count["faults"] for count in counts.values()), done.stderr


def test_a_command_that_says_nothing_and_does_not_end_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kill_commands

    monkeypatch.setattr(kill_commands, "SILENCE", 0.2)
    assert kill_commands.child(tmp_path, ["--version"], lambda: time.sleep(60))[0] == -1
    assert kill_commands.child(tmp_path, ["--version"], lambda: None)[0] == 0


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    place = tmp_path / "out"
    (tmp_path / f"{PARTIAL}out" / "of a killed process").mkdir(parents=True)

    def interrupted() -> None:
        with new_folder(place) as folder:
            (folder / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [*tmp_path.iterdir()] == []
    place.mkdir()  # an empty one may be there
    with new_folder(place) as folder:
        (folder / "whole").write_text("")
        assert [*place.iterdir()] == []
    assert [path.name for path in place.iterdir()] == ["whole"] and [*tmp_path.iterdir()] == [place]


def test_a_new_folder_may_be_the_current_one_or_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path / "out")
    for path in (Path(), tmp_path / "link"):
        with new_folder(path) as folder:
            (folder / "whole").write_text("")
        assert [path.name for path in Path().iterdir()] == ["whole"] and Path("whole").samefile(tmp_path / "out/whole")
        Path("whole").unlink()
    monkeypatch.chdir(tmp_path)
    with new_folder(tmp_path / "link") as folder:
        (folder / "whole").write_text("")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "out" / "whole").exists()


@pytest.mark.parametrize("looks", [store.local_sets, lambda: store.folder("tests/line-v0")])
def test_a_set_that_a_killed_process_was_replacing_is_put_back(
    looks: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    replaced = tmp_path / f"{store.STAGING}abc" / store.REPLACED / "tests" / "line-v0" / "data"
    replaced.mkdir(parents=True)
    (replaced / "metadata.json").write_text("{")
    (tmp_path / "tests").mkdir()
    looks()
    assert (tmp_path / "tests" / "line-v0" / "data" / "metadata.json").exists() and not replaced.exists()
