"""Environments that differ from their own: heavier bodies, other friction, weaker motors, a blocked corridor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from trajgen.core.errors import ConfigError
from trajgen.data.options import PHYSICS, EnvShift
from trajgen.envs.waypoints import WALL, Grid

SHIFTED = "ShiftedEnv"
"""The class of the wrapper in `trajgen.envs.physics`."""
FREE = 0
"""A cell of a map that is neither wall nor a start or goal of its own."""


def shifted(env_spec: Any, shift: EnvShift) -> Any:
    """The Gymnasium spec of an environment with a shift on top of its own.

    Raises:
        ConfigError: if a cell to be blocked is not free, or divides the maze.
    """
    from gymnasium.envs.registration import WrapperSpec

    env_spec = copy.deepcopy(env_spec)
    if shift.blocked:
        env_spec.kwargs["maze_map"] = blocked_map(env_spec.kwargs.get("maze_map"), shift.blocked)
    if shift.factors:
        wrapper = WrapperSpec(SHIFTED, f"trajgen.envs.physics:{SHIFTED}", shift.factors)
        env_spec.additional_wrappers = (*env_spec.additional_wrappers, wrapper)
    return env_spec


def blocked_map(maze_map: Sequence[Sequence[Any]] | None, blocked: Sequence[tuple[int, int]]) -> list[list[Any]]:
    """A map of a maze with some of its free cells (row, column) blocked.

    Raises:
        ConfigError: if there is no map, a cell is not free, or what is left is not connected.
    """
    cells = [list(row) for row in maze_map or ()]
    for row, column in blocked:
        if not (0 <= row < len(cells) and 0 <= column < len(cells[row]) and cells[row][column] == FREE):
            free = [[i, j] for i, line in enumerate(cells) for j, cell in enumerate(line) if cell == FREE]
            raise ConfigError(
                "A cell that is blocked is a free one of a maze, [row, column].",
                expected=f"some of {free}" if free else "an environment with a maze_map",
                got=f"[{row}, {column}]",
            )
        cells[row][column] = WALL
    if not Grid(cells).is_connected():
        raise ConfigError(
            "A maze stays connected when cells are blocked.",
            got=f"blocked={[list(cell) for cell in blocked]}, which divides it",
            fix="another cell",
        )
    return cells


def shift_of(env_spec: Any) -> EnvShift:
    """The shift of a spec's physics; blocked cells are in its map."""
    factors: dict[str, Any] = dict.fromkeys(PHYSICS, 1.0)
    for wrapper in (each for each in env_spec.additional_wrappers if each.name == SHIFTED):
        factors |= {name: factors[name] * factor for name, factor in (wrapper.kwargs or {}).items()}
    return EnvShift(**factors)


def shift_words(env_spec: Any, blocked: Sequence[tuple[int, int]] = ()) -> str:
    """The physics of a spec, and cells that are blocked, in words, as " (gear × 0.3)"; empty where there are none."""
    shifts = [each.kwargs for each in env_spec.additional_wrappers if each.name == SHIFTED]
    words = [f"{name} × {factor:g}" for kwargs in shifts for name, factor in (kwargs or {}).items()]
    words += [f"cell {list(cell)} blocked" for cell in blocked]
    return f" ({', '.join(words)})" if words else ""
