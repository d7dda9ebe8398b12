"""Compositions in which components are checked: shipped recipes at small sizes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from trajgen.assemble import WindowShape
from trajgen.config import SECTIONS, merged, read_options, recipe_files
from trajgen.config.files import find_file, missing
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import structure, values_of
from trajgen.core.registry import KINDS, complete, spec
from trajgen.core.types import Space

SPACE = Space(state_dim=4, action_dim=2, goal_dim=2, agents=2, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
IMAGE_SHAPE = (16, 16, 3)
GOAL_STATE, GOAL_RADIUS = (0, 1), 0.5
WINDOW_OPTIONS = (
    *("horizon", "stride", "chunk", "discount", "return_power"),
    *("goals", "goal_state", "goal_radius", "terminate_at_goal", "relative_goals"),
)
"""Options of data that can be given to a check."""
HORIZON, STRIDE, CHUNK = 16, 3, 4
"""The largest windows that components are checked on."""

SMALL: dict[str, Any] = {
    "latent_length": 4, "code_dim": 6, "codebook_size": 12, "width": 16, "depth": 2, "heads": 2, "bottleneck": 8,
    "fourier_frequencies": 2, "k": 5, "n": 3, "scales": 3, "lengths": (1, 3, 4), "num_bins": 8,
    "timesteps": 10, "steps": 5, "expansions": 2, "backbone": "test_resnet",
}  # fmt: skip
"""Sizes of options of these names, in any component where they are larger."""

PREFERRED_RECIPES: dict[str, tuple[str, ...]] = {
    "encoder": ("bc", "mage"),
    "view": ("mage", "tap"),
    "schedule": ("mage", "flat_ar"),
    "tokenizer": ("mage", "flat_ar", "flat", "diffuser", "tt"),
    "prior": ("mage", "flat_ar", "dd", "dd sampler=euler"),
    "decoder": ("mage", "tap", "diffuser"),
    "action": ("mage", "carp", "diffuser"),
    "critic": ("mage sampler=best_of_n", "iql"),
    "sampler": ("mage", "tap", "dd", "dd prior=flow"),
    "planner": ("mage", "bc", "dt", "hierarchy"),
}
"""For each kind, the compositions that are tried before the other recipes: one of scales, one of tokens in a row, one
that denoises. The first that accepts the component is taken; for priors and samplers each has a condition, so that one
that is ignored or mixed up shows."""

MAX_REMOVALS = 3
"""How often the advice to leave out unused kinds is followed."""


@dataclass(frozen=True)
class Composition:
    """The parts of a recipe at small sizes."""

    recipe: str
    nodes: dict[str, dict[str, Any]]
    window: WindowShape
    changes: tuple[str, ...] = ()
    """What differs from the recipe, as words of a command line."""
    reduced: tuple[str, ...] = ()
    """Sizes that are smaller than the recipe's, so that checks are quick, as words of a command line."""

    def without(self, kinds: list[str]) -> Composition:
        """The same composition without some kinds."""
        nodes = {kind: node for kind, node in self.nodes.items() if kind not in kinds}
        return replace(self, nodes=nodes, changes=(*self.changes, *(f"'~{kind}'" for kind in kinds)))

    def __str__(self) -> str:
        return " ".join([f"recipe={self.recipe}", *self.changes])


