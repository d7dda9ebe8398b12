"""Makes an entry of the zoo from a finished run: ``python tests/packaging/zoo_entry.py RUN NAME "what its data are"``.

Weights in 8 bits, the configuration, the metrics, the score that these weights reach, and a model card.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from trajgen import experiments
from trajgen.config import RECIPES
from trajgen.core.files import read_json, read_metrics, write_file, write_json
from trajgen.engine.checkpoint import Checkpoints
from trajgen.engine.storage import Position, compressed, read_tensors, write_tensors
from trajgen.envs.eval_env import record_env
from trajgen.experiments.run_folder import load_config, read_config, trained_stages
from trajgen.experiments.zoo import WEIGHTS

EVERY = 250
"""Steps from one line of the metrics to the next."""


def make(run: Path, name: str, data: str) -> Path:
    """Writes ``recipes/zoo/NAME``."""
    folder = RECIPES / "zoo" / name
    shutil.rmtree(folder, ignore_errors=True)
    config, _ = load_config(run)
    plain = read_config(run)
    command = [word for word in str(plain["command"]).split() if not word.startswith("run_dir=")]
    write_json(folder / "config.json", plain | {"run_dir": None, "command": " ".join(command)})
    env = record_env(config.data)
    assert env is not None, "without an environment there is no score"
    write_json(folder / "data.json", read_json(run / "data.json") | {"env": asdict(env)})
    shutil.copyfile(run / "versions.json", folder / "versions.json")
    lines = read_metrics(run / "metrics.jsonl")
    ends = [a for a, b in zip(lines, [*lines[1:], {"stage": None}], strict=True) if a["stage"] != b["stage"]]
    thinned = [line for line in lines if line["step"] % EVERY == 0 or line in ends]
    write_file(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in thinned))
    tensors, _ = read_tensors(Checkpoints(run / "checkpoints").newest(), torch.device("cpu"))
    write_tensors(folder / WEIGHTS, compressed(tensors), Position())
    with TemporaryDirectory() as out:
        evaluation = experiments.evaluate(folder, Console(), device="cpu", out=Path(out) / "evaluation")
        shutil.copyfile(Path(out) / "evaluation" / "evaluation.json", folder / "evaluation.json")
    write_file(folder / "README.md", card(folder, evaluation, data))
    return folder


def card(folder: Path, evaluation: dict[str, Any], data: str) -> str:
    """The model card."""
    config, about = read_json(folder / "config.json"), read_json(folder / "data.json")
    minutes = sum(stage["minutes"] for stage in trained_stages(folder / "metrics.jsonl"))
    size = (folder / WEIGHTS).stat().st_size / 1e6
    mean, interval = evaluation["return"]["mean"], evaluation["return"]["ci95"]
    rows = [("return, mean", f"{mean:.1f}", f"{interval[0]:.1f} to {interval[1]:.1f}")]
    if (ratio := evaluation.get("ratio_to_controller")) is not None:
        low, high = evaluation["ratio_to_controller_ci95"]
        rows.append(("ratio to the noise-free controller's", f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"))
    normalized = evaluation["normalized"]
    low, high = normalized["ci95"]
    rows.append((f"normalized by {normalized['name']}", f"{normalized['mean']:.1f}", f"{low:.1f} to {high:.1f}"))
    if evaluation.get("success") is not None:
        rows.append(("success", f"{evaluation['success']:.0%}", ""))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    score = f"{normalized['mean']:.0f} normalized by {normalized['name']}"
    if ratio is not None:
        score = f"{ratio:.2f} of the controller's return"
    first, last = evaluation["seeds"]
    return f"""# {config["recipe"]} in {evaluation["env"]}: {score}

```bash
trajgen evaluate run=zoo/{folder.name}
```

| score | value | 95 % interval over episodes |
| --- | ---: | ---: |
{table}

- **Measured** on episodes {first} to {last}, one training seed, {evaluation["date"]}, {evaluation["hardware"]["cpu"]}.
- **Trained** by `{config["command"]}`, {minutes:.0f} minutes on one core.
- **Data**: {data} ({about["episodes"]:,} episodes, {about["steps"]:,} steps).
- **Files**: weights as safetensors ({size:.1f} MB, large matrices in 8 bits), the rest as JSON.
- **Limits**: it plans in this environment alone, and was trained with one seed.
- **License**: MIT, as trajgen.
"""


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), *sys.argv[2:]))
