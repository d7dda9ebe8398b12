"""A planner as files that run without trajgen: two programs, a description, and a policy in numpy."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import trajgen.export.exported as exported
from trajgen.core.errors import ConfigError
from trajgen.core.formats import FORMAT
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Cond, Space
from trajgen.export.planning import PAST, Planning, Tensors, draws_of, flattened, plan_of, unflattened
from trajgen.export.trace import require_packages, to_onnx, traced

LIVED = ("state", "action", "reward", "returns")
"""What a policy writes down of each point that it lives through."""
SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch_export": ".pt2"}


class RawPlanning(nn.Module):
    """A plan for observations, and for the points lived through where it continues them, in the world's own units.

    Args:
        planning: the planner, which has the normalizer of its data.
    """

    def __init__(self, planning: Planning) -> None:
        super().__init__()
        self.planning = planning

    def forward(self, known: Tensors, noise: list[Tensor]) -> Tensors:
        """The first target (B,) in the data's units, and the parts of the plan."""
        parts = self.planning(self.normalized(known), noise)
        return {**parts, "asked": self.planning.planner.normalizer.returns.inverse(parts["asked"])}

    def normalized(self, known: Tensors) -> Tensors:
        """What `Planning` is given."""
        planner = self.planning.planner
        own: Normalizer = planner.normalizer
        maps = {"state": own.state, "goal": own.goal, "returns": own.returns}
        seen = {name: maps[name](value) if name in maps else value for name, value in known.items()}
        if not planner.history:
            return seen
        now = unflattened({name: value for name, value in seen.items() if not name.startswith(PAST)})
        maps |= {"action": own.action, "reward": own.reward}
        points = {name: maps[name](seen[PAST + name]) for name in LIVED}
        # What is asked for at the current point is known only now.
        asked = planner.return_target(now.state, now.goal, now.returns).unsqueeze(1)
        steps = known["time"].unsqueeze(1) + torch.arange(1 - planner.history, 1)
        past = Batch.from_history(
            points["state"],
            points["action"],
            points["reward"],
            torch.cat([points["returns"][:, :-1], asked], dim=1),
            steps,
        )
        return flattened(replace(now, past=past))


class RawActing(nn.Module):
    """The action of a plan in a state, in the world's own units and bounds.

    Args:
        action: the action head.
        normalizer: of its data.
        space: whose bounds hold.
    """

    low: Tensor
    high: Tensor

    def __init__(self, action: nn.Module, normalizer: Normalizer, space: Space) -> None:
        super().__init__()
        self.action, self.normalizer = action, normalizer
        self.register_buffer("low", torch.tensor(space.action_low or (-torch.inf,) * space.action_dim))
        self.register_buffer("high", torch.tensor(space.action_high or (torch.inf,) * space.action_dim))

    def forward(self, parts: Tensors, state: Tensor, offset: Tensor) -> Tensor:
        """Actions (B, A) in the states (B, S) met ``offset`` (B,) steps into the plan."""
        _, plan = plan_of(parts)
        states = self.normalizer.state(state).unsqueeze(1)
        action: Tensor = self.action(plan, states, offset.unsqueeze(1)).squeeze(1)
        return torch.clamp(self.normalizer.action.inverse(action), self.low, self.high)


def export(policy: Any, out: Path, *, format: str = "onnx", batch: int = 1) -> Path:
    """Writes a policy into a new folder, to be run by numpy with ONNX Runtime or with torch, without trajgen.

    The folder holds the programs ``plan`` and ``act``, ``policy.json``, and ``policy.py`` with class ``Policy``.

    Args:
        policy: as `trajgen.load_policy` gives it, on the CPU.
        out: a folder that is not there yet, or empty.
        format: ``onnx``, or ``torch_export`` for a program that torch loads and can compile.
        batch: B, how many episodes are played in step.

    Raises:
        ConfigError: if the folder holds something, a package is missing, or the planner cannot be made a program.
    """
    _check(policy, out, format, batch)
    planner, space = policy.planner, policy.space
    planning = Planning(planner).eval()
    known = _known(space, batch, planner.history)
    plan = RawPlanning(planning)
    draws = draws_of(planning, plan.normalized(known))
    noise = [draw.sample(None, torch.device("cpu")) for draw in draws]
    act = RawActing(planner.action, policy.normalizer, space)
    with torch.no_grad():
        parts = plan(known, noise)
    offset = torch.zeros(batch, dtype=torch.long)
    names = [f"noise_{number}" for number in range(len(noise))]
    programs = {
        "plan": (traced(plan, (known, noise)), [*known, *names], list(parts)),
        "act": (traced(act, (parts, known["state"], offset)), [*parts, "state", "offset"], ["action"]),
    }
    written: dict[str, bytes] = {}
    for name, (program, inputs, outputs) in programs.items():
        if format == "onnx":
            written[name] = to_onnx(program, inputs, outputs)
    description = {
        "format": format,
        "format_version": FORMAT,
        "batch": batch,
        "replan_interval": policy.options.replan_interval,
        "discount": policy.discount,
        "state_dim": space.state_dim,
        "goal_dim": space.goal_dim,
        "action_dim": space.action_dim,
        "known": list(known),
        "past": {name: list(value.shape) for name, value in known.items() if name.startswith(PAST)},
        "plan": list(parts),
        "noise": [asdict(draw) for draw in draws],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, (program, _, _) in programs.items():
        path = out / f"{name}{SUFFIX[format]}"
        if format == "onnx":
            path.write_bytes(written[name])
        else:
            torch.export.save(program, path)
    (out / "policy.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (out / "policy.py").write_text(Path(exported.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    return out


def _known(space: Space, batch: int, points: int) -> Tensors:
    goal = torch.zeros(batch, space.goal_dim) if space.goal_key and space.goal_dim else None
    time = torch.zeros(batch, dtype=torch.long)
    known = flattened(Cond(torch.zeros(batch, space.state_dim), torch.full((batch,), torch.nan), goal, time=time))
    if points:
        widths = {"state": (space.state_dim,), "action": (space.action_dim,)}
        known |= {PAST + name: torch.zeros(batch, points, *widths.get(name, ())) for name in LIVED}
    return known


def _check(policy: Any, out: Path, format: str, batch: int) -> None:
    if format not in SUFFIX:
        raise ConfigError(
            "A policy is exported in a known format.",
            expected=" or ".join(SUFFIX),
            got=f"format={format}",
            fix="format=onnx",
        )
    if format == "onnx":
        require_packages("onnx", "onnxscript")
    if batch < 1:
        raise ConfigError("At least one episode is played.", expected="1 or more", got=f"batch={batch}", fix="batch=1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "A policy is exported into a folder of its own; nothing is overwritten.",
            expected="a folder that is empty or not there yet",
            got=str(out),
            fix="out=… another folder, or remove it",
        )
