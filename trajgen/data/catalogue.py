"""The catalogue of tasks: what a data preset states of its data, its environment and its score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trajgen.core.options import convert, structure
from trajgen.data.options import DataOptions


@dataclass(frozen=True, kw_only=True)
class About:
    """What a preset tells its reader, under ``about``; nothing of it is an option.

    Args:
        reward: of a step.
        ends: when an episode of the evaluation ends.
        bounds: where the bounds of the normalized score come from.
        return_target: the target return-to-go when acting.
        differs: from the protocol of published scores.
        eval_env: the evaluation environment, where ``data.env_id`` does not name it.
        get: how the data are had, where no single command fetches or makes them.
    """

    reward: str = ""
    ends: str = ""
    bounds: str = ""
    return_target: str = ""
    differs: str = ""
    eval_env: str = ""
    get: str = ""


@dataclass(frozen=True)
class Task:
    """A task of the catalogue: a data preset by its name, as ``adroit/door-human``."""

    name: str
    what: str
    options: DataOptions
    about: About
    recipes: dict[str, tuple[str, ...]]
    """Options that are composed with a recipe on this task."""

    @property
    def get(self) -> str:
        """The command that brings its data, or what else to do."""
        make_command = f"trajgen data make {self.options.maker}" if self.options.maker else ""
        return self.about.get or make_command or f"trajgen data get {self.options.id}"

    @property
    def train(self) -> str:
        """The command that trains MAGE on it."""
        return f"trajgen train recipe=mage data={self.name}"

    @property
    def eval_env(self) -> str:
        """The evaluation environment in words."""
        return self.options.env_id or self.about.eval_env or "the environment that the data set names"

    @property
    def success(self) -> str:
        """When an episode has succeeded, in words."""
        goal = self.options.goal_radius
        usual = self.options.success == type(self.options.success)()
        if usual:
            return "none is reported" if goal is None else f"within {goal:g} of the goal at any step"
        return self.options.success.words

    def stand_ins(self, ids: Iterable[str]) -> list[str]:
        """Those sets among ``ids`` that are of this task by their name, under another name space.

        ``data=adroit/door-human data.id=lab/adroit/door-human-v0`` trains on such a set by this task's protocol.
        """
        return [id for id in ids if id != self.options.id and _named(id, self.name)]


def read_task(name: str, what: str, preset: Mapping[str, Any]) -> Task:
    """The task of a preset's plain values, those that it inherits among them.

    Args:
        name: of the preset.
        what: it is, in a line.
        preset: its values; those beside ``data``, ``about`` and ``recipes`` are options of other sections.

    Raises:
        ConfigError: for an option that does not fit.
    """
    recipes = convert(preset.get("recipes") or {}, dict[str, tuple[str, ...]], "recipes")
    options = structure(DataOptions, preset.get("data") or {}, "data")
    return Task(name, what, options, structure(About, preset.get("about") or {}, "about"), recipes)


def facts(task: Task) -> dict[str, str]:
    """All that the catalogue says of a task, in the order in which it is read."""
    data, about = task.options, task.about
    bounds = [f"{name} {low:g} to {high:g}" for name, (low, high) in data.bounds.items()]
    goals = "" if data.goals == "none" else f"; goals: {data.goals}"
    if data.resets:
        goals += f", {len(data.resets)} fixed for the evaluation"
    strides = " or ".join(map(str, data.strides))
    limit = f", at most {data.max_episode_steps} steps" if data.max_episode_steps else ""
    lines = {
        "what": task.what,
        "Minari id": data.id,
        "get": task.get,
        "train": task.train,
        **{f"with {recipe}": " ".join(words) for recipe, words in task.recipes.items() if words},
        "environment": task.eval_env + limit,
        "windows": f"{data.horizon} points, {strides} steps apart; actions of {data.chunk} steps{goals}",
        "returns": f"discount {data.discount:g}, power {data.return_power:g}",
        "return_target": about.return_target,
        "reward": about.reward,
        "ends": about.ends,
        "success": task.success,
        "bounds": "; ".join(filter(None, (", ".join(bounds), about.bounds))),
        "differs": about.differs,
    }
    return {key: value for key, value in lines.items() if value}


def _named(id: str, task: str) -> bool:
    """Whether a set's id ends in a task's folder and name; a word may stand before the name."""
    folder, _, name = task.rpartition("/")
    space, _, last = id.rpartition("/")
    set_name = last.rpartition("-v")[0]
    return space.split("/")[-1] == folder and (set_name == name or set_name.endswith(f"-{name}"))
