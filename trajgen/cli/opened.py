"""A run folder named on a command line, opened for its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trajgen.cli.acting import run_arguments

if TYPE_CHECKING:
    from trajgen.viz.run import Run


def open_run(values: dict[str, Any]) -> Run:
    """Takes run, device and imports out of the values, and opens the run; nothing of it is executed or loaded yet.

    Args:
        values: of the command line; what is left of them when the run's policy is loaded replaces its options.

    Raises:
        ConfigError: if no run folder is named.
        CheckpointError: if the folder is not that of a run.
    """
    from trajgen import experiments
    from trajgen.config import Config, merged
    from trajgen.experiments.run_folder import load_config
    from trajgen.viz.run import Run

    folder, device, imports = run_arguments(values)
    experiments.prepare_imports(imports)
    config, _ = load_config(folder)
    config = Config.from_plain(merged(config.to_plain(), values))

    def load(more: Any) -> Any:
        overrides = merged(values, more)
        return experiments.load_policy(folder, device=device, imports=imports, overrides=overrides or None)

    return Run(folder, config, load)
