"""Two controllers of CartPole, by which the data of the results were recorded: ``policy=pole:controllers``."""

from __future__ import annotations

from typing import Any

import numpy as np


class Controllers:
    """In an episode of ten the one that balances; the other one only pushes against the lean."""

    def reset(self) -> None:
        """Draws the controller of an episode."""
        self.balances = np.random.rand() < 0.1

    def act(self, observation: Any) -> int:
        """0 pushes to the left, 1 to the right; three steps in ten at random."""
        x, velocity, angle, turning = observation
        lean = angle + self.balances * (0.5 * turning + 0.05 * x + 0.1 * velocity)
        return int(lean > 0) if np.random.rand() > 0.3 else np.random.randint(2)


controllers = Controllers()
