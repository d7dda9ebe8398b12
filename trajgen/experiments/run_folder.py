"""The run folder: where a run lies, what it holds, who may write there, and how its small files are written and read.

A folder may come from a stranger: its files are plain values, are checked before they are used, and lie within it.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from trajgen.config import Config
from trajgen.core.errors import CheckpointError, ConfigError, TrainingError, TrajgenError
from trajgen.core.files import LARGEST_NUMBER, damaged, file_lock, read_json, read_metrics, write_file, write_json
from trajgen.core.formats import FORMAT, current
from trajgen.core.options import convert, structure
from trajgen.core.types import Space

ROOT = Path("runs")
LOCK = "run.lock"
HUB = ("D4RL", "mujoco")
"""Name spaces of the hub's data sets."""
NOT_LOSSES = ("stage", "stage_index", "step", "seconds", "windows_per_second", "gradient_norm")
"""Entries of a line of metrics.jsonl that are neither losses nor usage."""
LARGEST_SIZE = 2**24
"""Largest whole number among the options of components and data in a folder whose model is rebuilt."""
Summary = dict[str, str | float | list[float | None] | None]
FIGURES: dict[str, Any] = {
    "episode_returns": dict[str, list[float | None]] | None,
    "return": Summary | None,
    "ratio_to_controller": float | None,
    "ratio_to_controller_ci95": list[float | None] | None,
    "normalized": dict[str, str | float | list[float | None] | Summary | None] | None,
    "success": float | None,
    "condition_error": dict[str, float | None] | None,
    "decision_ms": dict[str, dict[str, float | None]] | None,
    "seeds": list[int] | None,
    "protocol": str | None,
    "overrides": dict[str, Any] | None,
}
"""Types of the figures of an evaluation that are read again; one may be missing, as in older folders."""
PACKAGES = (
    "trajgen",
    "torch",
    "timm",
    "vector-quantize-pytorch",
    "hydra-core",
    "minari",
    "gymnasium",
    "gymnasium-robotics",
    "mujoco",
    "numpy",
)


def find_folder(config: Config) -> Path:
    """The folder of a new run, which need not exist, or the one to go on with.

    Raises:
        ConfigError: if the folder belongs to another configuration, or holds a run that was not to be resumed.
        TrainingError: if it cannot be written to, or another process trains in it.
    """
    name = run_name(config)
    taken = sorted(ROOT.glob(f"{name}*"), key=lambda path: path.stat().st_mtime)
    if config.run_dir is not None:
        folder = Path(config.run_dir)
    elif config.resume:
        same = [path for path in taken if identity(path) == config.identity()]
        if not same:
            raise ConfigError(
                "There is a run to go on with.",
                expected=f"a folder {ROOT / name}* with this configuration",
                got=", ".join(map(str, taken)) or "none",
                fix="the same command as before, with resume=true; or run_dir=DIR",
            )
        folder = same[-1]
    else:
        free = (ROOT / (name if n == 1 else f"{name}-{n}") for n in range(1, 10**6))
        folder = next(path for path in free if not path.exists())
    require_free(folder, config)
    require_writable(folder)
    if folder.exists():
        with file_lock(folder / LOCK):
            pass
    return folder


def run_name(config: Config, *parts: str, longest: int = 200) -> str:
    """What a run folder is called where no name is given; a long one is cut before its seed."""
    space, _, rest = config.data.id.partition("/")
    data = config.data.id.removesuffix("-v0").rpartition("/")[2]
    if space in HUB:  # whose sets are called human or expert in the folder of their task
        data = re.sub(r"-v\d+$", "", rest).replace("/", "-")
    seed = f"-s{config.seed}"
    return "-".join((config.recipe, data, *parts))[: longest - len(seed)] + seed


def require_free(folder: Path, config: Config) -> None:
    """Raises a `ConfigError` unless a folder is new, is empty, or holds the run that is to be resumed."""
    found = identity(folder) if folder.exists() else None
    if found is not None and found != config.identity():
        differing = sorted(k for k in {*found, *config.identity()} if found.get(k) != config.identity().get(k))
        raise ConfigError(
            "A run folder belongs to one configuration.",
            expected=f"the configuration in {folder / 'config.json'}",
            got=f"another {', '.join(differing)}",
            fix="run_dir=ANOTHER, or the options that the folder was made with",
        )
    held = sorted(p.name for p in folder.iterdir() if not p.name.startswith(LOCK)) if folder.exists() else []
    if held and not (config.resume and found is not None):
        raise ConfigError(
            "A run folder is empty, or is a run to go on with.",
            expected="a new folder, or resume=true",
            got=f"{folder} holds {', '.join(held[:4])}",
            fix="resume=true to go on with it, or run_dir=ANOTHER",
        )


def require_writable(folder: Path) -> None:
    """Raises a `TrainingError` if nothing can be written into a folder, or it cannot be made."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):  # permissions alone do not say it: think of a read-only disk
            pass
    except OSError as error:
        raise TrainingError(
            "A run writes into its folder.",
            expected="a folder that can be written to",
            got=f"{place}: {error.strerror}",
            fix="run_dir=ANOTHER, or mend the permissions",
        ) from error


def identity(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder trains, or None if there is none."""
    if not (folder / "config.json").exists():
        return None
    return load_config(folder)[0].identity()


