"""What every format is turned into: sources of recorded episodes, with what is missing in them made up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import Array, Episode
from trajgen.data.importing.options import ImportOptions

TERMINALS, TIMEOUTS = ("terminals", "terminations", "terminated"), ("timeouts", "truncations", "truncated")
"""Names under which tables say that the task ended with a step, or that the recording did."""


@dataclass(frozen=True)
class Recorded:
    """An episode of n steps as its source holds it; observations have n or n+1 rows.

    ``final`` is the observation after the last step, where the source keeps it elsewhere. ``names`` are what the
    source calls the fields, for messages.
    """

    states: Array  # (n, S) or (n+1, S)
    actions: Array  # (n, A)
    rewards: Array | None = None  # (n,)
    terminated: bool = False
    final: Array | None = None  # (S,)
    goals: Array | None = None  # (n, G) or (n+1, G)
    achieved: Array | None = None  # (n, G) or (n+1, G)
    names: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Episodes that can be read one by one, and again."""

    about: str
    """What is known of the data beside the numbers, for the description of the set."""

    def __len__(self) -> int: ...

    def label(self, number: int) -> str:
        """Where episode ``number`` is found in the source."""
        ...

    def read(self, number: int) -> Recorded: ...


def complete(raw: Recorded, options: ImportOptions, place: str, mend: str) -> Episode:
    """An episode with a final observation, rewards and an end, as the options say.

    Raises:
        DataError: naming place and field, if the numbers of rows do not fit, or rewards are missing.
    """
    names, actions, rewards = raw.names, raw.actions, raw.rewards
    actions = actions[:, None] if actions.ndim == 1 else actions
    rewards = rewards[:, 0] if rewards is not None and rewards.shape[1:] == (1,) else rewards
    steps = len(actions)
    if options.rewards == "data" and rewards is None:
        raise DataError(
            "Training needs rewards.",
            expected=f"an entry {names.get('rewards', 'rewards')!r}",
            got=f"{place}: none",
            fix="reward=ENTRY; or rewards=last for demonstrations that succeed; or rewards=zero for goals in hindsight",
        )
    if rewards is not None and len(np.atleast_1d(rewards)) != steps:
        raise DataError(
            "Each step has an action and a reward.",
            expected=f"{steps} rewards for {steps} actions",
            got=f"{place}, field {names.get('rewards', 'rewards')!r}: shape {np.shape(rewards)}; "
            f"{names.get('actions', 'actions')!r}: shape {np.shape(raw.actions)}",
            fix=mend,
        )
    terminated = {"data": raw.terminated, "terminal": True, "timeout": False}[options.ends]
    parts: dict[str, Any] = {"states": raw.states, "goals": raw.goals, "achieved": raw.achieved}
    if isinstance(options.achieved, tuple):
        parts["achieved"] = _taken(raw.states, options.achieved, place)
    for name, values in parts.items():
        if values is not None and (np.ndim(values) != 2 or len(values) not in (steps, steps + 1)):
            raise DataError(
                "An episode of n steps has n observations, or n+1 with the final one.",
                expected=f"shape ({steps} or {steps + 1}, ·) for {steps} actions",
                got=f"{place}, field {names.get(name, name)!r}: shape {np.shape(values)}",
                fix=mend,
            )
    if parts["goals"] is not None and len(parts["goals"]) == steps:
        parts["goals"] = _longer(parts["goals"])  # a goal holds on
    if len(parts["states"]) == steps and raw.final is not None:
        parts["states"] = _longer(parts["states"], raw.final)
        if isinstance(options.achieved, tuple):
            parts["achieved"] = _taken(parts["states"], options.achieved, place)
    short = {name for name, values in parts.items() if values is not None and len(values) == steps}
    if short and (options.final == "repeat" or (options.final == "auto" and terminated)):
        parts |= {name: _longer(parts[name]) for name in short}
    elif short:
        steps -= 1
        parts = {name: None if values is None else values[: steps + 1] for name, values in parts.items()}
        actions, rewards = actions[:-1], None if rewards is None else rewards[:-1]
        terminated = options.ends == "terminal"  # the step that ended the task is not among them
    if parts["goals"] is None and parts["achieved"] is not None:
        parts["goals"] = np.repeat(parts["achieved"][-1:], steps + 1, axis=0)
    if options.rewards != "data" or rewards is None:
        rewards = np.zeros(steps)
        rewards[-1:] = options.rewards == "last"
    return Episode(actions=actions, rewards=rewards, terminated=terminated, **parts)


