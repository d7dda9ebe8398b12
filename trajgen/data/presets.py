"""Presets for sets that were written here: which entries of the observations are read, and windows that fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trajgen.data.options import DataOptions
from trajgen.data.spaces import is_image, leaves_of

MAGE_LATENT = 8
"""Length of MAGE's latent, the shortest horizon that its recipe works with as it is."""
GOAL, ACHIEVED = "desired_goal", "achieved_goal"
"""Entries of the goal and of what is compared with it, as environments with goals call them."""


def preset_text(id: str, longest: int, entries: Mapping[str, Any]) -> str:
    """The text of a preset, whose windows fit into the longest episode.

    Args:
        id: of the data set.
        longest: the steps of its longest episode.
        entries: options of the data that say what is read.
    """
    options: dict[str, Any] = {"id": id}
    horizon = DataOptions.horizon
    if (horizon - 1) * DataOptions(id=id).strides[0] > longest:
        horizon = next(h for h in (horizon, 16, 8, 4, 2) if h - 1 <= longest)
        options |= {"horizon": horizon} if horizon != DataOptions.horizon else {}
        options["stride"] = longest // (horizon - 1)
    text = "data:\n" + "".join(f"  {name}: {_yaml(value)}\n" for name, value in (options | {**entries}).items())
    if horizon < MAGE_LATENT:  # its scales 1 < … < N would not fit into the window
        words = f"tokenizer.latent_length={horizon}, schedule.scales={min(horizon, 3)}"
        text += f"recipes:\n  mage: [{words}]\n"
    return text


def entries_of(observations: Any) -> dict[str, Any]:
    """The options that read all vectors and images of a space of observations, and its goals, if it has some."""
    if not hasattr(observations, "spaces"):
        return {}
    leaves = leaves_of(observations)
    images = [name for name, leaf in leaves.items() if is_image(leaf)]
    has_goals = {GOAL, ACHIEVED} <= set(leaves)
    vectors = [name for name in leaves if name not in images and not (has_goals and name in (GOAL, ACHIEVED))]
    options: dict[str, Any] = {"state_key": vectors[0] if len(vectors) == 1 else vectors}
    options |= {"image_key": images[0] if len(images) == 1 else images} if images else {}
    if has_goals:
        options |= {"goal_key": GOAL, "achieved_key": ACHIEVED, "goals": "hindsight"}
    return options


def _yaml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
