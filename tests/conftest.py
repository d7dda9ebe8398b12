"""What all tests share: one thread, and no display."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "agg")

import hydra
import pytest
import tiny
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trajgen.cli import main
from trajgen.config import source as search_path
from trajgen.core import registry
from trajgen.core.types import Batch, Cond, Space
from trajgen.viz.figure import write as WRITE

torch.set_num_threads(1)
gc.set_threshold(200_000)  # there are many objects, and few of them are garbage

LONG = ("test_commands", "test_distributed", "test_export", "test_tiny", "test_study_end_to_end", "test_simulated",
        "test_backends", "test_docs", "test_plot", "test_killed")  # fmt: skip
"""Files that take longest: the workers begin with them, so that all end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which commands are given, with a tiny data set in ``datasets``, where all later tests look."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
        main(["data", "make", "pointmaze/umaze-dwell", "steps=3000"])
        yield folder


PLANS = 8
"""Plans of which an evaluation measures the condition error."""


@pytest.fixture(scope="session")
def tiny_run(tiny_place: Path) -> Path:
    """The folder of the one tiny run, made by the command line; tests leave it as it is."""
    before = {path.name for path in tiny_place.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_place)
        patch.setattr("trajgen.experiments.evaluating.CONDITIONS", PLANS)  # whichever test asks for the run first
        patch.setattr("trajgen.viz.figure.write", blank)
        main(["train", "recipe=mage", *tiny.TRAIN])
    tiny.LEFT_BY_TRAINING.update({path.name for path in tiny_place.iterdir()} - before)
    return tiny_place / "runs" / "mage-umaze-dwell-s0"


@pytest.fixture
def run(tiny_run: Path, tiny_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny run, with the commands given where it was made."""
    monkeypatch.chdir(tiny_place)
    return tiny_run


VALUE = re.compile(r"(?:seed|device|resume|run_dir|task_options|[a-z_]+\.[\w.]+)=(?:[-+\w./]+|\[[-+\w., ]*\])")
"""An override of a value, which is not the choice of a file or component, and no sweep."""
COMPOSE = hydra.compose


def compose_once(name: str, overrides: list[str], compositions: dict[tuple[str, ...], Any]) -> Any:
    """Hydra's composition: of shipped files once for each choice of them, with the other values set as Hydra does."""
    shipped = all(spec.module.startswith("trajgen.") for spec, _ in registry._registered.values())
    if not shipped or any(search_path._search.values()) or ".y" in "".join(overrides):
        return COMPOSE(name, overrides=overrides)
    values = [word for word in overrides if VALUE.fullmatch(word) and not word.startswith("hydra.")]
    choices = tuple(word for word in overrides if word not in values)
    if choices not in compositions:
        compositions[choices] = COMPOSE(name, overrides=list(choices))
    composed = deepcopy(compositions[choices])
    try:
        for override in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException:  # Hydra words what is wrong
        return COMPOSE(name, overrides=overrides)
    return composed


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """A composition takes a tenth of a second, and there are a thousand of them; test_composing.py takes Hydra's."""
    compositions: dict[tuple[str, ...], Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", lambda name, overrides: compose_once(name, overrides, compositions))
        patch.setattr(ConfigStore, "__deepcopy__", lambda store, memo: store, raising=False)  # of all it is offered
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations draw nothing; those of the tiny run are drawn, and the pictures have tests of their own."""
    monkeypatch.setattr("trajgen.viz.plans.draw_run", lambda *_, **__: [])


def blank(figure: Any, path: Path) -> None:
    if path.suffix == ".png":
        figure.clear()
        figure.set_layout_engine("none")
    WRITE(figure, path)


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few plans and pictures in an evaluation; outside ``tests/viz`` figures are composed, and their PNG is blank."""
    monkeypatch.setattr("trajgen.experiments.evaluating.CONDITIONS", PLANS)
    monkeypatch.setattr("trajgen.viz.plans.EPISODES", 1)
    if request.path.parent.name != "viz":
        monkeypatch.setattr("trajgen.viz.figure.write", blank)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def space() -> Space:
    return tiny.SPACE


@pytest.fixture
def batch() -> Batch:
    return tiny.batch()


@pytest.fixture
def cond() -> Cond:
    return tiny.cond()


@pytest.fixture
def source() -> tiny.RandomSource:
    return tiny.RandomSource()
