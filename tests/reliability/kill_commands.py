"""Runs commands in children of one warm process, disturbs each at a drawn moment, and repeats the command.

A script, as ``killed.py``: ``kill_commands.py PLACE KILLS [OTHERS]``. Commands are killed with SIGKILL, and then others
meet SIGTERM and then SIGKILL, too little memory, jumps of the clock, and the loss of their data set. Prints a line of
JSON: for each kind of command and of fault how often, and what was lost, refused, raw or hanging after it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from disturbances import CALLS, counting, jumping_clock, killing, short_of_memory, terminated, without_data
from safetensors.torch import load_file

from trajgen.cli import main as trajgen
from trajgen.core.errors import DataError
from trajgen.data import minari, store
from trajgen.data.options import DataOptions
from trajgen.importing import from_arrays

SEED = int(os.environ.get("TRAJGEN_KILL_SEED", "21"))
"""Of the moments that are drawn."""
SILENCE = 10.0
"""Seconds without a word, or an end, after which a command hangs; those in which it waits for a busy core apart."""
ID, MADE = "tests/pendulum-v0", "trajgen/pointmaze/umaze-v0"
OTHERS = ("SIGTERM, SIGKILL", "memory", "clock", "data")
"""Faults but SIGKILL."""
SMALL = [
    *("device=cpu", "engine.precision=float32", "engine.checkpoint_every=2", "engine.log_every=2"),
    *("evaluation.episodes=1", "evaluation.latency=false"),
]
PRESET = {"id": ID, "env_id": "Pendulum-v1", "max_episode_steps": 8, "horizon": 8, "stride": 1, "chunk": 4}
RECIPES: dict[str, list[str]] = {
    "bc": ["recipe=bc", "engine.budget=0.001"],
    "dt": ["recipe=dt", "engine.budget=0.0005", "policy.replan_interval=1"],
    "mage": ["recipe=mage", *(w for w in tiny.TRAIN if w.partition("=")[0].endswith((".width", ".depth", ".heads")))],
}
RECIPES["mage"] += ["engine.budget=0.001", "tokenizer.codebook_size=16"]


@dataclass(frozen=True)
class Scene:
    """A command, in a folder of its own, and what must hold when it was killed, and when it was repeated."""

    words: list[str]
    again: list[str]
    check: Callable[[Path, Path], None]
    """Raises unless the folder, after the repetition, holds what the undisturbed one does."""
    survived: Callable[[Path], None] = lambda _: None
    """Raises if the kill alone has lost something, or left half a result under its name."""
    prepare: Callable[[Path], None] = lambda _: None
    may_be_whole: bool = False
    """Whether the repetition may be refused, since the result was complete when the process was killed."""


@dataclass
class Count:
    """What came of a kind of fault in a kind of command."""

    times: int = 0
    faults: list[str] = field(default_factory=list)


def same_scores(one: Path, two: Path) -> None:
    """Two evaluations with the same returns."""
    first, second = (json.loads(path.read_text()) for path in (one, two))
    assert first["episode_returns"] == second["episode_returns"], "other scores"


def same_run(folder: Path, whole: Path) -> None:
    one, two = (load_file(each / "run" / "checkpoints" / "final.safetensors") for each in (folder, whole))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one), "other weights"
    same_scores(folder / "run" / "evaluation.json", whole / "run" / "evaluation.json")
    assert (folder / "run" / "summary.md").exists(), "no summary"
    left = [path.name for path in (folder / "run").rglob(".partial-*")]
    assert not left, f"left: {left}"


def whole_evaluations(folder: Path) -> None:
    for each in (folder / "run" / "evaluations").glob("[!.]*"):
        assert (each / "summary.md").exists() and (each / "evaluation.json").exists(), f"half of {each.name}"


def same_evaluation(folder: Path, whole: Path) -> None:
    whole_evaluations(folder)
    newest = max((folder / "run" / "evaluations").glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    (undisturbed,) = (whole / "run" / "evaluations").glob("[!.]*")
    same_scores(newest / "evaluation.json", undisturbed / "evaluation.json")


def whole_export(folder: Path) -> None:
    out = folder / "out"
    if out.exists():
        assert {path.name for path in out.iterdir()} == {"act.pt2", "plan.pt2", "policy.json", "policy.py"}, "half"


def same_study(folder: Path, whole: Path) -> None:
    tables = [json.loads((each / "study" / "results.json").read_text())["rows"] for each in (folder, whole)]
    assert [row["by_seed"] for row in tables[0]] == [row["by_seed"] for row in tables[1]], "other results"


def whole_set(id: str, *steps: int) -> Callable[..., None]:
    def check(*_: Path) -> None:
        assert all(each.problem is None for each in store.local_sets()), "a broken set"
        try:
            count = minari.load(id, DataOptions(id=id, state_key="observation" if id == MADE else None)).steps
        except DataError:
            count = 0
        assert count in steps, f"{count} steps"

    return check


def pendulum(episodes: int = 4) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [
        {
            "observations": draw.normal(size=(41, 3)),
            "actions": draw.uniform(-2, 2, (40, 1)),
            "rewards": draw.normal(size=40),
        }
        for _ in range(episodes)
    ]


def scenes(place: Path) -> dict[str, Scene]:
    """All commands by name, in the order in which they are killed."""
    make = ["data", "make", "pointmaze/umaze", "force=true"]
    table = place / "episodes.npz"
    names = ("observations", "actions", "rewards")
    rows = {name: np.concatenate([episode[name][:40] for episode in pendulum()]) for name in names}
    np.savez(table, **rows, timeouts=np.arange(160) % 40 == 39)
    imported = ["data", "import", str(table), "id=tests/imported-v0"]
    by_name = {
        "data make": Scene([*make, "steps=300"], [*make, "steps=300"], whole_set(MADE, 300), whole_set(MADE, 200, 300),
                           lambda _: trajgen([*make, "steps=200"])),
        "data import": Scene(imported, [*imported, "force=true"], whole_set("tests/imported-v0", 156),
                             whole_set("tests/imported-v0", 0, 156)),
    }  # fmt: skip
    for recipe, words in RECIPES.items():
        run = [*words, *SMALL, f"data={place / 'pendulum.yaml'}"]

        def trained(folder: Path, recipe: str = recipe) -> None:
            shutil.copytree(place / recipe / "run", folder / "run")

        train = ["train", *run, "run_dir=run"]
        evaluate = ["evaluate", "run=run", "evaluation.seed=5", "evaluation.episodes=2"]
        export = ["export", "run=run", "format=torch_export", "out=out"]
        base = json.dumps(run)
        study = f"base: {base}\nvariants: {{a: [], b: [evaluation.seed=3]}}\nseeds: [0]\n"

        def with_study(folder: Path, study: str = study) -> None:
            (folder / "s.yaml").write_text(study)

        by_name |= {
            f"train {recipe}": Scene(train, [*train, "resume=true"], same_run),
            f"evaluate {recipe}": Scene(evaluate, evaluate, same_evaluation, whole_evaluations, trained),
            f"export {recipe}": Scene(export, export, lambda a, _: whole_export(a), whole_export, trained, True),
            f"study {recipe}": Scene(["study", "study=s.yaml", "out=study", "executor=inline"],
                                     ["study", "study=s.yaml", "out=study", "executor=inline"], same_study,
                                     prepare=with_study),
        }  # fmt: skip
    return by_name


def child(folder: Path, words: list[str], arm: Callable[[], Any], delay: float | None = None) -> tuple[int, str]:
    """Runs a command in a child; returns how it ended (-9 if killed, -1 if it hung) and what it said."""
    output = folder / "output.txt"
    output.write_bytes(b"")  # it is read even if the child is killed before it writes
    process = os.fork()
    if not process:
        status = 1
        try:
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.chdir(folder)
            finish = arm()
            trajgen(words)
            status = 0
            if finish:
                finish()
        except SystemExit as ended:
            status = int(ended.code or 0) if not isinstance(ended.code, str) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)
    began, last_word, length = time.monotonic(), unhindered_seconds(process), 0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        now = unhindered_seconds(process)
        if output.stat().st_size != length:
            last_word, length = now, output.stat().st_size
        longest_silence[0] = max(longest_silence[0], now - last_word)
        hangs = now - last_word > SILENCE
        if hangs or (delay is not None and time.monotonic() - began > delay):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return (-1 if hangs else -9), output.read_text(errors="replace")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(status), output.read_text(errors="replace")


longest_silence = [0.0]
"""Of all commands so far, in seconds."""


def unhindered_seconds(process: int) -> float:
    """The clock, without the time in which a process was ready and another one had its core, where the system says."""
    waited = 0
    with suppress(OSError, IndexError, ValueError):
        waited = int(Path(f"/proc/{process}/schedstat").read_text().split()[1])
    return time.monotonic() - waited / 1e9


def meet(kind: str, scene: Scene, folder: Path, whole: Path, calls: Mapping[str, int], draw: random.Random) -> str:
    """Lets the command meet a fault, and repeats it; returns what went wrong, or nothing."""
    prepare(scene, folder)
    number = draw.randint(1, sum(calls.values()))
    arms = {
        "SIGTERM, SIGKILL": terminated(number),
        "memory": short_of_memory(draw.choice((0, 8, 32, 64, 128, 256))),
        "clock": jumping_clock(draw),
        "data": without_data(folder / "sets" / ID, draw.randint(1, max(1, calls.get("fsync", 1)))),
    }
    status, output = child(folder, scene.words, arms[kind])
    point = f"{kind} {number}"
    if "Traceback" in output:
        return f"{point}: raw: {output[-1500:]}"
    if status == -1:
        return f"{point}: hangs"
    if kind == "clock" and status:
        return f"{point}: it ended with {status}: {output[-600:]}"
    if not (folder / "sets" / ID).exists():
        shutil.copytree(folder.parent / "sets" / ID, folder / "sets" / ID)
    return repeated(point, scene, folder, whole)


def disturb(
    scene: Scene, folder: Path, whole: Path, calls: Mapping[str, int], seconds: float, draw: random.Random
) -> str:
    """Kills the command once and repeats it; returns the fault, or nothing."""
    prepare(scene, folder)
    if draw.random() < 0.25:
        delay = draw.uniform(0, seconds)
        point, (status, _) = f"after {delay:.2f} s", child(folder, scene.words, lambda: None, delay)
    else:
        names = [name for name in CALLS for _ in range(calls.get(name, 0))]
        name, after = draw.choice(names), draw.random() < 0.5
        number = draw.randint(1, calls[name])
        point = f"{'after' if after else 'before'} {name} {number}"
        status, _ = child(folder, scene.words, killing(name, number, after))
    if status not in (-9, 0):
        return f"{point}: it ended with {status} before it was killed"
    return repeated(point, scene, folder, whole)


def repeated(point: str, scene: Scene, folder: Path, whole: Path) -> str:
    """What is wrong with a command that is repeated after a fault, or nothing."""
    try:
        scene.survived(folder)
        status, output = child(folder, scene.again, lambda: None)
        if "Traceback" in output:
            return f"{point}: raw: {output[-1500:]}"
        if status == -1:
            return f"{point}: hangs"
        if status and not (scene.may_be_whole and "nothing is overwritten" in output):
            return f"{point}: refused: {output[-600:]}"
        scene.check(folder, whole)
    except Exception as error:
        return f"{point}: lost: {type(error).__name__}: {str(error)[:600]}"
    return ""


def prepare(scene: Scene, folder: Path) -> None:
    """The folder in which a command runs, with the data sets of the training, and its own place for new ones."""
    folder.mkdir(parents=True)
    sets = folder / "sets"
    shutil.copytree(folder.parents[0] / "sets", sets)
    os.environ["MINARI_DATASETS_PATH"] = str(sets)
    scene.prepare(folder)


def main() -> None:
    place, kills, others = Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 0
    torch.set_num_threads(1)
    os.environ["MINARI_DATASETS_PATH"] = str(place / "sets")
    from_arrays(ID, pendulum())
    (place / "pendulum.yaml").write_text(json.dumps({"data": PRESET}))
    all_scenes = scenes(place)
    names = list(all_scenes)[: max(kills, others)]
    counts: dict[str, Count] = {}
    undisturbed: dict[str, tuple[Path, dict[str, int], float]] = {}
    needed = dict.fromkeys(f"train {n.split()[1]}" for n in names if n.split()[0] in ("evaluate", "export"))
    for name in (*needed, *(n for n in names if n not in needed)):  # undisturbed
        scene, folder = (
            all_scenes[name],
            place / name.split()[-1] if name.startswith("train") else place / name.replace(" ", "-"),
        )
        prepare(scene, folder)
        began = time.monotonic()
        status, output = child(folder, scene.words, counting(folder / "calls.json"))
        if status:
            raise SystemExit(f"{name} fails undisturbed:\n{output}")
        undisturbed[name] = folder, json.loads((folder / "calls.json").read_text()), time.monotonic() - began
        print(
            f"{name}: {undisturbed[name][2]:.1f} s, {sum(undisturbed[name][1].values())} moments",
            file=sys.stderr,
            flush=True,
        )
    for number in range(kills + others):
        name, draw = names[number % len(names)], random.Random(SEED * 1000 + number)
        folder, (completed, calls, seconds) = place / f"fault-{number}", undisturbed[name]
        if number < kills:
            kind, fault = "SIGKILL", disturb(all_scenes[name], folder, completed, calls, seconds, draw)
        else:
            kind = OTHERS[(number - kills) % len(OTHERS)]
            fault = meet(kind, all_scenes[name], folder, completed, calls, draw)
        count = counts.setdefault(f"{name}, {kind}", Count())
        count.times += 1
        if fault:
            count.faults.append(fault)
            print(f"FAULT {name}, {number}: {fault}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"longest silence: {longest_silence[0]:.1f} s", file=sys.stderr)
    print(json.dumps({name: {"times": c.times, "faults": c.faults} for name, c in counts.items()}))


if __name__ == "__main__":
    main()
