"""Arrays of Python, an episode at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trajgen.data.importing.options import ImportOptions
from trajgen.data.importing.source import Recorded, from_mapping


class Arrays:
    """Episodes as mappings of arrays.

    Args:
        episodes: for each episode its observations, actions, rewards, terminals or terminations, next_observations.
        options: names of other entries.
    """

    about = ""

    def __init__(self, episodes: Sequence[Mapping[str, Any]], options: ImportOptions) -> None:
        self._episodes, self._options = episodes, options

    def __len__(self) -> int:
        return len(self._episodes)

    def label(self, number: int) -> str:
        return "from Python"

    def read(self, number: int) -> Recorded:
        return from_mapping(self._episodes[number], self._options, f"episode {number}")
