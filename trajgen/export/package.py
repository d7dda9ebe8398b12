"""A policy as files that run without trajgen: two programs, a description, and a policy in numpy."""

from __future__ import annotations

import io
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.choices import likeliest
from trajgen.core.errors import ConfigError
from trajgen.core.files import new_folder, write_file, write_json
from trajgen.core.formats import FORMAT
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Cond, FollowedPlan, Space
from trajgen.export import exported_policy
from trajgen.export.backends import copies
from trajgen.export.plan_module import (
    FOLLOWED,
    PAST,
    PLAN,
    TARGET_RETURN,
    PlanModule,
    RevisionModule,
    Tensors,
    cond_from,
    cond_tensors,
    followed_tensors,
    plan_from,
    required_noise,
)
from trajgen.export.trace import require_packages, to_onnx, traced

HISTORY = ("state", "action", "reward", "returns")
"""What a policy records of each point of its history."""
SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch_export": ".pt2"}


class RawPlanModule(nn.Module):
    """A planning step, or a revision, in the environment's own units.

    Args:
        module: the planning step or the revision; its planner has the normalizer of its data.
    """

    def __init__(self, module: PlanModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensors, noise: list[Tensor]) -> Tensors:
        """The target returns (B,) in the data's units, and the other outputs of the module."""
        outputs = self.module(self.normalized(inputs), noise)
        return {**outputs, TARGET_RETURN: self.module.planner.normalizer.returns.inverse(outputs[TARGET_RETURN])}

    def normalized(self, inputs: Tensors) -> Tensors:
        """The inputs of the module."""
        planner = self.module.planner
        normalizer: Normalizer = planner.normalizer
        maps = {"state": normalizer.state, "goal": normalizer.goal, "returns": normalizer.returns}
        maps[f"{FOLLOWED}state"] = normalizer.state
        present = {
            name: maps[name](value) if name in maps else value
            for name, value in inputs.items()
            if not name.startswith(PAST)
        }
        if not planner.history:
            return present
        maps |= {"action": normalizer.action, "reward": normalizer.reward}
        states, actions, rewards, returns = (maps[name](inputs[PAST + name]) for name in HISTORY)
        steps = inputs["time"].unsqueeze(1) + torch.arange(1 - planner.history, 1)
        past = Batch.from_history(states, actions, rewards, returns, steps)
        return cond_tensors(replace(cond_from(present), past=past))


class RawActionModule(nn.Module):
    """The action of a plan in a state, in the environment's own units and bounds.

    Args:
        action: the action head.
        normalizer: of its data.
        space: whose bounds hold.
    """

    low: Tensor
    high: Tensor

    def __init__(self, action: nn.Module, normalizer: Normalizer, space: Space) -> None:
        super().__init__()
        self.action, self.normalizer, self.choices = action, normalizer, space.choices
        self.register_buffer("low", torch.tensor(space.action_low or (-torch.inf,) * space.action_dim))
        self.register_buffer("high", torch.tensor(space.action_high or (torch.inf,) * space.action_dim))

    def forward(self, outputs: Tensors, state: Tensor, offset: Tensor) -> Tensor:
        """Actions (B, A), discrete ones one-hot, in the states (B, S) met ``offset`` (B,) steps into the plan."""
        _, plan = plan_from(outputs)
        states = self.normalizer.state(state).unsqueeze(1)
        action: Tensor = self.action(plan, states, offset.unsqueeze(1)).squeeze(1)
        in_units = self.normalizer.action.inverse(action)
        return likeliest(in_units, self.choices) if self.choices else torch.clamp(in_units, self.low, self.high)


