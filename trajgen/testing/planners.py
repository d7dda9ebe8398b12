"""What planners promise: stages that train their own weights alone, and plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trajgen.testing.bench import Bench
from trajgen.testing.contract import ContractError, contract
from trajgen.testing.shapes import check_losses, check_shape

PROMISED = ("action", "return_target", "history", "stages", "plan", "refinements", "condition_residuals")


@contract("has what policies and the engine ask for", "planner")
def attributes(bench: Bench) -> None:
    missing = [name for name in PROMISED if not hasattr(bench.component, name)]
    if missing:
        raise ContractError("A planner lacks something.", expected=", ".join(PROMISED), got=f"no {', '.join(missing)}")
    if not isinstance(bench.component.history, int):
        raise ContractError(
            "`history` is how many past points a plan continues.", expected="0", got=bench.component.history
        )
    if not callable(bench.component.action) or not callable(bench.component.return_target):
        raise ContractError(
            "A policy calls the planner's action and target.", expected="two callables", look="__init__()"
        )


@contract("a stage trains its own weights alone", "planner")
def stages(bench: Bench) -> None:
    planner, batch = bench.ready(), bench.batch(16)
    named = {id(p): name for name, p in planner.named_parameters()}
    trained = [stage for stage in planner.stages() if stage.parameters]
    if not trained:
        raise ContractError(
            "There is nothing to train.", expected="a stage with parameters", got="none", look="stages()"
        )
    if len({stage.name for stage in trained}) < len(trained):
        raise ContractError("Two stages have the same name.", expected="names that differ", look="stages()")
    for stage in trained:
        planner.zero_grad(set_to_none=True)
        stage.begin(planner)
        before = _frozen(planner, stage.parameters)
        losses = stage.loss(batch)
        check_losses(losses)
        losses["total"].backward()
        if stage.after_step is not None:
            with torch.no_grad():
                stage.after_step()
        own = {id(p) for p in stage.parameters}
        if own - set(named):
            raise ContractError(
                f"Stage '{stage.name}' trains weights that the planner does not hold: they would not be saved.",
                expected="parameters of the planner's own submodules",
                got=f"{len(own - set(named))} others",
                look="__init__() and stages()",
            )
        reached = {id(p) for p in planner.parameters() if p.grad is not None}
        if reached - own:
            raise ContractError(
                f"Stage '{stage.name}' reaches weights that are not its own.",
                expected="gradients for the stage's parameters alone",
                got=", ".join(sorted(named[i] for i in reached - own)),
                look="stages(): list them, or hold them as a submodule of the stage's module, so that begin() "
                "freezes them",
            )
        if not reached:
            raise ContractError(
                f"Stage '{stage.name}' trains nothing.", expected="a gradient", look="the module's forward()"
            )
        if any(not isinstance(v, float) for v in stage.report().values()):
            raise ContractError(f"The report of stage '{stage.name}' is figures by name.", expected="dict[str, float]")
        after = planner.state_dict()
        moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
        if moved:
            raise ContractError(
                f"Stage '{stage.name}' changes parts that it does not train.",
                expected="frozen parts to stay as they are",
                got=", ".join(moved),
                look="the train() of the stage's module: frozen parts stay in evaluation mode",
            )


@contract("every weight is trained by a stage", "planner")
def coverage(bench: Bench) -> None:
    planner = bench.component
    listed = {id(p) for stage in planner.stages() for p in stage.parameters}
    left = [name for name, p in planner.named_parameters() if id(p) not in listed]
    if left:
        raise ContractError(
            "No stage trains these weights.", expected="each in a stage", got=", ".join(left), look="stages()"
        )


@contract("plans, seeded, decoded when asked", "planner")
def plans(bench: Bench) -> None:
    planner, cond = bench.component, bench.cond()
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found.append(planner.plan(cond, torch.Generator().manual_seed(3)))
    first, second = found
    if not torch.equal(first.latent, second.latent):
        raise ContractError(
            "The same seed makes another plan.", expected="random numbers from rng alone", look="plan()"
        )
    if first.latent.ndim != 3 or len(first.latent) != len(cond):
        raise ContractError("Plans have a latent.", expected="(B, N, C)", got=tuple(first.latent.shape), look="plan()")
    bare = planner.plan(cond, torch.Generator().manual_seed(3), decode=False)
    for plan in (first, bare):
        states, at = cond.state.unsqueeze(1), torch.zeros(len(cond), 1, dtype=torch.long)
        check_shape("the actions of plans", planner.action(plan, states, at), (len(cond), 1, 2), "(B, 1, A)")
    if first.trajectory is not None:
        horizon = bench.composition.window.horizon
        shape = (len(cond), horizon, first.trajectory.shape[-1])
        check_shape("the trajectory of plans", first.trajectory, shape, "(B, T, D)")


@contract("refinements and residuals by name", "planner")
@torch.no_grad()
def pictures(bench: Bench) -> None:
    planner, cond = bench.component, bench.cond()
    plan = planner.plan(cond, torch.Generator().manual_seed(3))
    refined = planner.refinements(plan, cond)
    if not isinstance(refined, dict):
        raise ContractError(
            "refinements() says how a plan grew, by name.", expected="dict[str, Tensor]", got=type(refined).__name__
        )
    if plan.trajectory is None:
        return
    for name, value in refined.items():
        check_shape(f"refinement '{name}'", value, tuple(plan.trajectory.shape), "(B, T, D)")
    for name, value in planner.condition_residuals(plan.trajectory, cond).items():
        width = {"state": cond.state.shape[1], "return": 1}.get(name)
        if width is None:
            raise ContractError("Residuals are of what was asked.", expected="state, return", got=name)
        check_shape(f"the residual of the {name}", value, (len(cond), width), "(B, width of the field)")


def _frozen(planner: nn.Module, trained: list[nn.Parameter]) -> dict[str, Any]:
    """The state of the parts of which nothing is trained."""
    own, found = {id(p) for p in trained}, {}
    for name, part in planner.named_children():
        weights = list(part.parameters())
        if weights and not any(id(p) in own for p in weights):
            found.update({f"{name}.{k}": v.clone() for k, v in part.state_dict().items()})
    return found