def candidates(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The recipes to try, each with what is changed in it."""
    recipes = recipe_files()
    compositions = (words.split() for words in (*PREFERRED_RECIPES.get(kind, ("mage",)), *recipes))
    return [(recipe, values_of(changes)) for recipe, *changes in compositions if recipe in recipes]


def composition_of(recipe: str, kind: str, name: str, changes: Mapping[str, Any], shrunk: bool) -> Composition:
    """A recipe with a component in it.

    Args:
        recipe: its name, or a path to one.
        kind, name: of the component.
        changes: plain values that override the recipe's.
        shrunk: whether the sizes of the component are reduced too.

    Raises:
        ConfigError: for a recipe, name or option that does not exist, or an option out of range.
    """
    plain = _read_recipe(recipe)
    nodes = {k: complete(k, plain[k]) for k in KINDS if plain.get(k)}
    if kind != "planner" and "level" in spec("planner", nodes["planner"]["name"]).wiring:
        nodes["planner"] = spec("planner", "latent").defaults()  # one level of a hierarchy
    if nodes.get(kind, {}).get("name") != name:
        nodes[kind] = spec(kind, name).defaults()
    words = []
    window_changes = dict(changes.get("data", {}))
    for key, values in changes.items():
        if key == "data":
            words += [f"data.{option}={value}" for option, value in values.items()]
            continue
        if key not in KINDS or not isinstance(values, Mapping):
            raise ConfigError(
                f"Only components and the windows of data can be changed here, not '{key}'.",
                got=f"{key}={values}",
                fix="for example prior.width=8, schedule=unit, data.horizon=32, or recipe=flat_ar",
            )
        base = nodes if "name" not in values else {key: spec(key, values["name"]).defaults()}
        nodes[key] = merged(base, {key: values})[key]
        words += [f"{key}={v}" if option == "name" else f"{key}.{option}={v}" for option, v in values.items()]
    reduced = []
    for key, node in nodes.items():
        sizes = _small_sizes(node) if shrunk or key != kind else {}
        sizes = {option: size for option, size in sizes.items() if option not in changes.get(key, {})}
        reduced += [f"{key}.{option}={size}" for option, size in sizes.items() if size != node[option]]
        chosen = {option: value for option, value in changes.get(key, {}).items() if option != "name"}
        nodes[key] = complete(key, merged({**node, **sizes}, chosen))
    data = plain.get("data", {})
    largest = {"horizon": HORIZON, "stride": STRIDE, "chunk": CHUNK}
    shape = {option: min(data.get(option, size), size) for option, size in largest.items()}
    shape["chunk"] = min(shape["chunk"], shape["horizon"] * shape["stride"])
    reduced += [f"data.{o}={n}" for o, n in shape.items() if o not in window_changes and n != data.get(o, n)]
    return Composition(recipe, nodes, _window({**shape, **window_changes}), tuple(words), tuple(reduced))


def _window(options: dict[str, Any]) -> WindowShape:
    """The windows that options of data describe.

    Raises:
        ConfigError: for another option of data, or a value that does not fit.
    """
    for option in options:
        if option not in WINDOW_OPTIONS:
            raise ConfigError(
                f"data.{option} does not shape a window, on which components are checked.",
                expected=", ".join(f"data.{name}" for name in WINDOW_OPTIONS),
                got=f"data.{option}={options[option]}",
                fix=nearest(option, WINDOW_OPTIONS),
            )
    plain: dict[str, Any] = {"id": "", "goal_key": "goal", "achieved_key": "goal", "return_power": 1.0}
    if options.get("goals") != "none":
        plain |= {"goals": "dataset", "goal_state": GOAL_STATE, "goal_radius": GOAL_RADIUS}
    data = structure(SECTIONS["data"], {**plain, **options}, "data")
    absent = [i for i in data.goal_state if not 0 <= i < SPACE.state_dim]
    if absent:
        raise ConfigError(
            f"The states of a check have {SPACE.state_dim} features.",
            expected=f"indices from 0 to {SPACE.state_dim - 1}",
            got=f"data.goal_state={list(data.goal_state)}",
            fix=f"data.goal_state={list(GOAL_STATE)}",
        )
    shape = {option: getattr(data, option) for option in WINDOW_OPTIONS}
    return WindowShape(**{**shape, "goals": data.goals != "none"})


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = find_file("recipe", recipe)
    if path is None:
        raise missing("recipe", recipe)
    plain = deepcopy(read_options("recipe", path))
    if not plain.get("planner"):
        raise ConfigError(f"The recipe {recipe} names no planner.", fix="planner: {name: latent}, as recipes/mage.yaml")
    return plain


def _small_sizes(node: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a component's node that `SMALL` reduces."""
    sizes: dict[str, Any] = {}
    fixed = () if node.get("quantizer", "vq") == "vq" else ("code_dim", "codebook_size")  # refused by other quantizers
    for option, value in node.items():
        size = None if option in fixed else SMALL.get(option)
        if type(value) is int and type(size) is int:
            sizes[option] = min(value, size)
        elif (isinstance(value, (tuple, list)) and isinstance(size, tuple)) or (
            isinstance(value, str) and isinstance(size, str)
        ):
            sizes[option] = size
    return sizes