def export(policy: Any, out: Path, *, format: str = "onnx", batch: int = 1) -> Path:
    """Writes a policy into a new folder, to be run by numpy with ONNX Runtime or with torch, without trajgen.

    The folder holds the programs ``plan`` and ``act``, and ``revise`` where plans are revised, ``policy.json``, and
    ``policy.py`` with class ``Policy``.

    Args:
        policy: as `trajgen.load_policy` gives it; what is written runs on the CPU, whatever its device.
        out: a folder that is not there yet, or empty.
        format: ``onnx``, or ``torch_export`` for a program that torch loads and can compile.
        batch: B, how many episodes are played in step.

    Raises:
        ConfigError: if the folder holds something, a package is missing, or the planner cannot be traced.
    """
    _check(out, format, batch)
    planner, space = policy.planner, policy.space
    if space.image_shape:
        raise ConfigError(
            "An exported policy takes vectors, and this one encodes images.",
            got=f"images of shape {space.image_shape}",
            fix="trajgen.load_policy where it acts; or a run of vectors alone",
        )
    if policy.device.type != "cpu":
        planner = deepcopy(planner).cpu()
    module = PlanModule(planner).eval()
    plan, act = RawPlanModule(module), RawActionModule(planner.action, planner.normalizer, space)
    inputs = _example_inputs(space, batch, planner.history)
    plan_program, draws, outputs = _program(plan, inputs)
    offset = torch.zeros(batch, dtype=torch.long)
    programs = {
        "plan": plan_program,
        "act": (traced(act, (outputs, inputs["state"], offset)), [*outputs, "state", "offset"], ["action"]),
    }
    revision: dict[str, Any] | None = None
    if policy.options.revise is not None:
        revise = RawPlanModule(RevisionModule(planner, policy.options.revise - 1, policy.options.revise_misfit).eval())
        codes, worth = outputs[f"{PLAN}codes"], outputs.get(f"{PLAN}worth")
        revise_inputs = inputs | copies(followed_tensors(FollowedPlan(codes, inputs["state"], offset, worth)))
        programs["revise"], revise_draws, revise_outputs = _program(revise, revise_inputs)
        revision = {
            "interval": policy.options.revise_interval,
            "threshold": policy.options.revise_threshold,
            "inputs": list(revise_inputs),
            "outputs": list(revise_outputs),
            "noise": revise_draws,
        }
    onnx = {name: to_onnx(*program) for name, program in programs.items()} if format == "onnx" else {}
    description = {
        "format": format,
        "format_version": FORMAT,
        "batch": batch,
        "seed": policy.options.seed,
        "replan_interval": policy.replan_interval,
        "replan_on_new_goal": policy.options.replan_on_new_goal,
        "discount": policy.discount,
        "state_dim": space.state_dim,
        "goal_dim": space.goal_dim,
        "action_dim": space.action_dim,
        "choices": space.choices,
        "state_offset": space.state_offset,
        "goal_offset": space.goal_offset,
        "inputs": list(inputs),
        "past": {name: list(value.shape) for name, value in inputs.items() if name.startswith(PAST)},
        "outputs": list(outputs),
        "noise": draws,
        "revision": revision,
    }
    with new_folder(out) as folder:
        for name, (program, _, _) in programs.items():
            path = folder / f"{name}{SUFFIX[format]}"
            write_file(path, onnx[name] if onnx else _saved(program))
        write_file(folder / "policy.py", Path(exported_policy.__file__).read_text(encoding="utf-8"))
        write_json(folder / "policy.json", description)
    return out


Program = tuple[Any, list[str], list[str]]
"""What was traced, and the names of its inputs and outputs."""


def _program(module: RawPlanModule, inputs: Tensors) -> tuple[Program, list[dict[str, Any]], Tensors]:
    """The program of a planning step or a revision, what it draws, and its outputs for these inputs."""
    draws = required_noise(module.module, module.normalized(inputs))
    noise = [draw.sample(None, torch.device("cpu")) for draw in draws]
    with torch.no_grad():
        outputs: Tensors = module(inputs, noise)
    names = [*inputs, *(f"noise_{number}" for number in range(len(noise)))]
    return (traced(module, (inputs, noise)), names, list(outputs)), [asdict(draw) for draw in draws], outputs


def _saved(program: Any) -> bytes:
    """The bytes of a program of torch, which itself would end the process where a disk is full."""
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def _example_inputs(space: Space, batch: int, points: int) -> Tensors:
    goal = torch.zeros(batch, space.goal_dim) if space.goal_key and space.goal_dim else None
    time = torch.zeros(batch, dtype=torch.long)
    cond = Cond(torch.zeros(batch, space.state_dim), torch.full((batch,), torch.nan), goal, time=time)
    inputs = cond_tensors(cond)
    if points:
        widths = {"state": (space.state_dim,), "action": (space.action_dim,)}
        inputs |= {PAST + name: torch.zeros(batch, points, *widths.get(name, ())) for name in HISTORY}
    return inputs


def _check(out: Path, format: str, batch: int) -> None:
    if format not in SUFFIX:
        raise ConfigError(f"There is no export format '{format}'.", expected=" or ".join(SUFFIX), fix="format=onnx")
    if format == "onnx":
        require_packages("onnx", "onnxscript")
    if batch < 1:
        raise ConfigError("batch is at least 1.", got=f"batch={batch}", fix="batch=1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "A policy is exported into a new or empty folder; nothing is overwritten.",
            got=str(out),
            fix="out=… another folder, or remove it",
        )
