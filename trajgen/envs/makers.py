"""Makers: data sets that can be created on this machine, from nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trajgen.core.errors import ConfigError, nearest
from trajgen.data import store
from trajgen.envs.pointmaze import DWELL, EPISODE_STEPS, MAZES, NOISE, PUSH, maze_spec, own_maze, record


@dataclass(frozen=True)
class Maker:
    """A data set that can be made: its maze, how long each goal stays (in steps), and a line of description."""

    name: str
    maze: str
    stay: tuple[int, int]
    description: str

    @property
    def id(self) -> str:
        """Minari id of the data set."""
        return f"trajgen/{self.name}-v0"


OWN_MAP = "pointmaze"
"""The maker of mazes of one's own."""
ON_ARRIVAL = "a new goal is drawn on arrival, as in D4RL's maze2d"
AFTER_DWELL = f"each goal is held for {DWELL[0]} to {DWELL[1]} steps"
MAKERS = {
    name: Maker(name, maze, stay, f"{maze} maze, noisy waypoint controller; {goals}")
    for maze in MAZES
    for name, stay, goals in (
        (f"pointmaze/{maze}", (0, 0), ON_ARRIVAL),
        (f"pointmaze/{maze}-dwell", DWELL, AFTER_DWELL),
    )
}


def make(
    name: str,
    steps: int | None = None,
    seed: int = 0,
    force: bool = False,
    quiet: bool = False,
    map: Sequence[Sequence[int]] | None = None,
    id: str = "",
) -> str:
    """Creates a data set on this machine and returns its Minari id.

    Args:
        name: a key of `MAKERS`.
        steps: environment steps; by default 300k (umaze), 500k (medium) or 1M (large).
        seed: the same seed gives the same data.
        force: replace a set of the same id.
        quiet: no progress bar.
        map: of ``pointmaze``, a maze of one's own, whose goals are held for a while; see `own_maze`.
        id: of the data set in it.

    Raises:
        ConfigError: if there is no such maker, or ``steps`` is not positive.
        DataError: if the set exists and ``force`` is not set.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if (name == OWN_MAP) != (map is not None):
        raise ConfigError(
            f"'{OWN_MAP}' is made of a map, and of nothing else is one.",
            got=name + ("" if map is None else " with a map"),
            fix=f"trajgen data make {OWN_MAP} 'map=[[1,1,1,1],[1,0,0,1],[1,1,1,1]]'",
        )
    if name not in MAKERS and map is None:
        raise ConfigError(
            f"There is no maker {name!r}.", expected=nearest(name, MAKERS), fix="trajgen data make --help lists them"
        )
    maker = Maker(name, OWN_MAP, DWELL, f"own maze, noisy waypoint controller; {AFTER_DWELL}") if map else MAKERS[name]
    maze = own_maze(map) if map else MAZES[maker.maze]
    id = id if map else maker.id
    total = maze.default_steps if steps is None else steps
    if total < 1:
        raise ConfigError(f"A data set has at least one step, and steps={total}.", fix="steps=100000")
    if not force:
        store.refuse_existing(id)

    import gymnasium

    from trajgen.data import minari

    spec = maze_spec(maze, EPISODE_STEPS)
    with gymnasium.make(spec) as env:
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task(f"making {id}", total=total)

        def episodes() -> Iterator[dict[str, Any]]:
            for episode in record(maze, maker.stay, total, seed):
                progress.advance(task, len(episode["rewards"]))
                yield episode

        minari.save(
            id,
            episodes(),
            env_spec=spec,
            eval_env_spec=maze_spec(maze, maze.max_steps),
            description=f"{maker.description}; action noise N(0, {NOISE}), "
            f"random pushes of {PUSH[0]} to {PUSH[1]} steps, seed {seed}",
            algorithm="waypoint controller (breadth-first search and PD)",
            force=force,
            **spaces,
        )
    return id
