"""Fixtures of pictures: run folders of several recipes with fresh weights, and a policy without one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

import pytest
import tiny

from trajgen import experiments
from trajgen.assemble import assemble
from trajgen.config import compose
from trajgen.core.files import write_json
from trajgen.core.types import Space
from trajgen.engine.checkpoint import Checkpoints
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

SIZES = ["data=pointmaze/umaze-dwell", "device=cpu", "data.max_episode_steps=20", "evaluation.episodes=2"]
OPTIONS = ("width", "depth", "heads", "codebook_size", "timesteps", "steps", "expand")
"""Options that are set to the small sizes of `tiny` wherever a component has them."""
WALK = Space(state_dim=2, action_dim=1, goal_dim=1, state_key="observation", goal_key="desired_goal",
             action_low=(-1.0,), action_high=(1.0,))  # fmt: skip
"""Of the environment of ``walks.py``."""


@pytest.fixture
def fresh_run(tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a run folder of a recipe with fresh weights: whole but for training and evaluation."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tiny_place / "datasets"))

    def make(recipe: str, *words: str, name: str | None = None) -> Path:
        config = compose([f"recipe={recipe}", *SIZES, *words])
        components = {k: {**node, **{o: tiny.SMALL[o] for o in OPTIONS if o in node}} for k, node in
                      config.components.items()}  # fmt: skip
        config = dataclasses.replace(config, components=components)
        folder = tmp_path / (name or recipe)
        folder.mkdir(parents=True)
        plain = {**config.to_plain(), "space": dataclasses.asdict(tiny.SPACE), "command": f"trajgen train {recipe}"}
        write_json(folder / "config.json", plain)
        write_json(folder / "versions.json", {"trajgen": "0.1.0", "torch": "2.9"})
        planner: Any = experiments.build_planner(config, tiny.SPACE)
        Checkpoints(folder / "checkpoints").save_final(tiny.shake(planner, 0.1))
        return folder

    return make


@pytest.fixture
def walker() -> RecedingHorizonPolicy:
    """A policy for the environment of ``walks.py``, with fresh weights."""
    planner: Any = assemble(tiny.nodes(), WALK, dataclasses.replace(tiny.WINDOW, goal_state=(0,)))
    options = PolicyOptions(replan_interval=2)
    return RecedingHorizonPolicy(planner, planner.normalizer, WALK, options, discount=0.9, chunk=tiny.CHUNK)
