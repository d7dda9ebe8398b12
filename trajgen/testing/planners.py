"""What planners promise: stages that train their own weights alone, and plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from trajgen.core.types import Cond, KnownCodes
from trajgen.testing.compositions import SPACE
from trajgen.testing.contract import NotApplicableError, contract, require, require_losses, require_shape
from trajgen.testing.fixture import Fixture, select
from trajgen.testing.inputs import other_padding


@contract("a stage trains its own weights alone", "planner")
def stages(fixture: Fixture) -> None:
    planner, batch = fixture.build_ready(), fixture.batch(16)
    names = {id(p): name for name, p in planner.named_parameters()}
    trained = [stage for stage in planner.stages() if stage.parameters]
    require(trained, "There is nothing to train.", expected="a stage with parameters", look="stages()")
    require(len({stage.name for stage in trained}) == len(trained), "Two stages have the same name.", look="stages()")
    for stage in trained:
        planner.zero_grad(set_to_none=True)
        stage.begin(planner)
        listed = {id(p) for p in stage.trained}
        before = _frozen_state(planner, listed)
        losses = stage.loss(batch)
        require_losses(losses)
        losses["total"].backward()
        if stage.after_step is not None:
            with torch.no_grad():
                stage.after_step()
        require(
            listed <= set(names),
            f"Stage '{stage.name}' trains weights that the planner does not hold: they would not be saved.",
        )
        reached = {id(p) for p in planner.parameters() if p.grad is not None}
        require(
            reached <= listed,
            f"Stage '{stage.name}' reaches weights that it does not list.",
            got=", ".join(sorted(names[i] for i in reached - listed)),
        )
        require(reached, f"Stage '{stage.name}' trains nothing.", expected="a gradient", look="the stage's loss")
        require(
            any(p.grad is not None and p.grad.any() for p in stage.trained),
            f"All gradients of stage '{stage.name}' are 0.",
            look="the stage's loss: products with 0, saturated functions",
        )
        figures = all(isinstance(value, float) for value in stage.report().values())
        require(figures, f"The report of stage '{stage.name}' is a dict[str, float].")
        after = planner.state_dict()
        changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
        require(
            not changed,
            f"Stage '{stage.name}' changes parts that it does not train.",
            got=", ".join(changed),
            look="the stage's frozen modules",
        )


@contract("the loss of a stage is a mean over windows", "planner")
def mean_losses(fixture: Fixture) -> None:
    planner, batch = fixture.build_ready(), fixture.batch(16)
    for stage in planner.stages():
        if not stage.parameters:
            continue
        totals = []
        for repeats in (1, 2):
            torch.manual_seed(0)
            losses = stage.loss(select(batch, list(range(len(batch))) * repeats))
            totals.append(abs(float(losses["total"].detach())))
        require(
            totals[1] <= 1.6 * totals[0],
            f"The loss of stage '{stage.name}' grows with the windows of its batch.",
            expected="a mean",
            got=f"{totals[0]:.3g} for 16 windows, {totals[1]:.3g} once each is there twice",
        )


@contract("every window counts in the loss of a stage, and no padded action", "planner")
@torch.no_grad()
def real_windows(fixture: Fixture) -> None:
    planner, batch = fixture.build_ready(), fixture.batch(16)
    others = select(batch, [*range(len(batch) - 1), 0])
    padded = replace(batch, chunk_actions=other_padding(batch).chunk_actions)
    for stage in planner.stages():
        if not stage.parameters:
            continue
        totals = []
        for each in (batch, others, padded):
            torch.manual_seed(0)
            totals.append(float(stage.loss(each)["total"]))
        require(totals[0] != totals[1], f"The last window does not change the loss of stage '{stage.name}'.")
        require(
            abs(totals[2] - totals[0]) <= 1e-4 * abs(totals[0]),
            f"Actions after an episode's end change the loss of stage '{stage.name}'.",
            look="batch.mean(errors, lambda batch: batch.chunk_mask)",
        )


@contract("L_cond reaches the prior", "planner")
def condition_gradient(fixture: Fixture) -> None:
    planner = fixture.build_ready()
    prior, tokenizer = fixture.part(planner, "prior"), fixture.part(planner, "tokenizer")
    if tokenizer is not None and tokenizer.known_codes(fixture.cond()) is not None:
        raise NotApplicableError("what the condition says is known, not predicted")
    for stage in planner.stages():
        if prior is None or not stage.parameters:
            continue
        stage.begin(planner)
        losses = stage.loss(fixture.batch(16))
        weights = [p for p in prior.parameters() if p.requires_grad]
        if "condition" not in losses or not weights:
            continue
        gradients = (
            torch.autograd.grad(losses["condition"], weights, allow_unused=True)
            if losses["condition"].requires_grad
            else []
        )
        require(
            any(gradient is not None and gradient.any() for gradient in gradients),
            "L_cond has no gradient at the prior's weights: it trains nothing.",
            look="from the prediction to the decoded plan: detach(), argmax, codes that are not relaxed",
        )
        return
    raise NotApplicableError("none of its stages has a loss 'condition'")


@contract("every weight is trained by a stage", "planner")
def coverage(fixture: Fixture) -> None:
    planner = fixture.component
    listed = {id(p) for stage in planner.stages() for p in stage.trained}
    unlisted = [name for name, p in planner.named_parameters() if id(p) not in listed]
    require(not unlisted, "No stage trains these weights.", got=", ".join(unlisted), look="stages()")


@contract("plans are seeded, and decoded on request", "planner")
def plans(fixture: Fixture) -> None:
    planner, cond = fixture.component, fixture.cond()
    samples = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        samples.append(planner.plan(cond, torch.Generator().manual_seed(3)))
    first, second = samples
    same = torch.equal(first.latent, second.latent)
    require(same, "The same seed makes another plan.", expected="random numbers from rng alone", look="plan()")
    shape = tuple(first.latent.shape)
    require(len(shape) == 3 and shape[0] == len(cond), "Plans have a latent (B, N, C).", got=shape, look="plan()")
    for plan in (first, planner.plan(cond, torch.Generator().manual_seed(3), decode=False)):
        actions = planner.action(plan, cond.state.unsqueeze(1), torch.zeros(len(cond), 1, dtype=torch.long))
        require_shape("the actions of plans", actions, (len(cond), 1, SPACE.action_dim), "(B, 1, A)")
    if first.trajectory is not None:
        shape = (len(cond), fixture.composition.window.horizon, first.trajectory.shape[-1])
        require_shape("the trajectory of plans", first.trajectory, shape, "(B, T, D)")


@contract("plans take the codes that follow from their condition", "planner")
@torch.no_grad()
def known_codes(fixture: Fixture) -> None:
    planner, calls = fixture.build_ready(), []
    if fixture.part(planner, "tokenizer") is None or planner.history:
        raise NotApplicableError("it has no tokenizer, or continues a history")

    def counted(of_condition: Callable[[Cond], KnownCodes | None], cond: Cond) -> KnownCodes | None:
        calls.append(cond)
        return of_condition(cond)

    for module in planner.modules():
        if hasattr(module, "known_codes") and hasattr(module, "encode"):
            module.known_codes = partial(counted, module.known_codes)
    planner.plan(fixture.cond(), torch.Generator().manual_seed(0))
    require(
        calls,
        "Plans are drawn without the codes that follow from their condition, as a start or a goal that is inpainted.",
        expected="sampler(prior, tokenizer, cond, rng, tokenizer.known_codes(cond))",
        look="plan()",
    )


@contract("refinements and residuals by name", "planner")
@torch.no_grad()
def refinements(fixture: Fixture) -> None:
    planner, cond = fixture.component, fixture.cond()
    plan = planner.plan(cond, torch.Generator().manual_seed(3))
    refined = planner.refinements(plan, cond)
    require(isinstance(refined, dict), "refinements() is a dict[str, Tensor].", got=type(refined).__name__)
    if plan.trajectory is None:
        return
    for name, value in refined.items():
        require_shape(f"refinement '{name}'", value, tuple(plan.trajectory.shape), "(B, T, D)")
    widths = {"state": cond.state.shape[1], "return": 1}
    for name, value in planner.condition_residuals(plan.trajectory, cond).items():
        require(name in widths, "Residuals are of the state and the return.", got=name, look="condition_residuals()")
        require_shape(f"the residual of the {name}", value, (len(cond), widths[name]), "(B, width of the field)")


def _frozen_state(planner: nn.Module, trained: set[int]) -> dict[str, Any]:
    """The state of the planner's parts of which no weight is trained."""
    state = {}
    for name, part in planner.named_children():
        weights = list(part.parameters())
        if weights and not any(id(p) in trained for p in weights):
            state.update({f"{name}.{key}": value.clone() for key, value in part.state_dict().items()})
    return state
