"""A module of at most 40 lines outside the package, used in every command: by imports=[…], and by an entry point."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TRAIN

from trajgen import load_policy
from trajgen.cli import main
from trajgen.config import compose
from trajgen.core import registry

pytestmark = pytest.mark.usefixtures("undrawn")
PARTS = '''"""Parts of a laboratory: a recurrent prior, and a sampler."""
import torch
import torch.nn.functional as F
from torch import nn
from trajgen import register
from trajgen.samplers.autoregressive import AutoregressiveSampler


@register("prior", "elman")
class Elman(nn.Module):
    """A recurrent network over the tokens of any schedule."""

    def __init__(self, schedule, code_dim, vocabulary, conditioner, *, width: int = 16):
        super().__init__()
        self.schedule, self.vocabulary, self.conditioner = schedule, vocabulary, conditioner
        self.cond_proj, self.input_proj = nn.Linear(conditioner.width, width), nn.Linear(code_dim, width)
        self.network, self.head = nn.RNN(width, width, batch_first=True), nn.Linear(width, vocabulary)

    def forward(self, codes, inputs, cond):
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes), logits

    def loss(self, logits, codes):
        return F.cross_entropy(logits.transpose(1, 2), codes)

    def logits(self, inputs, cond):
        embedded = self.cond_proj(self.conditioner(cond)[:, :1])
        x = F.pad(self.input_proj(inputs), (0, 0, self.schedule.lengths[0], 0)) + embedded
        return self.head(self.network(x)[0])

    def start(self, cond):
        return [self.cond_proj(self.conditioner(cond)[:, :1]), None]

    def step(self, x, k, state):
        x = state[0].expand(-1, self.schedule.lengths[k], -1) + (0 if x is None else self.input_proj(x))
        out, state[1] = self.network(x, state[1])
        return self.head(out)
'''
ENTRY_POINT = '''"""A sampler that an installed package offers."""
from trajgen import register
from trajgen.samplers.autoregressive import AutoregressiveSampler


@register("sampler", "second")
def second(*, guidance: float = 0.0) -> AutoregressiveSampler:
    """The second likeliest code everywhere."""
    return AutoregressiveSampler(lambda logits, rng: logits.argsort(-1)[..., -2], guidance)
'''
WORDS = [word for word in TRAIN if not word.startswith(("prior.depth", "prior.heads"))]
WORDS += ["evaluation.latency=false", "evaluation.reference=false"]


@pytest.fixture
def folder(tiny_place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the tiny data with a module of components in it, which is unregistered after each test."""
    package = tiny_place / "my_lab"
    package.mkdir(exist_ok=True)
    (package / "parts.py").write_text(PARTS)
    monkeypatch.chdir(tiny_place)
    monkeypatch.syspath_prepend(tiny_place)
    importlib.invalidate_caches()
    yield tiny_place
    unregister()


def unregister() -> None:
    for key in [k for k, (spec, _) in registry._registered.items() if spec.module in ("my_lab.parts", "lab_points")]:
        del registry._registered[key]
    for module in ("my_lab", "my_lab.parts", "lab_points"):
        sys.modules.pop(module, None)
    registry.load_entry_points.cache_clear()


@pytest.fixture
def own_run(folder: Path) -> Path:
    """A tiny training with that prior; made once."""
    run_dir = folder / "runs" / "own-prior"
    if not (run_dir / "summary.md").exists():
        main(["train", "imports=[my_lab.parts]", "prior=elman", *WORDS, f"run_dir={run_dir}"])
        unregister()
    return run_dir


def test_the_module_is_short() -> None:
    assert len(PARTS.splitlines()) <= 40


def test_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "prior/elman", "imports=[my_lab.parts]"])
    assert "contracts that apply are kept" in capsys.readouterr().out


def test_train_evaluate_and_load(own_run: Path, folder: Path) -> None:
    assert json.loads((own_run / "config.json").read_text())["prior"] == {"name": "elman", "width": 16}
    main(["evaluate", f"run={own_run}", "imports=[my_lab.parts]", f"out={folder / 'again'}"])
    assert json.loads((folder / "again" / "evaluation.json").read_text()) is not None
    unregister()
    policy = load_policy(own_run, device="cpu", imports=("my_lab.parts",))
    policy.reset(batch=2)
    observation = {"observation": np.zeros((2, 4)), "desired_goal": np.ones((2, 2)), "achieved_goal": np.zeros((2, 2))}
    assert policy.act(observation).shape == (2, 2)


def test_without_the_import_the_run_is_refused(
    own_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "my_lab.parts", raising=False)
    with pytest.raises(SystemExit):
        main(["evaluate", f"run={own_run}"])
    error = capsys.readouterr().err
    assert "There is no prior 'elman'" in error and "imports=[my_lab.parts], which its config.json lists" in error


def test_it_is_recorded(own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    words = ["env=PointMaze_UMaze-v3", f"policy={own_run}", "episodes=1", "max_episode_steps=2", "id=tests/own-v0"]
    main(["data", "record", *words, "imports=[my_lab.parts]", "device=cpu"])
    assert (tmp_path / "tests" / "own-v0").is_dir()


def test_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in WORDS if not word.startswith(("prior.width", "engine.budget"))]
    main(
        ["study", "axis=[prior=elman]", "seeds=[0]", "workers=1", "equal=[steps]",
         "imports=[my_lab.parts]", "engine.budget=0.1", "out=own_study", *words]
    )  # fmt: skip
    results = json.loads((folder / "own_study" / "results.json").read_text())
    assert results["failed"] == {} and len(results["rows"]) == 1
    assert "imports=[my_lab.parts]" in (folder / "own_study" / "commands.sh").read_text()


def test_an_installed_package_offers_its_parts_by_an_entry_point(
    own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab_points.py").write_text(ENTRY_POINT)
    about = tmp_path / "lab_points-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-points\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[trajgen.components]\nlab_points = lab_points\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry.load_entry_points.cache_clear()
    main(["check", "sampler/second"])
    assert "contracts that apply are kept" in capsys.readouterr().out
    main(["list", "sampler/second", "schedule"])
    printed = capsys.readouterr().out
    assert "The second likeliest code" in printed and "geometric(" in printed
    unregister()
    words = [f"run={own_run}", "imports=[my_lab.parts]", "sampler=second", f"out={tmp_path / 'second'}"]
    main(["evaluate", *words])
    assert (tmp_path / "second" / "summary.md").exists()
    unregister()
    overrides = {"sampler": {"name": "second"}}
    policy = load_policy(own_run, device="cpu", imports=("my_lab.parts",), overrides=overrides)
    assert policy.planner.sampler.sample_fn(torch.tensor([[[1.0, 0.0, 2.0]]]), None).tolist() == [[0]]
    unregister()
    config = compose(["imports=[my_lab.parts]", "prior=elman", "sampler=second"])
    assert config.components["sampler"]["name"] == "second"
