"""A planner as a function from tensors to tensors: what is known to what is asked for, and the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Generator, Tensor, nn

from trajgen.core.types import Batch, Cond, Plan
from trajgen.export.noise import Draw, Recorded, ReplayNoise

Tensors = dict[str, Tensor]
PAST = "past_"


def flattened(cond: Cond) -> Tensors:
    """The tensors of a condition by name; those of its past begin with ``past_``."""
    flat = {f.name: v for f in fields(cond) if isinstance(v := getattr(cond, f.name), Tensor)}
    if cond.past is not None:
        past = {f.name: getattr(cond.past, f.name) for f in fields(cond.past)}
        flat |= {PAST + name: value for name, value in past.items() if isinstance(value, Tensor)}
    return flat


def unflattened(tensors: Mapping[str, Tensor]) -> Cond:
    """The condition of which these are the tensors."""
    past: dict[str, Any] = {name.removeprefix(PAST): value for name, value in tensors.items() if name.startswith(PAST)}
    own = {name: value for name, value in tensors.items() if not name.startswith(PAST)}
    return Cond(**own, past=Batch(**past) if past else None)


class Planning(nn.Module):
    """What a policy does when a plan is due: asks for a return, and plans for it.

    Args:
        planner: satisfies `trajgen.core.protocols.Planner`.
    """

    def __init__(self, planner: Any) -> None:
        super().__init__()
        self.planner = planner

    def forward(self, known: Tensors, noise: list[Tensor]) -> Tensors:
        """The return asked for (B,) and the parts of the plan, by name.

        Args:
            known: of the condition, where ``returns`` (B,) is what remains of the first target, not a number at an
                episode's first plan.
            noise: what the sampler would draw, in its order; see `draws_of`.
        """
        with ReplayNoise(noise):
            return self.draw(known)

    def draw(self, known: Tensors, rng: Generator | None = None) -> Tensors:
        """The same, with numbers drawn from a generator."""
        asked = self.planner.return_target(known["state"], known.get("goal"), known["returns"])
        plan = self.planner.plan(unflattened({**known, "returns": asked}), rng, decode=False)
        parts = {f.name: getattr(plan, f.name) for f in fields(plan)}
        return {"asked": asked, **{name: value for name, value in parts.items() if value is not None}}


def plan_of(parts: Tensors) -> tuple[Tensor, Plan]:
    """The return asked for, and the plan, of what `Planning` gives."""
    return parts["asked"], Plan(**{name: value for name, value in parts.items() if name != "asked"})


@torch.no_grad()
def draws_of(planning: Planning, known: Tensors) -> list[Draw]:
    """What a plan for conditions of these shapes draws."""
    with Recorded() as recorded:
        planning.draw(known)
    return recorded.draws


class Frozen(nn.Module):
    """A module whose weights are constants with plain names: a name such as ``return`` would end in a syntax error.

    Args:
        module: whose weights it shares; each of its parts is in one place alone, since functional_call puts back what
            it finds in a second one too late.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = [module]  # in a list: it is not to be looked into
        self._names: dict[str, str] = {}
        weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for number, (name, value) in enumerate(weights.items()):
            self._names[name] = f"weight_{number}"
            self.register_buffer(f"weight_{number}", value.detach())

    def forward(self, *inputs: Any) -> Any:
        weights = {name: self.get_buffer(own) for name, own in self._names.items()}
        return torch.func.functional_call(self._module[0], weights, inputs)
