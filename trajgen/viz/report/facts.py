"""What a page tells of a run, read from its folder, which may be a stranger's: what is not right is only said."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajgen.core.errors import CheckpointError, TrajgenError
from trajgen.core.files import read_json
from trajgen.experiments.run_folder import read_config, refuse_links, trained_stages
from trajgen.viz.summary import Row, score_rows

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 2 * 2**20
"""Bytes of the largest picture that is taken into the page."""
WIDE = 1.8
"""Width over height from which a picture counts as wide."""
MOST_PICTURES = 4
"""Of each kind, a run."""
PICTURES = ("plan_episode_*.png", "plans_seed_*.png", "usage.png", "control.png", "attention.png")
"""The pictures that the page shows, in this order."""
DAMAGED = (TrajgenError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, OSError)
"""What reading a file raises that no command of ours wrote."""


@dataclass(frozen=True)
class Picture:
    """A picture within the page."""

    caption: str
    source: str  # a data URI
    wide: bool = False
    """Whether it is too wide to be read on a telephone as a whole."""


@dataclass
class Facts:
    """What is known of a run."""

    label: str
    folder: Path
    config: dict[str, Any]
    evaluation: dict[str, Any] = field(default_factory=dict)
    scores: list[Row] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    weights: int | None = None
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def minutes(self) -> float | None:
        """Of the whole training."""
        return sum(float(stage["minutes"]) for stage in self.stages) if self.stages else None

    @property
    def steps(self) -> int | None:
        """Of all stages."""
        return sum(int(stage["steps"]) for stage in self.stages) if self.stages else None

    def number(self, *keys: str) -> float | None:
        """A figure of the evaluation by its path; None where there is no finite number."""
        node: Any = self.evaluation
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        usable = isinstance(node, int | float) and not isinstance(node, bool) and math.isfinite(node)
        return float(node) if usable else None

    def interval(self, *keys: str) -> tuple[float, float] | None:
        """An interval of the evaluation by its path."""
        node: Any = self.evaluation
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        if not isinstance(node, list) or len(node) != 2:
            return None
        if not all(isinstance(end, int | float) and math.isfinite(end) for end in node):
            return None
        return float(node[0]), float(node[1])

    def episode_returns(self) -> dict[int, float]:
        """The return of each episode by its seed; failed ones are left out."""
        seeds, node = self.evaluation.get("seeds"), self.evaluation.get("episode_returns")
        returns = node.get("policy") if isinstance(node, Mapping) else None
        if not isinstance(returns, list) or not isinstance(seeds, list) or len(seeds) != 2:
            return {}
        if not all(type(seed) is int for seed in seeds) or seeds[1] - seeds[0] + 1 != len(returns):
            return {}
        numbers = {seeds[0] + i: r for i, r in enumerate(returns) if isinstance(r, int | float)}
        return {seed: float(value) for seed, value in numbers.items() if math.isfinite(value)}


def read_facts(folders: Sequence[Path]) -> list[Facts]:
    """What is known of runs; a folder of a study stands for its cells.

    Raises:
        CheckpointError: for a folder without a run in it.
    """
    found = [cell for folder in folders for cell in _runs_of(folder)]
    found = list({folder.resolve(): folder for folder in found}.values())
    return [_read(folder, label) for folder, label in zip(found, _labels(found), strict=True)]


def _runs_of(folder: Path) -> list[Path]:
    if (folder / "config.json").is_file():
        return [folder]
    cells = [path.parent for path in sorted(folder.glob("cells/*/config.json"))]
    if not cells:
        raise CheckpointError(
            "A report compares runs.",
            expected="run folders, or the folder of a study",
            got=f"{folder}, which holds neither config.json nor cells/" if folder.is_dir() else f"no folder {folder}",
            fix="trajgen report runs/A runs/B",
        )
    return cells


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len({*names}) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, label: str) -> Facts:
    refuse_links(folder)
    config = read_config(folder)
    config.pop("format", None)
    facts = Facts(label, folder, config)
    command = config.pop("command", None)
    facts.command = command if isinstance(command, str) else None
    for name, read in _READERS.items():
        try:
            read(facts)
        except DAMAGED as error:
            said = error.got if isinstance(error, TrajgenError) else error
            facts.problems.append(f"{name}: {str(said or type(error).__name__)[:200]}")
    return facts


def _read_evaluation(facts: Facts) -> None:
    path = facts.folder / "evaluation.json"
    if not path.exists():
        facts.problems.append("not evaluated")
        return
    evaluation = read_json(path)
    facts.scores = score_rows(evaluation)
    facts.evaluation = evaluation


def _read_training(facts: Facts) -> None:
    from trajgen.core.files import read_metrics

    path = facts.folder / "metrics.jsonl"
    if not path.exists():
        facts.problems.append("no metrics of its training")
        return
    facts.stages = trained_stages(path)
    facts.metrics = read_metrics(path)


def _read_versions(facts: Facts) -> None:
    path = facts.folder / "versions.json"
    if path.exists():
        facts.versions = {str(name): str(version)[:60] for name, version in read_json(path).items()}


def _read_weights(facts: Facts) -> None:
    """Counted from the header of the final checkpoint; nothing of it is loaded."""
    from safetensors import SafetensorError, safe_open

    path = facts.folder / "checkpoints" / "final.safetensors"
    if not path.exists():
        facts.problems.append("not trained to its end")
        return
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            shapes = [file.get_slice(name).get_shape() for name in names]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    facts.weights = sum(math.prod(shape) for shape in shapes)


def _read_pictures(facts: Facts) -> None:
    for pattern in PICTURES:
        for path in sorted((facts.folder / "plots").glob(pattern))[:MOST_PICTURES]:
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


_READERS = {
    "evaluation.json": _read_evaluation,
    "metrics.jsonl": _read_training,
    "versions.json": _read_versions,
    "checkpoints": _read_weights,
    "plots": _read_pictures,
}
