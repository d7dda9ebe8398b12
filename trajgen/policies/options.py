"""How plans are followed."""

from __future__ import annotations

from dataclasses import dataclass

from trajgen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """How plans are followed."""

    replan: int = 4
    """Environment steps between plans; at most data.chunk."""
    seed: int = 0
    """Of the sampler's random numbers."""

    def check(self, chunk: int) -> None:
        """Raises a `ConfigError` if a plan would be followed for longer than the action head was trained for."""
        if not 1 <= self.replan <= chunk:
            raise ConfigError(
                "A plan is followed for at least one step and at most as many as the action head was trained for.",
                expected=f"1 to {chunk} (data.chunk)",
                got=f"policy.replan={self.replan}",
                fix=f"policy.replan={max(1, min(self.replan, chunk))} or data.chunk={self.replan}",
            )
