"""``trajgen export``: a trained policy as files that run without trajgen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trajgen.cli.app import Words, command
from trajgen.cli.evaluate import ACTING, RunOptions, read_run
from trajgen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """Options of ``trajgen export``."""

    format: Literal["onnx", "torch_export"] = "onnx"
    """onnx for ONNX Runtime (pip install 'trajgen[onnx]'), torch_export for torch."""
    batch: int = 1
    """Episodes that are played in parallel."""
    out: Path | None = None
    """New folder; by default exported/FORMAT in the run folder."""

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise ConfigError("An exported policy runs on the CPU.", got=f"device={self.device}", fix="device=cpu")


@command("export", ExportOptions, "export run=runs/mage-umaze-dwell-s0 format=onnx", groups=ACTING)
def export(words: Words) -> None:
    """Write a policy that runs without trajgen.

    The folder holds the programs plan and act, policy.json, and policy.py: a class Policy with reset, act and observe,
    which needs numpy and onnxruntime (or torch) alone. The same noise gives the same actions as trajgen.load_policy.
    """
    options, overrides = read_run(words, ExportOptions)
    from trajgen import experiments
    from trajgen.config import merged
    from trajgen.core.files import require_writable
    from trajgen.core.terminal import Terminal
    from trajgen.export.package import export as write

    out = options.out or options.run / "exported" / options.format
    require_writable(out, "out=ANOTHER, or mend the permissions")
    overrides = merged(overrides, {"policy": {"backend": "eager"}})  # another one may not be on this machine
    policy = experiments.load_policy(options.run, device="cpu", imports=options.imports, overrides=overrides)
    console = Terminal()
    with console.status("exporting"):
        write(policy, out, format=options.format, batch=options.batch)
    for path in sorted(out.iterdir()):
        console.print(f"{path}  {-(-path.stat().st_size // 1000):,} kB", highlight=False)
