"""robomimic's HDF5 files: a group ``data/demo_N`` for each demonstration, with ``obs``, ``next_obs``, ``actions``,
``rewards`` and ``dones``.

Observations are entries of their own, chosen and joined by ``state=[…]``; without it, all vectors among them are, in
alphabetical order. Source: robomimic's documentation, "Datasets: overview".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import NUMBERS
from trajgen.data.hdf5 import numbers
from trajgen.data.importing.options import ImportOptions
from trajgen.data.importing.source import Recorded, absent, goal_names, joined


class Demonstrations:
    """The demonstrations of a robomimic file.

    Args:
        path: its path, for messages.
        file: the same, opened by h5py and checked.
        options: which observations are the state.
    """

    about = ""

    def __init__(self, path: Path, file: Any, options: ImportOptions) -> None:
        self._place, self._data, self._options = path.name, file["data"], options
        self._names = sorted(self._data, key=lambda name: (len(name), name))  # demo_2 before demo_10
        self._entries = options.state_names or self._vectors()
        self.about = f"state: {', '.join(self._entries)}"

    def __len__(self) -> int:
        return len(self._names)

    def label(self, number: int) -> str:
        return self._names[number]

    def read(self, number: int) -> Recorded:
        demo, options, place = self._data[self._names[number]], self._options, self._names[number]

        def part(name: str) -> Any:
            if name not in demo:
                raise absent(name, [*demo, *(f"obs/{each}" for each in demo.get("obs", ()))], place)
            return numbers(demo.id, name)

        def observed(group: str) -> Any:
            found = [part(f"{group}/{name}") for name in self._entries]
            return joined(found, [f"{group}/{name}" for name in self._entries], place)

        if "obs" not in demo:
            raise DataError(
                "A demonstration must hold observations.",
                expected="a group 'obs'",
                got=f"{place}: {', '.join(demo)}",
                fix="robomimic's script dataset_states_to_obs.py adds them",
            )
        actions, reward = part(options.action or "actions"), options.reward or "rewards"
        said = demo.attrs.get("num_samples", len(actions))
        if said != len(actions):
            raise DataError(
                "A demonstration has as many steps as it says.",
                expected=f"{said} steps, its attribute num_samples",
                got=f"{place}, field 'actions': shape {actions.shape}",
                fix=f"mend the source, or leave it out: skip=[{number}]",
            )
        dones = part("dones") if "dones" in demo else np.zeros(0)
        return Recorded(
            states=observed("obs"),
            actions=actions,
            rewards=part(reward) if reward in demo or options.reward else None,
            terminated=bool(len(dones) and dones[-1]),
            final=observed("next_obs")[-1] if "next_obs" in demo and len(actions) else None,
            goals=None if options.goal is None else part(options.goal),
            achieved=part(options.achieved) if isinstance(options.achieved, str) else None,
            names={"states": "obs/" + "+".join(self._entries), "actions": "actions", "rewards": reward}
            | goal_names(options),
        )

    def _vectors(self) -> tuple[str, ...]:
        """The observations of the first demonstration that are vectors or single numbers; images are left out."""
        first: Any = self._data[self._names[0]] if self._names else {}
        found = dict(first["obs"].items()) if "obs" in first else {}
        vectors = [name for name, item in sorted(found.items()) if _is_vector(item)]
        return tuple(vectors) or ("object",)


def _is_vector(item: Any) -> bool:
    kind = getattr(item, "dtype", None)
    return kind is not None and kind.kind in NUMBERS and len(item.shape) in (1, 2)
