"""The page that compares runs.

Their folders may be strangers': damage of a file is reported on the page, and not raised.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from trajgen.config import merged
from trajgen.core.errors import CheckpointError, ConfigError, TrajgenError
from trajgen.core.files import read_json, read_metrics, write_file
from trajgen.experiments.run_folder import read_config, refuse_links, trained_stages
from trajgen.viz.report.facts import Facts, Picture
from trajgen.viz.report.page import page
from trajgen.viz.summary import score_rows

if TYPE_CHECKING:
    from rich.console import Console

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 2 * 2**20
"""Bytes of the largest picture that is taken into the page."""
WIDE = 1.8
"""Width over height from which a picture counts as wide."""
MOST_PICTURES = 4
"""Of each kind, a run."""
PICTURES = ("plan_episode_*.png", "plans_seed_*.png", "usage.png", "control.png", "attention.png")
"""The pictures that the page shows, in this order."""
DAMAGED = (TrajgenError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError)
"""What reading a file raises that no command of ours wrote."""


def report(path: Path, folders: Sequence[Path], console: Console, *, title: str = "Runs compared") -> None:
    """Writes a page as `write_report`, and prints where it is and what of the runs could not be read."""
    with console.status("reading"):
        runs = write_report(path, folders, title=title)
    lines = [f"{folder}: there is no run in it" for folder in folders if not runs_in(folder)]
    lines += [f"{run.label}: {'; '.join(run.problems)}" for run in runs if run.problems]
    size = path.stat().st_size / 2**20
    lines.append(f"{len(runs)} run{'s' * (len(runs) > 1)} on one page of {size:.1f} MiB: {path}")
    console.print("\n".join(lines), markup=False, soft_wrap=True, highlight=False)


def write_report(path: Path, folders: Sequence[Path], *, title: str = "Runs compared") -> list[Facts]:
    """Writes one HTML page that compares runs, or those of studies, to the first of them; returns their facts.

    Raises:
        ConfigError: if the page exists.
        CheckpointError: if no folder holds a run, or one leads out of itself.
    """
    if path.exists():
        raise ConfigError(f"{path} exists, and no file is overwritten.", fix="out=ANOTHER, or remove that file first")
    runs = read_facts(folders)
    text = page(runs, title=title, command=shlex.join(["trajgen", "report", *map(str, folders)]))
    write_file(path, text)
    return runs


def run_of(folder: Path) -> Path:
    """The folder of the run that was evaluated into a folder: itself, or the one whose ``evaluations/`` holds it."""
    run = folder.absolute().parent.parent
    is_evaluation = not (folder / "config.json").exists() and (folder / "evaluation.json").exists()
    return run if is_evaluation and (run / "config.json").is_file() else folder


def read_facts(folders: Sequence[Path]) -> list[Facts]:
    """The facts of runs and of further evaluations of runs, of all `runs_in` these folders.

    Raises:
        CheckpointError: if there is no run in any of them.
    """
    runs = [run for folder in folders for run in runs_in(folder)]
    if not runs:
        names = ", ".join(map(str, folders))
        raise CheckpointError(
            f"{names} holds no run." if all(folder.exists() for folder in folders) else f"There is no folder {names}.",
            fix="name run folders, or the folder of a study: trajgen report runs/A runs/B",
        )
    runs = list({run.resolve(): run for run in runs}.values())
    return [_read(run, label) for run, label in zip(runs, _labels(runs), strict=True)]


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is that of a run; else the cells of a study, copies of the zoo, or the runs of sweeps."""
    if (run_of(folder) / "config.json").is_file():
        return [folder]
    levels = (sorted(folder.glob(f"{level}/config.json")) for level in ("cells/*", "*", "*/*"))
    return [path.parent for path in next((paths for paths in levels if paths), [])]


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, label: str) -> Facts:
    run = run_of(folder)
    refuse_links(run)
    config = read_config(run)
    config.pop("format", None)
    command = config.pop("command", None)
    facts = Facts(label, folder, config, command if isinstance(command, str) else None)
    for name, (read, missing) in READERS.items():
        path = (folder if name in OF_AN_EVALUATION else run) / name
        if not path.exists():
            facts.problems += [missing] if missing else []
            continue
        try:
            read(facts, path)
        except DAMAGED as error:
            reason = error.got if isinstance(error, TrajgenError) else error
            facts.problems.append(f"{name}: {str(reason or type(error).__name__)[:200]}")
    return facts


def _read_evaluation(facts: Facts, path: Path) -> None:
    evaluation = read_json(path)
    facts.scores, facts.evaluation = score_rows(evaluation), evaluation
    if isinstance(overrides := evaluation.get("overrides"), Mapping):  # what an evaluation did otherwise than the run
        facts.config = merged(facts.config, overrides)


def _read_training(facts: Facts, path: Path) -> None:
    facts.stages, facts.metrics = trained_stages(path), read_metrics(path)


def _read_env(facts: Facts, path: Path) -> None:
    env = read_json(path).get("env")
    facts.named_env = env if isinstance(env, dict) else {}


def _read_versions(facts: Facts, path: Path) -> None:
    facts.versions = {str(name): str(version)[:60] for name, version in read_json(path).items()}


def _read_weights(facts: Facts, path: Path) -> None:
    """Counts the numbers of the final checkpoint from its header; nothing of it is loaded."""
    with safe_open(path, framework="numpy") as file:
        names = file.keys()
        facts.weights = sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _read_pictures(facts: Facts, folder: Path) -> None:
    for path in [path for pattern in PICTURES for path in sorted(folder.glob(pattern))[:MOST_PICTURES]]:
        if path.stat().st_size > LARGEST_PICTURE:
            facts.problems.append(f"{path.name}: too large for the page")
            continue
        content = path.read_bytes()
        if not content.startswith(PNG):
            facts.problems.append(f"{path.name}: not a PNG")
            continue
        width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        source = "data:image/png;base64," + base64.b64encode(content).decode()
        facts.pictures.append(Picture(path.stem.replace("_", " "), source, width > WIDE * height))


READERS: dict[str, tuple[Callable[[Facts, Path], None], str]] = {
    "evaluation.json": (_read_evaluation, "not evaluated"),
    "metrics.jsonl": (_read_training, "no metrics of its training"),
    "data.json": (_read_env, ""),
    "versions.json": (_read_versions, ""),
    "checkpoints/final.safetensors": (_read_weights, "not trained to its end"),
    "plots": (_read_pictures, ""),
}
"""What reads each file, and the problem if it is missing."""
OF_AN_EVALUATION = ("evaluation.json", "plots")
