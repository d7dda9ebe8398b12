"""The catalogue's tables, made from the data presets."""

from __future__ import annotations

from trajgen.cli.data import catalogue
from trajgen.data.catalogue import Task, facts
from trajgen.viz.tables import Table

ENVS = "environments"


def table(which: str = "") -> str:
    """All tasks in a line each; or, for ``environments``, what is paid, what ends, and what differs, by environment."""
    tasks = list(catalogue().values())
    return _envs(tasks) if which == ENVS else _tasks(tasks)


def _tasks(tasks: list[Task]) -> str:
    heads = ("`data=`", "Minari id", "steps", "T × stride", "discount, power", "success", "0 and 100")
    rows = []
    for task in tasks:
        data = task.options
        bounds = "; ".join(f"{low:g}, {high:g}" for low, high in data.bounds.values()) or "by the environment"
        steps = str(data.max_episode_steps or "by the set")
        windows, returns = f"{data.horizon} × {data.stride}", f"{data.discount:g}, {data.return_power:g}"
        rows.append((f"`{task.name}`", f"`{data.id}`", steps, windows, returns, task.success, bounds))
    return Table(heads, rows, numeric=False).markdown()


def _envs(tasks: list[Task]) -> str:
    heads = ("tasks", "environment", "reward", "an episode ends", "what differs from published protocols")
    alike: dict[tuple[str, ...], list[str]] = {}
    for task in tasks:
        shown = facts(task)
        key = (task.eval_env, shown["reward"], shown["ends"], shown["differs"])
        alike.setdefault(key, []).append(f"`{task.name}`")
    return Table(heads, [(", ".join(names), *key) for key, names in alike.items()], numeric=False).markdown()
