"""The run folder: where a run lies, what it holds, and how its small files are written and read."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from trajgen.config import Config
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.options import structure
from trajgen.core.types import Space

ROOT = Path("runs")
NOT_LOSSES = ("stage", "stage_index", "step", "seconds", "windows_per_second", "gradient_norm")
"""Entries of a line of metrics.jsonl that are neither losses nor usage."""
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
    """
    name = f"{config.recipe}-{config.data.id.removesuffix('-v0').rpartition('/')[2]}-s{config.seed}"
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
    found = identity(folder) if folder.exists() else None
    if found is not None and found != config.identity():
        differing = sorted(k for k in {*found, *config.identity()} if found.get(k) != config.identity().get(k))
        raise ConfigError(
            "A run folder belongs to one configuration.",
            expected=f"the configuration in {folder / 'config.json'}",
            got=f"another {', '.join(differing)}",
            fix="run_dir=ANOTHER, or the options that the folder was made with",
        )
    if folder.exists() and any(folder.iterdir()) and not (config.resume and found is not None):
        raise ConfigError(
            "A run folder is empty, or is a run to go on with.",
            expected="a new folder, or resume=true",
            got=f"{folder} holds {', '.join(sorted(p.name for p in folder.iterdir())[:4])}",
            fix="resume=true to go on with it, or run_dir=ANOTHER",
        )
    return folder


def identity(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder trains, or None if there is none."""
    if not (folder / "config.json").exists():
        return None
    return load_config(folder)[0].identity()


def load_config(folder: Path) -> tuple[Config, Space]:
    """The configuration and the space of a run folder.

    Raises:
        CheckpointError: if the folder is not that of a run.
    """
    plain = read_json(folder / "config.json")
    plain.pop("command", None)
    space = structure(Space, plain.pop("space", {}), "space")
    return Config.from_plain(plain), space


def free_path(parent: Path, name: str = "{}") -> Path:
    """The first of the paths in ``parent``, ``name`` filled with 1, 2, …, that is not there yet."""
    return next(path for path in (parent / name.format(n) for n in range(1, 10**6)) if not path.exists())


def write_summary(folder: Path, out: Path, config: Config, figures: dict[str, Any], plots: list[str]) -> None:
    """The run of ``folder`` on one page in ``out``."""
    from trajgen.evaluation.report import summary_markdown

    text = summary_markdown(
        config.to_plain(),
        figures,
        trained_stages(folder / "metrics.jsonl"),
        plots,
        versions=read_json(folder / "versions.json"),
        command=read_json(folder / "config.json").get("command"),
    )
    (out / "summary.md").write_text(text, encoding="utf-8")


def trained_stages(path: Path) -> list[dict[str, Any]]:
    """What became of each stage, from its lines in metrics.jsonl; a resumed stage counts its seconds anew."""
    from trajgen.evaluation.plots import read_metrics

    stages = []
    for name, group in groupby(read_metrics(path) if path.exists() else [], key=lambda line: line["stage"]):
        lines = list(group)
        clock = [line["seconds"] for line in lines]
        seconds = sum(now for now, then in zip(clock, [*clock[1:], 0.0], strict=True) if then < now)
        figures = {k: v for k, v in lines[-1].items() if k not in NOT_LOSSES}
        stages.append(
            {
                "name": name,
                "steps": lines[-1]["step"],
                "minutes": seconds / 60,
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


def write_json(path: Path, values: Any) -> None:
    """Writes plain values, whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder as a dictionary.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "The files of a run folder are plain JSON, and whole.",
            expected=f"{path.name}, as 'trajgen train' wrote it",
            got=f"{path}: {error}",
            fix="run=DIR of a run that 'trajgen train' made",
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            "The JSON files of a run folder are dictionaries.",
            expected=f"{path.name}, as 'trajgen train' wrote it",
            got=f"{path}: {type(values).__name__}",
            fix="run=DIR of a run that 'trajgen train' made",
        )
    return values
