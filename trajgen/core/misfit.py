"""How it is measured how badly a plan that has been followed fits the present; of options, which need no torch."""

from __future__ import annotations

from typing import Literal

Misfit = Literal["likelihood", "state", "critic"]
"""What each of them is stands in `trajgen.core.planning.RevisesPlans.revise`."""
