"""Makers: data sets that can be created on this machine, from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError, unknown_name
from trajgen.data import store
from trajgen.data.options import EnvShift
from trajgen.envs import chain, pointmaze, teams
from trajgen.envs.maze_images import add_images, with_images
from trajgen.envs.pointmaze import DWELL, EPISODE_STEPS, MAZES, NOISE, PUSH, Maze, grid, maze_spec, own_maze


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A data set that can be made.

    Args:
        name: by which it is made, as ``pointmaze/umaze``.
        description, algorithm: of the data set; ``seed N`` is added.
        steps: environment steps, unless others are wanted.
        spec, eval_spec: make the Gymnasium specs of the recorded and of the evaluation environment.
        record: from steps and seed to the entries of Minari's EpisodeBuffer for each episode.
        shifted: the maker of the same data in a shifted environment, where there can be one.
    """

    name: str
    description: str
    algorithm: str
    steps: int
    spec: Callable[[], Any]
    eval_spec: Callable[[], Any]
    record: Callable[[int, int], Iterator[dict[str, Any]]]
    shifted: Callable[[EnvShift], Maker] | None = None

    @property
    def id(self) -> str:
        """Minari id of the data set."""
        return f"trajgen/{self.name}-v0"


OWN_MAP = "pointmaze"
"""The maker of mazes of one's own."""
OWN_ID = "own/pointmaze-v0"
"""The id of a set in such a maze, or in a shifted one."""


def _maze_maker(name: str, words: str, maze: Maze, stay: tuple[int, int]) -> Maker:
    goals = (
        f"each goal is held for {stay[0]} to {stay[1]} steps"
        if any(stay)
        else ("a new goal is drawn on arrival, as in D4RL's maze2d")
    )
    return Maker(
        name=name,
        description=f"{words}, noisy waypoint controller; {goals}; action noise N(0, {NOISE}), "
        f"random pushes of {PUSH[0]} to {PUSH[1]} steps{maze.shift.words}",
        algorithm="waypoint controller (breadth-first search and PD)",
        steps=maze.default_steps,
        spec=partial(maze_spec, maze, EPISODE_STEPS),
        eval_spec=partial(maze_spec, maze, maze.max_steps),
        record=partial(pointmaze.record, maze, stay),
        shifted=lambda shift: _maze_maker(name, words, replace(maze, shift=shift), stay),
    )


def _chain_maker(name: str, masses: int, optimal_share: float) -> Maker:
    return Maker(
        name=name,
        description=f"chain of {masses} masses; action noise N(0, {chain.NOISE}), which drives the chain alone in "
        f"{1 - optimal_share:.0%} of the episodes, and the optimum with it in the others",
        algorithm="linear-quadratic regulator",
        steps=chain.STEPS,
        spec=partial(chain.chain_spec, masses),
        eval_spec=partial(chain.chain_spec, masses),
        record=partial(chain.record, masses, optimal_share),
    )


def _team_maker(name: str, team: teams.Team) -> Maker:
    return Maker(
        name=f"agents/{name}",
        description=f"{team.words}; action noise N(0, {team.noise})",
        algorithm="scripted controller",
        steps=team.steps,
        spec=team.spec,
        eval_spec=team.spec,
        record=partial(teams.record, team),
    )


IMAGES = "pointmaze/{}-pixels"
"""The makers of mazes with images, and the steps that they record: an image has as many bytes as 1,700 numbers."""
IMAGE_STEPS = 100_000


def _image_maker(size: str) -> Maker:
    """The maker of the dwell data of a maze with an image of each step."""
    maze = replace(MAZES[size], default_steps=IMAGE_STEPS)
    maker = _maze_maker(IMAGES.format(size), f"{size} maze, drawn from above", maze, DWELL)

    def record(steps: int, seed: int) -> Iterator[dict[str, Any]]:
        import gymnasium

        env = gymnasium.make(maze_spec(maze, EPISODE_STEPS))
        cells = grid(env.unwrapped)
        env.close()
        return (add_images(cells, episode) for episode in maker.record(steps, seed))

    return replace(
        maker,
        spec=lambda: with_images(maker.spec()),
        eval_spec=lambda: with_images(maker.eval_spec()),
        record=record,
        shifted=None,
    )