def load_config(folder: Path) -> tuple[Config, Space]:
    """The configuration and the space of a run folder, which may be a stranger's: nothing in it is imported or run.

    Raises:
        CheckpointError: if the folder is not that of a run, a newer trajgen wrote it, or it leads out of itself.
        ConfigError: if it names a component or an option that is not known here.
    """
    refuse_links(folder)
    plain = read_config(folder)
    try:
        plain.pop("command", None)
        given = plain.pop("space", {})
        _check_numbers(plain)
        space = structure(Space, given, "space")
        config = Config.from_plain(plain)
        widths = [value for value in given.values() if type(value) is int]  # the bounds of actions may be infinite
        _check_sizes({**config.components, "data": plain["data"], "space": widths})
        env_id = config.data.env_id
    except TrajgenError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise damaged(folder / "config.json", error) from error
    if env_id is not None and ":" in env_id and env_id.partition(":")[0] not in sys.modules:
        raise CheckpointError(
            "A run folder does not have modules imported unasked.",
            expected="a world that Gymnasium knows by itself",
            got=f"{folder / 'config.json'}: data.env_id={env_id}",
            fix=f"imports=[{env_id.partition(':')[0]}], if you know what it does",
        )
    return config, space


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run folder as plain values, in the present format; what they mean is not checked.

    Raises:
        CheckpointError: if it is missing or damaged, or a newer trajgen wrote it.
    """
    path = folder / "config.json"
    plain = read_json(path)
    try:
        return current("config", plain, path)
    except ValueError as error:
        raise damaged(path, error) from error


def write_config(folder: Path, config: Config, space: Space, command: str | None) -> None:
    """Writes down what is trained in a run folder; the command that began it stays the one that repeats it."""
    path = folder / "config.json"
    if path.exists():
        command = read_config(folder).get("command")
    write_json(path, {"format": FORMAT, **config.to_plain(), "space": asdict(space), "command": command})


def refuse_links(folder: Path) -> None:
    """Raises a `CheckpointError` if a file in a run folder is a link to somewhere else: it might be written to."""
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise CheckpointError(
                    "The files of a run folder lie within it.",
                    expected="files, and folders of files",
                    got=f"{path} leads to {path.resolve()}",
                    fix="put the file itself in the link's place",
                )


def _check_numbers(value: Any, where: str = "") -> None:
    """Raises a ValueError for a number that is not finite, or larger than any that means something."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_numbers(each, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for each in value:
            _check_numbers(each, where)
    elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):
        raise ValueError(f"{where} is a number out of range")


def _check_sizes(value: Any, where: str = "") -> None:
    """Raises a ValueError for a size that no model has."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_sizes(each, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for each in value:
            _check_sizes(each, where)
    elif isinstance(value, int) and abs(value) > LARGEST_SIZE:
        raise ValueError(f"{where} is {value:,}, and at most {LARGEST_SIZE:,}")


def free_path(parent: Path, name: str = "{}") -> Path:
    """The first of the paths in ``parent``, ``name`` filled with 1, 2, …, that is not there yet."""
    return next(path for path in (parent / name.format(n) for n in range(1, 10**6)) if not path.exists())


def write_summary(folder: Path, out: Path, config: Config, figures: dict[str, Any], plots: list[str]) -> None:
    """The run of ``folder`` on one page in ``out``."""
    from trajgen.viz.summary import summary_markdown

    text = summary_markdown(
        config.to_plain(),
        figures,
        trained_stages(folder / "metrics.jsonl"),
        plots,
        versions=read_json(folder / "versions.json"),
        command=read_config(folder).get("command"),
    )
    write_file(out / "summary.md", text)


def trained_stages(path: Path) -> list[dict[str, Any]]:
    """What became of each stage, from its lines in metrics.jsonl; a resumed stage counts its seconds anew.

    Raises:
        CheckpointError: if a line is not one that a training wrote.
    """
    stages = []
    for name, group in groupby(read_metrics(path), key=lambda line: line["stage"]):
        lines = list(group)
        # The last line of each process that worked at the stage: its clock began anew.
        ends = [a for a, b in zip(lines, [*lines[1:], {"seconds": 0.0}], strict=True) if b["seconds"] < a["seconds"]]
        seconds = sum(line["seconds"] for line in ends)
        parts = [key for key in lines[-1] if key.startswith("seconds/")]
        figures = {k: v for k, v in lines[-1].items() if k not in NOT_LOSSES}
        stages.append(
            {
                "name": name,
                "steps": lines[-1]["step"],
                "minutes": seconds / 60,
                "parts": {k.removeprefix("seconds/"): sum(line.get(k, 0.0) for line in ends) / 60 for k in parts},
                "losses": {k: v for k, v in figures.items() if "/" not in k},
                "usage": {k.removeprefix("usage/"): v for k, v in figures.items() if k.startswith("usage/")},
            }
        )
    return stages


def versions() -> dict[str, str]:
    """The packages that a result depends on, and Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def read_evaluation(path: Path) -> dict[str, Any]:
    """The evaluation.json of a run, whose figures are of the types that an evaluation writes.

    Raises:
        CheckpointError: if it is missing or damaged, or another program wrote it.
    """
    figures = read_json(path)
    try:
        for key, annotation in FIGURES.items():
            convert(figures.get(key), annotation, key)
        returns = figures.get("episode_returns") or {}
        if len({len(values) for values in returns.values()}) > 1:
            raise ValueError("the policy and those that it is compared with played as many episodes")
    except (TrajgenError, ValueError) as error:
        raise damaged(path, error) from error
    return figures
