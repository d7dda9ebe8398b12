"""The notebooks run from top to bottom, at debug size."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS
from tiny import TRAIN

from trajgen import cli

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
SIZED = ("train", "study")


def shell(line: str) -> None:
    """A command of a notebook, on a CPU and with small models."""
    program, command, *words = shlex.split(line)
    assert program == "trajgen"
    words = [word.replace("evaluation.episodes=8", "evaluation.episodes=2") for word in words]
    keys = {word.partition("=")[0] for word in words}
    small = [word for word in TRAIN if word.partition("=")[0] not in keys] if command in SIZED else ["device=cpu"]
    cli.main([command, *words, *small, *(["executor=inline"] if command == "study" else [])])


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.nightly] * (path.stem == "ablation")) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and not any(cell.get("outputs") for cell in notebook["cells"])
    shutil.copytree(tiny_place / "datasets", tmp_path / "datasets")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    if "!trajgen study" in path.read_text(encoding="utf-8"):  # whose cells need no pictures and no latency
        monkeypatch.setattr("trajgen.viz.plans.draw_run", lambda *_, **__: [])
        monkeypatch.setattr("trajgen.evaluation.evaluate.LATENCY_BATCHES", ())
    names: dict[str, Any] = {
        "Image": lambda name: Path(name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" or pytest.fail(name),
        "Markdown": lambda text: text.startswith("#") or pytest.fail(text),
    }
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        source = "".join(cell["source"]).replace("from IPython.display import Image, Markdown\n", "")
        if source.startswith("!"):
            shell(source.removeprefix("!").replace("\\\n", ""))
        elif not source.startswith("%pip"):
            exec(compile(source, path.name, "exec"), names)


def test_their_links_lead_somewhere() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"ablation", "first_plan"}
    for path in NOTEBOOKS:
        text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
        for target in (part.split(")")[0] for part in text.split("](")[1:]):
            assert (path.parent / target).exists(), target