def from_mapping(arrays: Mapping[str, Any], options: ImportOptions, place: str) -> Recorded:
    """An episode from named arrays: observations, actions, rewards, terminals or terminations, next_observations."""
    names = options.state_names or ("observations",)
    wanted = {"actions": options.action or "actions", "rewards": options.reward or "rewards"}
    states = joined([_of(arrays, name, place) for name in names], names, place)
    actions = np.asarray(_of(arrays, wanted["actions"], place))
    ended = False
    for name in TERMINALS:
        if name in arrays:
            marks = flags(np.atleast_1d(arrays[name]), f"{place}, field {name!r}")
            if len(marks) not in (1, len(actions)) or marks[:-1].any():
                raise DataError(
                    "An episode ends once.",
                    expected=f"a mark for each of {len(actions)} steps, set at the last one only; or one mark",
                    got=f"{place}, field {name!r}: {len(marks)} marks, set at {np.flatnonzero(marks)[:5].tolist()}",
                    fix="a table of many episodes is imported as one file",
                )
            ended |= bool(marks[-1])
    after = arrays.get("next_observations") if names == ("observations",) else None
    if after is not None and len(after) != len(actions):
        raise DataError(
            "Each step leads to an observation.",
            expected=f"{len(actions)} rows, as of {wanted['actions']!r}",
            got=f"{place}, field 'next_observations': shape {np.shape(after)}",
            fix="mend the source",
        )
    return Recorded(
        states=states,
        actions=actions,
        rewards=np.asarray(arrays[wanted["rewards"]]) if wanted["rewards"] in arrays else None,
        terminated=ended,
        final=None if after is None else np.asarray(after)[-1],
        goals=None if options.goal is None else np.asarray(_of(arrays, options.goal, place)),
        achieved=np.asarray(_of(arrays, options.achieved, place)) if isinstance(options.achieved, str) else None,
        names={"states": "+".join(names), **wanted, **goal_names(options)},
    )


def goal_names(options: ImportOptions) -> dict[str, str]:
    """What the source calls goals and what is measured against them."""
    named = {"goals": options.goal, "achieved": options.achieved}
    return {field: name for field, name in named.items() if isinstance(name, str)}


def joined(parts: Sequence[Any], names: Sequence[str], place: str) -> Array:
    """Arrays (n, ·) side by side; those of one number a step (n,) too.

    Raises:
        DataError: if one is no array of vectors, or their lengths differ.
    """
    columns = [np.asarray(part)[:, None] if np.ndim(part) == 1 else np.asarray(part) for part in parts]
    for name, part in zip(names, columns, strict=True):
        if part.ndim != 2 or len(part) != len(columns[0]):
            raise DataError(
                "The entries of a state are vectors, one for each step.",
                expected=f"shape ({len(columns[0])}, ·), as that of {names[0]!r}" if part.ndim == 2 else "shape (n, ·)",
                got=f"{place}, field {name!r}: shape {part.shape}",
                fix="name other entries: state=[…]",
            )
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def flags(values: Array, where: str) -> Array:
    """Marks (n,) as booleans.

    Raises:
        DataError: if one is neither 0 nor 1.
    """
    values = np.asarray(values).reshape(len(values), -1)
    wrong = np.flatnonzero(((values != 0) & (values != 1)).any(1)) if values.shape[1] == 1 else np.array([0])
    if len(wrong):
        raise DataError(
            "Ends are marked by 0 and 1, one mark for each row.",
            expected="0 or 1",
            got=f"{where}, row {int(wrong[0])}: {values[wrong[0]]}",
            fix="mend the source",
        )
    return values[:, 0].astype(bool)


def absent(name: str, known: Sequence[str], place: str) -> DataError:
    """The error for an entry that is not in the source."""
    from trajgen.core.errors import nearest

    return DataError(
        "The entries that are asked for must be in the source.",
        expected=f"{name!r} among {', '.join(sorted(known)[:30])}",
        got=f"{place}: no {name!r}",
        fix=f"state=…, action=…, reward=… or goal=… take other names; {nearest(name, known)}",
    )


def _of(arrays: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in arrays:
        raise absent(name, list(arrays), place)
    return arrays[name]


def _longer(values: Array, last: Array | None = None) -> Array:
    return np.concatenate([values, values[-1:] if last is None else np.asarray(last)[None]])


def _taken(states: Array, places: tuple[int, ...], place: str) -> Array:
    width = np.shape(states)[-1] if np.ndim(states) else 0
    if any(not 0 <= each < width for each in places):
        raise DataError(
            "What is measured against the goal is a part of the state.",
            expected=f"places from 0 to {width - 1}",
            got=f"{place}: achieved={list(places)}",
            fix="achieved=[0,1], say",
        )
    return states[..., list(places)]
