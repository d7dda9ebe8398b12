"""The run folder: its name, its files, and how they are read. It may come from a stranger: see `trajgen.security`."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import CheckpointError, ConfigError, TrajgenError
from trajgen.core.files import (
    LARGEST_NUMBER,
    NOT_LOSSES,
    PARTIAL,
    damaged,
    file_lock,
    free_path,
    read_json,
    read_metrics,
    require_writable,
    write_file,
    write_json,
)
from trajgen.core.formats import FORMAT, current
from trajgen.core.options import convert, differing, flat, structure
from trajgen.experiments.versions import recorded_versions
from trajgen.security import check_entries, check_numbers

if TYPE_CHECKING:
    from trajgen.core.types import Space
    from trajgen.envs.eval_env import EnvRecord

ROOT = Path("runs")
SHOWN = 5
"""The most options in which two configurations differ that an error names."""
FINAL = "checkpoints/final.safetensors"
LOCK, STUDY_LOCK = "run.lock", "study.lock"
HUB = ("D4RL", "mujoco")
"""Name spaces of the hub's data sets."""
PRECISIONS = {16: "bfloat16", 32: "float32"}
"""By the bits of a number, as metrics.jsonl has them."""
LONGEST_RUN_NAME, LONGEST_NAME = 200, 120
"""Characters of the names of a run's folder and of an evaluation's."""
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
    "action_error": dict[str, Any] | None,
    "condition_error": dict[str, float | None] | None,
    "decision_ms": dict[str, dict[str, float | None]] | None,
    "seeds": list[int] | None,
    "protocol": str | None,
    "overrides": dict[str, Any] | None,
    "data_returns": dict[str, float] | None,
    "trained_weights": list[int] | None,
}
"""Types of the figures of evaluation.json that are read; one may be missing, as in older folders."""
NORMALIZED = {"name": str | None, "mean": float | None, "iqm": float | None, "ci95": list[float | None] | None}
"""Types of the entries of ``normalized`` that are read."""
EARNED = ("mean", "best_tenth", "median_steps")
"""What a summary names of the returns of data.json."""


