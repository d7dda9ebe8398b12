"""The catalogue of tasks: what a data preset states of its data, its environment and its score."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trajgen.core.options import structure
from trajgen.data.options import DataOptions, SuccessRule


@dataclass(frozen=True, kw_only=True)
class About:
    """Notes for the reader of a preset, under ``about``; none of them is an option.

    Args:
        reward: of a step.
        ends: when an episode of the evaluation ends.
        bounds: source of the bounds of the normalized score.
        return_target: the return-to-go that acting is conditioned on.
        differs: from the protocol of published scores.
        eval_env: the evaluation environment, where ``data.env_id`` does not name it.
        get: how to get the data, where no single command fetches or makes them.
        mage: overrides that recipe ``mage`` needs there, as in the results of the docs.
    """

    reward: str = ""
    ends: str = ""
    bounds: str = ""
    return_target: str = ""
    differs: str = ""
    eval_env: str = ""
    get: str = ""
    mage: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task of the catalogue: a data preset by its name, as ``adroit/door-human``."""

    name: str
    what: str
    options: DataOptions
    about: About

    @property
    def get(self) -> str:
        """The command that brings its data, or what else to do."""
        make = f"trajgen data make {self.options.maker}" if self.options.maker else ""
        return self.about.get or make or f"trajgen data get {self.options.id}"

    @property
    def train(self) -> str:
        """The command that trains MAGE on it."""
        return shlex.join(["trajgen", "train", "recipe=mage", f"data={self.name}", *self.about.mage])

    @property
    def eval_env(self) -> str:
        """The evaluation environment in words."""
        return self.options.env_id or self.about.eval_env or "the environment that the data set names"

    @property
    def success(self) -> str:
        """When an episode has succeeded, in words."""
        if self.options.success != SuccessRule():
            return self.options.success.words
        radius = self.options.goal_radius
        return "none is reported" if radius is None else f"within {radius:g} of the goal at any step"

    def stand_ins(self, ids: Iterable[str]) -> list[str]:
        """Those sets among ``ids`` that are of this task by their name, in another namespace.

        ``data=adroit/door-human data.id=lab/adroit/door-human-v0`` trains on such a set by this task's protocol.
        """
        return [id for id in ids if id != self.options.id and _is_named(id, self.name)]


def read_task(name: str, what: str, preset: Mapping[str, Any]) -> Task:
    """The task of a preset, with its name, a line that describes it, and its plain values.

    Raises:
        ConfigError: for an option that does not fit.
    """
    options = structure(DataOptions, preset.get("data") or {}, "data")
    return Task(name, what, options, structure(About, preset.get("about") or {}, "about"))


def facts(task: Task) -> dict[str, str]:
    """All that the catalogue states of a task, by heading, in reading order."""
    data = task.options
    bounds = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in data.bounds.items())
    goals = "" if data.goals == "none" else f"; goals: {data.goals}"
    goals += f", {len(data.resets)} fixed for the evaluation" if data.resets else ""
    table = {
        "what": task.what,
        "Minari id": data.id,
        "get": task.get,
        "train": task.train,
        "environment": task.eval_env + (f", at most {data.max_episode_steps} steps" if data.max_episode_steps else ""),
        "windows": f"{data.horizon} points, {data.stride} steps apart; actions of {data.chunk} steps{goals}",
        "returns": f"discount {data.discount:g}, power {data.return_power:g}",
        "return_target": task.about.return_target,
        "reward": task.about.reward,
        "ends": task.about.ends,
        "success": task.success,
        "bounds": "; ".join(filter(None, (bounds, task.about.bounds))),
        "differs": task.about.differs,
    }
    return {key: value for key, value in table.items() if value}


def _is_named(id: str, task: str) -> bool:
    """Whether a set's id ends in a task's folder and name; a word may stand before the name."""
    folder, _, name = task.rpartition("/")
    namespace, _, last = id.rpartition("/")
    stem = last.rpartition("-v")[0]
    return namespace.split("/")[-1] == folder and (stem == name or stem.endswith(f"-{name}"))
