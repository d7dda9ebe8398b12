"""Run folders with invented files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from trajgen.evaluation.evaluate import plain
from trajgen.evaluation.statistics import summarize


def write_metrics(folder: Path, *stages: str, scale: float = 1.0) -> None:
    """Writes the lines of a training with a codebook of two scales."""
    codebook = {f"{figure}/{scale}": value for figure, value in (("usage", 0.5), ("perplexity", 4.0))
                for scale in ("scale_1", "scale_2", "all")}  # fmt: skip
    rows = [
        {"stage": stage, "stage_index": i, "step": step, "seconds": 6.0 * step, "windows_per_second": 9.0}
        | {"total": scale / step, "part": scale / step / 2, **codebook}
        for i, stage in enumerate(stages)
        for step in range(10, 60, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(folder: Path, returns: list[float | None], first_seed: int = 0, **changes: Any) -> None:
    """Writes the evaluation of episodes with these returns; None for one that failed."""
    done = [value for value in returns if value is not None]
    figures = {
        "env": "walk",
        "episodes": len(returns),
        "seeds": [first_seed, first_seed + len(returns) - 1],
        "protocol": "a walk for each seed",
        "return": summarize(done)._asdict(),
        "episode_returns": {"policy": returns},
        "success": 0.5,
        "decision_ms": {"batch_1": {"median": 3.0, "p95": 4.0}, "batch_64": {"median": 5.0, "p95": 6.0}},
        "decisions_per_second": 1234.0,
        "errors": [],
        "date": "2026-01-02",
        "hardware": {"cpu": "a processor", "threads": 1, "cuda": None},
    }
    (folder / "evaluation.json").write_text(json.dumps(plain(figures | changes)))


def make_run(folder: Path, recipe: str = "mage", seed: int = 0) -> Path:
    """Makes a run folder with a configuration, versions and ten weights; of recipe bc, without a tokenizer."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "recipe": recipe,
        "seed": seed,
        "run_dir": str(folder),
        "data": {"id": "a/walk-v0", "horizon": 16, "max_episode_steps": None},
        "view": {"name": "fields", "fields": ["return", "state"]},
        "planner": {"name": "latent" if recipe == "mage" else "direct"},
        "space": {"state_dim": 2},
        "command": f"trajgen train recipe={recipe}",
    }
    if recipe == "mage":
        config["tokenizer"] = {"name": "multiscale", "codebook_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "versions.json").write_text('{"trajgen": "0.1.0", "torch": "2.9"}')
    (folder / "checkpoints").mkdir()
    weights = {"model.a": np.zeros((2, 3), np.float32), "model.b": np.zeros(4, np.float32)}
    save_file(weights, folder / "checkpoints" / "final.safetensors")
    return folder
