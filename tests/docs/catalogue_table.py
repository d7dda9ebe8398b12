"""The table of the catalogue, made from the data presets."""

from __future__ import annotations

from trajgen.cli.data import catalogue
from trajgen.viz.tables import Table

HEADS = ("`data=`", "environment", "success", "0 and 100")


def table(_: str = "") -> str:
    """All tasks; those that differ in their data alone are in one row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for task in catalogue().values():
        data = task.options
        bounds = "; ".join(f"{low:g}, {high:g}" for low, high in data.bounds.values()) or "reference"
        success = (
            task.success.removesuffix(" at any step").removesuffix(" of the goal").removeprefix("the environment's ")
        )
        env = task.eval_env.partition(" with ")[0].partition(",")[0]
        row = (env, success, bounds)
        alike.setdefault(row, []).append(f"`{task.name}`")
    return Table(HEADS, [(", ".join(names), *row) for row, names in alike.items()], numeric=False).markdown()
