"""A planning step as a module from tensors to tensors, as torch.export, ONNX Runtime and CUDA graphs need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Generator, Tensor, nn

from trajgen.core.planning import Misfit, plan_step, revision_step
from trajgen.core.types import Batch, Cond, FollowedPlan, Plan
from trajgen.export.randomness import Draw, RecordDraws, ReplayNoise

Tensors = dict[str, Tensor]
PAST, PLAN, FOLLOWED = "past_", "plan_", "followed_"
"""Before the names of the tensors of a condition's past, of a plan, and of one that has been followed."""
TARGET_RETURN = "target_return"
MISFIT = "misfit"


def cond_tensors(cond: Cond) -> Tensors:
    """The tensors of a condition by name; those of its past begin with ``past_``."""
    tensors = {f.name: v for f in fields(cond) if isinstance(v := getattr(cond, f.name), Tensor)}
    if cond.past is not None:
        past = {f.name: getattr(cond.past, f.name) for f in fields(cond.past)}
        tensors |= {PAST + name: value for name, value in past.items() if isinstance(value, Tensor)}
    return tensors


def cond_from(tensors: Mapping[str, Tensor]) -> Cond:
    """The condition of which these are the tensors."""
    past: dict[str, Any] = {name.removeprefix(PAST): value for name, value in tensors.items() if name.startswith(PAST)}
    present = {name: value for name, value in tensors.items() if not name.startswith(PAST)}
    return Cond(**present, past=Batch(**past) if past else None)


def followed_tensors(followed: FollowedPlan) -> Tensors:
    """The tensors of plans that have been followed, by names that begin with ``followed_``."""
    return {FOLLOWED + f.name: value for f in fields(followed) if (value := getattr(followed, f.name)) is not None}


class PlanModule(nn.Module):
    """A planning step (`trajgen.core.planning.plan_step`) of tensors.

    Args:
        planner: satisfies `trajgen.core.planning.Planner`.
    """

    def __init__(self, planner: Any) -> None:
        super().__init__()
        self.planner = planner

    def forward(self, inputs: Tensors, noise: list[Tensor]) -> Tensors:
        """The target returns (B,) and the parts of the plan, by name.

        Args:
            inputs: the tensors of the condition.
            noise: what the sampler would draw, in its order; see `required_noise`.
        """
        with ReplayNoise(noise):
            return self.sample(inputs)

    def sample(self, inputs: Tensors, rng: Generator | None = None) -> Tensors:
        """The same, with noise from a generator."""
        returns, plan = plan_step(self.planner, cond_from(inputs), rng)
        return {TARGET_RETURN: returns, **_parts(plan)}


class RevisionModule(PlanModule):
    """A revision (`trajgen.core.planning.revision_step`) of tensors, those of `followed_tensors` among the inputs.

    Args:
        planner: satisfies `trajgen.core.planning.RevisingPlanner`.
        first: number of the first scale that is drawn anew.
        misfit: how it is measured.
    """

    def __init__(self, planner: Any, first: int, misfit: Misfit) -> None:
        super().__init__(planner)
        self.first, self.misfit = first, misfit

    def sample(self, inputs: Tensors, rng: Generator | None = None) -> Tensors:
        """The target returns, the parts of the plan, and the misfit (B,)."""
        cond = cond_from({name: value for name, value in inputs.items() if not name.startswith(FOLLOWED)})
        followed = {n.removeprefix(FOLLOWED): value for n, value in inputs.items() if n.startswith(FOLLOWED)}
        returns, plan, misfit = revision_step(
            self.planner, self.first, self.misfit, cond, FollowedPlan(**followed), rng
        )
        return {TARGET_RETURN: returns, **_parts(plan), MISFIT: misfit}


def _parts(plan: Plan) -> Tensors:
    return {PLAN + f.name: value for f in fields(plan) if (value := getattr(plan, f.name)) is not None}


def plan_from(outputs: Tensors) -> tuple[Tensor, Plan]:
    """The target returns and the plan, of the outputs of a `PlanModule`."""
    parts = {name.removeprefix(PLAN): value for name, value in outputs.items() if name.startswith(PLAN)}
    return outputs[TARGET_RETURN], Plan(**parts)


@torch.no_grad()
def required_noise(module: PlanModule, inputs: Tensors) -> list[Draw]:
    """The draws of a planning step for inputs of these shapes."""
    with RecordDraws() as recorder:
        module.sample(inputs)
    return recorder.draws


class FrozenModule(nn.Module):
    """A module whose weights are constants with plain names: a name such as ``return`` would end in a syntax error.

    Args:
        module: whose weights it shares; each of its parts is in one place alone, since functional_call puts back what
            it finds in a second one too late.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = [module]  # in a list, so that it is no submodule
        self._constants: dict[str, str] = {}
        weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for number, (name, value) in enumerate(weights.items()):
            self._constants[name] = f"weight_{number}"
            self.register_buffer(f"weight_{number}", value.detach())

    def forward(self, *inputs: Any) -> Any:
        weights = {name: self.get_buffer(constant) for name, constant in self._constants.items()}
        return torch.func.functional_call(self._module[0], weights, inputs)