SHIFTS = {
    "pointmaze/umaze-gear": ("umaze", EnvShift(gear=0.2)),
    "pointmaze/medium-blocked": ("medium", EnvShift(blocked=((3, 3),))),
}
"""Shifted mazes, in each of which a twentieth of the steps of the maze itself is recorded."""


def _shifted_maze(name: str) -> Maze:
    size, shift = SHIFTS[name]
    return replace(MAZES[size], shift=shift, default_steps=MAZES[size].default_steps // 20)


MAKERS = {
    maker.name: maker
    for maker in (
        *(
            _maze_maker(f"pointmaze/{name}{suffix}", f"{name} maze", maze, stay)
            for name, maze in MAZES.items()
            for suffix, stay in (("", (0, 0)), ("-dwell", DWELL))
        ),
        *(_image_maker(size) for size in ("umaze", "medium")),
        *(_maze_maker(name, f"{size} maze", _shifted_maze(name), DWELL) for name, (size, _) in SHIFTS.items()),
        *(
            _chain_maker(f"chain/masses-{masses}{suffix}", masses, optimal_share)
            for masses in chain.SIZES
            for suffix, optimal_share in (("", chain.OPTIMAL_SHARE), ("-expert", 1.0))
        ),
        *(_team_maker(name, team) for name, team in teams.TEAMS.items()),
    )
}


def make(
    name: str,
    steps: int | None = None,
    seed: int = 0,
    force: bool = False,
    quiet: bool = False,
    map: Sequence[Sequence[int]] | None = None,
    shift: EnvShift | None = None,
    id: str | None = None,
) -> str:
    """Creates a data set on this machine and returns its Minari id.

    Args:
        name: a key of `MAKERS`.
        steps: environment steps; by default those of the maker.
        seed: the same seed gives the same data.
        force: replace a set of the same id.
        quiet: no progress bar.
        map: of ``pointmaze``, a maze of one's own, whose goals are held for a while; see `own_maze`.
        shift: of the environment, which makes it a data set of one's own.
        id: of the data set; by default the maker's, with a map or a shift `OWN_ID`.

    Raises:
        ConfigError: if there is no such maker, or ``steps`` is not positive.
        DataError: if the set exists and ``force`` is not set.
    """
    from trajgen.core.terminal import Terminal, progress

    if (name == OWN_MAP) != (map is not None):
        raise ConfigError(
            f"'{OWN_MAP}' is made of a map, and of nothing else is one.",
            got=name + ("" if map is None else " with a map"),
            fix=f"trajgen data make {OWN_MAP} 'map=[[1,1,1,1],[1,0,0,1],[1,1,1,1]]'",
        )
    if name not in MAKERS and map is None:
        raise unknown_name(f"There is no maker {name!r}.", name, [OWN_MAP, *MAKERS])
    maker = MAKERS[name] if map is None else _maze_maker(OWN_MAP, "own maze", own_maze(map), DWELL)
    if shift is not None:
        if maker.shifted is None:
            raise ConfigError(f"{name} is not made in a shifted environment.", fix="leave shift out, or a point maze")
        maker = maker.shifted(shift)
    id = id or (maker.id if map is None and shift is None else OWN_ID)
    check_range("seed", seed, 0, 2**63 - 1, usual=0)
    total = maker.steps if steps is None else steps
    if total < 1:
        raise ConfigError(f"A data set has at least one step, and steps={total}.", fix="steps=100000")
    if not force:
        store.refuse_existing(id)

    import gymnasium

    from trajgen.data import minari

    spec = maker.spec()
    with gymnasium.make(spec) as env:
        spaces: dict[str, Any] = {"observation_space": env.observation_space, "action_space": env.action_space}
        team = getattr(env.unwrapped, "team", None)
    with progress(Terminal(quiet=quiet), id.rpartition("/")[2], total) as show:

        def episodes() -> Iterator[dict[str, Any]]:
            done = 0
            for number, episode in enumerate(maker.record(total, seed), start=1):
                done += len(episode["rewards"])
                show(min(done, total), [f"episode {number}"])
                yield episode

        minari.save(
            id,
            episodes(),
            env_spec=spec,
            eval_env_spec=maker.eval_spec(),
            description=f"{maker.description}, seed {seed}",
            algorithm=maker.algorithm,
            team=team,
            force=force,
            **spaces,
        )
    return id
