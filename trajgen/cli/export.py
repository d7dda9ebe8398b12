"""``trajgen export``: a trained policy as files that run without trajgen."""

from __future__ import annotations

from pathlib import Path

from trajgen.cli.acting import run_arguments
from trajgen.cli.words import key_values
from trajgen.core.errors import ConfigError

HELP = """trajgen export run=DIR [format=onnx] [key=value …]

  format=onnx              for ONNX Runtime (pip install 'trajgen[onnx]'); format=torch_export for torch
  batch=1                  episodes that are played in step
  out=DIR                  a new folder; exported/FORMAT in the run folder if not given
  sampler=greedy           as for 'trajgen evaluate': what is followed is part of the export
  imports=[my_lab.parts]

The folder holds plan and act (the programs), policy.json, and policy.py: class Policy with reset, act and
observe, which needs numpy and onnxruntime (or torch) alone. The same noise gives the same actions as
trajgen.load_policy."""


def export(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(HELP)
        return
    from rich.console import Console

    from trajgen import experiments
    from trajgen.export.package import export as write

    values = key_values(words)
    folder, _, imports = run_arguments(values)
    form = str(values.pop("format", "onnx"))
    batch = values.pop("batch", 1)
    out = Path(str(values.pop("out", folder / "exported" / form)))
    if not isinstance(batch, int):
        raise ConfigError("A batch is a whole number.", expected="batch=1", got=f"batch={batch}", fix="batch=1")
    policy = experiments.load_policy(folder, device="cpu", imports=imports, overrides=values)
    console = Console()
    with console.status("exporting"):
        write(policy, out, format=form, batch=batch)
    for path in sorted(out.iterdir()):
        console.print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", highlight=False)