def find_folder(config: Config) -> Path:
    """The folder of a new run, which need not exist, or that of the run to resume.

    Raises:
        ConfigError: if the folder belongs to another configuration, or holds a run that was not to be resumed.
        TrainingError: if it cannot be written to, or another process trains in it.
    """
    name = run_name(config)
    if config.run_dir is not None:
        folder = Path(config.run_dir)
    elif config.resume:
        numbered = [path for path in ROOT.glob("*") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", path.name)]
        existing, same = sorted(filter(Path.is_dir, numbered), key=lambda path: path.stat().st_mtime), []
        for path in existing:
            with suppress(TrajgenError):  # one that cannot be read is another run
                same += [path] if identity(path) == config.identity() else []
        same = same or [path for path in existing if not contents(path)]  # killed before it wrote its configuration
        if not same:
            raise ConfigError(
                f"There is no folder {ROOT / name}* with this configuration to resume.",
                got=", ".join(map(str, existing)) or "none",
                fix="leave out resume=true to train from the start, or name its folder: run_dir=DIR",
            )
        folder = sorted(same, key=lambda path: _likeness(path, config))[-1]  # of those that are alike, the newest
    else:
        paths = (ROOT / (name if n == 1 else f"{name}-{n}") for n in range(1, 10**6))
        folder = next(path for path in paths if not path.exists())
    require_utf8(folder)
    require_free(folder, config)
    require_writable(folder, "run_dir=ANOTHER, or mend the permissions")
    if folder.exists():
        with file_lock(folder / LOCK):
            pass
    return folder


def require_utf8(folder: Path) -> None:
    """Raises a `ConfigError` for a path that is no UTF-8: safetensors writes there, and cannot read there."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ConfigError("The path of a run folder is UTF-8.", got=str(folder), fix="another name") from error


def run_name(config: Config) -> str:
    """The default name of a run folder; a long one is cut before its seed."""
    namespace, _, rest = config.data.id.partition("/")
    data = config.data.id.removesuffix("-v0").rpartition("/")[2]
    if namespace in HUB:  # whose data sets are called human or expert in the folder of their task
        data = re.sub(r"-v\d+$", "", rest).replace("/", "-")
    seed = f"-s{config.seed}"
    return f"{config.recipe}-{data}"[: LONGEST_RUN_NAME - len(seed)] + seed


def contents(folder: Path) -> list[str]:
    """The names in a folder, which need not exist, without lock files and what a killed process was writing."""
    names = (path.name for path in folder.iterdir()) if folder.exists() else ()
    return sorted(name for name in names if not name.startswith((LOCK, STUDY_LOCK, PARTIAL)))


def require_free(folder: Path, config: Config) -> None:
    """Raises a `ConfigError` unless a folder is new, is empty, or holds the run that is to be resumed."""
    existing, requested = identity(folder), config.identity()
    if existing is not None and existing != requested:
        differences = differing(existing, requested)
        more = f"; and {len(differences) - SHOWN} more" if differences[SHOWN:] else ""
        raise ConfigError(
            "A run folder belongs to one configuration.",
            expected=f"the configuration in {folder / 'config.json'}",
            got="; ".join(differences[:SHOWN]) + more,
            fix="run_dir=ANOTHER, or the options that the folder was made with",
        )
    names = contents(folder)
    if config.resume and is_finished(folder) and (words := changed_words(load_config(folder)[0], config)):
        raise ConfigError(
            "A run that is finished keeps the options with which it was evaluated.",
            got=f"{', '.join(words)} for {folder}",
            fix=f"trajgen evaluate run={folder} {shlex.join(words)}",
        )
    if names and not config.resume and (folder / FINAL).exists():
        raise ConfigError(
            "The run is there, and its training is finished.",
            got=str(folder / FINAL),
            fix=f"trajgen evaluate run={folder} plays it again; run_dir=ANOTHER trains another one",
        )
    if names and not (config.resume and existing is not None):
        raise ConfigError(
            "A run folder is empty, or holds the run to resume.",
            got=f"{folder} holds {', '.join(names[:4])}",
            fix="resume=true to go on with it, or run_dir=ANOTHER",
        )


def identity(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder trains, or None if there is none."""
    return load_config(folder)[0].identity() if (folder / "config.json").exists() else None


def _likeness(folder: Path, config: Config) -> tuple[bool, bool]:
    """Of a run that trains the same: whether it also acts and is evaluated alike, and whether it is unfinished."""
    if not (folder / "config.json").exists():
        return False, True
    return not changed_words(load_config(folder)[0], config), not is_finished(folder)


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder is trained to its end, and evaluated."""
    return (folder / FINAL).exists() and (folder / "evaluation.json").exists()


def changed_words(existing: Config, config: Config) -> list[str]:
    """The options of policy and evaluation in which a configuration differs from another, as they are typed."""
    before, now = ({k: v for k, v in c.to_plain().items() if k in ("policy", "evaluation")} for c in (existing, config))
    old = dict(flat(before))
    return [f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in flat(now) if v != old[key]]


def load_config(folder: Path) -> tuple[Config, Space]:
    """The configuration and the space of a run folder, which may be a stranger's: nothing in it is imported or run.

    Raises:
        CheckpointError: if the folder is not that of a run, a newer trajgen wrote it, or it leads out of itself.
        ConfigError: if it names an unknown component or option.
    """
    from trajgen.core.types import Space

    require_utf8(folder)
    refuse_links(folder)
    plain = read_config(folder)
    try:
        plain.pop("command", None)
        space_values = plain.pop("space", {})
        check_numbers(plain, LARGEST_NUMBER)
        space = structure(Space, space_values, "space")
        config = Config.from_plain(plain)
        widths = [value for value in space_values.values() if type(value) is int]  # action bounds may be infinite
        check_numbers({**config.components, "data": plain["data"], "space": widths}, LARGEST_SIZE, int)
        env_id = config.data.env_id
    except ConfigError as error:
        modules = [name for name in map(str, plain.get("imports") or ()) if name not in sys.modules]
        if not modules:
            raise
        fix = f"imports=[{','.join(modules)}], which its config.json lists, if you know what they do"
        raise ConfigError(error.rule, expected=error.expected, got=error.got, fix=fix) from error
    except TrajgenError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise damaged(folder / "config.json", error) from error
    if env_id is not None:
        _require_imported(env_id, f"{folder / 'config.json'}: data.env_id={env_id}")
    return config, space


def recorded_env(folder: Path) -> EnvRecord | None:
    """The environment that a run's data set names; None where the folder does not say.

    Raises:
        CheckpointError: if what it says is damaged, or names a module that is not imported.
    """
    from trajgen.envs.eval_env import EnvRecord

    path = folder / "data.json"
    values = read_json(path).get("env") if path.exists() else None
    if values is None:
        return None
    try:
        check_numbers(values, LARGEST_SIZE, int)
        record = structure(EnvRecord, values, "env")
        if record.bounds is not None and len(record.bounds) != 2:
            raise ValueError(f"{len(record.bounds)} bounds")
    except (TrajgenError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error
    _require_imported(record.id, f"{path}: env.id={record.id}")
    return record


def _require_imported(env_id: str, got: str) -> None:
    """Raises a `CheckpointError` if the id of an environment names a module (MODULE:ID) that is not imported."""
    module, colon, _ = env_id.rpartition(":")  # as Gymnasium reads it
    if colon and module not in sys.modules:
        raise CheckpointError(
            "A run folder may only name modules that are imported already.",
            got=got,
            fix=f"imports=[{module}], if you know what it does",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run folder as plain values in the present format, unchecked.

    Raises:
        CheckpointError: if it is missing or damaged, or a newer trajgen wrote it.
    """
    path = folder / "config.json"
    try:
        return current(read_json(path), path)
    except ValueError as error:
        raise damaged(path, error) from error


def write_config(folder: Path, config: Config, space: Space, command: str | None) -> None:
    """Writes the config.json of a run folder; the command of a resumed run stays the first one."""
    path = folder / "config.json"
    if path.exists():
        command = read_config(folder).get("command")
    write_json(path, {"format": FORMAT, **config.to_plain(), "space": asdict(space), "command": command})


def refuse_links(folder: Path) -> None:
    """Raises a `CheckpointError` if a file in a run folder is a link out of it, a FIFO or a device."""
    try:
        check_entries(folder)
    except ValueError as error:
        raise CheckpointError(
            "The files of a run folder lie within it.", got=str(error), fix="put the file itself in the link's place"
        ) from error


def evaluation_folder(folder: Path, overrides: dict[str, Any]) -> Path:
    """A new folder for an evaluation of a run, named by the options that differ: ``evaluations/sampler-greedy``."""
    typed = {key.removesuffix(".name"): v if isinstance(v, str) else json.dumps(v) for key, v in flat(overrides)}
    words = [f"{key}-{value}" for key, value in typed.items()]
    name = re.sub(r"[^\w.+]+", "-", "-".join(words), flags=re.ASCII).strip("-.")[:LONGEST_NAME] or "same"
    parent = folder / "evaluations"
    return parent / name if not (parent / name).exists() else free_path(parent, f"{name}-{{}}", first=2)


def data_returns(folder: Path) -> dict[str, float] | None:
    """What the episodes of a run's data earned; None where the folder does not say.

    Raises:
        CheckpointError: if what it says is damaged.
    """
    path = folder / "data.json"
    returns = read_json(path).get("returns") if path.exists() else None
    if returns is None:
        return None
    try:
        figures = convert(returns, dict[str, float], "returns")
    except ConfigError as error:
        raise damaged(path, error.got) from error
    if missing := [name for name in EARNED if name not in figures]:
        raise damaged(path, f"returns without {', '.join(missing)}")
    return figures


def write_summary(folder: Path, out: Path, config: Config, figures: dict[str, Any], plots: list[str]) -> None:
    """Writes summary.md, one page about the run of ``folder``, into ``out``."""
    from trajgen.viz.summary import summary_markdown

    command = read_config(folder).get("command")
    text = summary_markdown(
        config.to_plain(),
        figures,
        trained_stages(folder / "metrics.jsonl"),
        plots,
        versions=recorded_versions(folder),
        scales=load_config(folder)[1].scale_lengths,
        command=command if isinstance(command, str) else None,
        run=str(folder),
    )
    write_file(out / "summary.md", text)


def trained_stages(path: Path) -> list[dict[str, Any]]:
    """Steps, minutes and last figures of each stage of metrics.jsonl.

    Raises:
        CheckpointError: if a line is not one that a training wrote.
    """
    stages = []
    for name, group in groupby(read_metrics(path), key=lambda line: line["stage"]):
        *_, last = group
        figures = {k: v for k, v in last.items() if k not in NOT_LOSSES}
        stages.append(
            {
                "name": name,
                "steps": last["step"],
                "minutes": last["seconds"] / 60,
                "precision": PRECISIONS.get(last.get("precision/bits", 0)),
                "parts": {k.removeprefix("seconds/"): v / 60 for k, v in last.items() if k.startswith("seconds/")},
                "losses": {k: v for k, v in figures.items() if "/" not in k},
                "usage": {k.removeprefix("usage/"): v for k, v in figures.items() if k.startswith("usage/")},
            }
        )
    return stages


def read_evaluation(path: Path) -> dict[str, Any]:
    """The evaluation.json of a run, whose figures are of the types that an evaluation writes.

    Raises:
        CheckpointError: if it is missing or damaged, or another program wrote it.
    """
    figures = read_json(path)
    try:
        for key, annotation in FIGURES.items():
            convert(figures.get(key), annotation, key)
        normalized = figures.get("normalized") or {}
        for key, annotation in NORMALIZED.items():
            convert(normalized.get(key), annotation, f"normalized.{key}")
        returns = figures.get("episode_returns") or {}
        if len({len(values) for values in returns.values()}) > 1:
            raise ValueError("policy and controller have different numbers of episodes")
    except (TrajgenError, ValueError) as error:
        raise damaged(path, error) from error
    return figures
