"""MuJoCo environments with other physics than their own."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
from gymnasium.utils import RecordConstructorArgs

from trajgen.core.errors import ConfigError


class ShiftedEnv(gymnasium.Wrapper, RecordConstructorArgs):
    """A MuJoCo environment with other physics, which stay so through its episodes.

    Args:
        env: whose unwrapped environment has a MuJoCo ``model``; the model is changed.
        mass, friction, damping, gear: factors, as `trajgen.data.options.EnvShift` has them.

    Raises:
        ConfigError: if it has no such model.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        mass: float = 1.0,
        friction: float = 1.0,
        damping: float = 1.0,
        gear: float = 1.0,
    ) -> None:
        RecordConstructorArgs.__init__(self, mass=mass, friction=friction, damping=damping, gear=gear)
        super().__init__(env)
        model = getattr(env.unwrapped, "model", None)
        if not isinstance(model, mujoco.MjModel):
            raise ConfigError(
                "Only the physics of MuJoCo environments can be shifted.",
                got=f"{env.unwrapped}",
                fix="leave shift out, or change the environment in a class of your own",
            )
        model.body_mass *= mass
        model.body_inertia *= mass
        model.geom_friction[:, 0] *= friction
        model.pair_friction[:, :2] *= friction  # of both sliding directions, where contacts are listed one by one
        model.dof_damping *= damping
        model.actuator_gear *= gear
        mujoco.mj_setConst(model, mujoco.MjData(model))  # what MuJoCo derives from masses
