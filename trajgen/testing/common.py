"""What components of all kinds promise: how they behave in a composition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.assemble import all_stages
from trajgen.core import protocols
from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch, Cond, Plan
from trajgen.testing.contract import ContractError, NotApplicableError, contract, require
from trajgen.testing.fixture import Example, Fixture, select
from trajgen.testing.registration import DRAWN_BY, PROTOCOLS

TOLERANCE = 1e-4


def respond(
    fixture: Fixture, planner: Any, batch: Batch, seed: int = 0, example: Example | None = None
) -> dict[str, Tensor]:
    """What the checked component in ``planner`` returns for B windows: named tensors with B rows each.

    Args:
        fixture: of the component.
        planner: holds the component.
        batch: B windows.
        seed: of samplers and planners.
        example: what the planner's parts make of the batch, if it was made before.
    """
    part, generator = fixture.part(planner), torch.Generator().manual_seed(seed)
    if fixture.kind == "planner":
        return _respond_planner(planner, batch, generator)
    if fixture.kind == "encoder":
        return {"the features": part(batch.image_pairs[:, 0])}
    example = example or fixture.example(planner, batch)
    cond, latent = example.cond, example.latent
    match fixture.kind:
        case "view":
            return {"the features": part(batch)}
        case "tokenizer":
            encoding = part.encode(example.x)
            members = {f"encode().{name}": value for name, value in vars(encoding).items()}
            return {**members, "vectors()": part.vectors(encoding.codes)}
        case "conditioner":
            return {"the embedding": part(cond)}
        case "prior":
            return {"the prediction": predict(part, example, cond)}
        case "decoder":
            return {"the trajectory": part(latent, cond), "base()": part.base(latent, cond)}
        case "action":
            return {"the actions": part(acting_plan(part, example), batch.chunk_states, chunk_offsets(example))}
        case "sampler":
            tokenizer = fixture.part(planner, "tokenizer")
            prior, known_codes = fixture.part(planner, "prior"), tokenizer.known_codes(cond)
            return {"the codes": part(prior, tokenizer, cond, generator, known_codes).codes}
        case "critic":
            return {"the scores": part(points_of(fixture, planner, example), cond)}
        case "return_target":
            remaining = batch.rewards[:, 0]
            return {
                "the first return": part(cond.state, cond.goal, remaining * torch.nan),
                "the return that remains": part(cond.state, cond.goal, remaining),
            }
        case "subgoal":
            return {"the subgoals": part(cond.state, cond.goal)}
    raise KeyError(fixture.kind)


def predict(prior: Any, example: Example, cond: Cond) -> Tensor:
    """What a prior predicts (B, L, ·) for conditions (B, ·), by the methods through which it is drawn from."""
    noisy = example.vectors
    prediction: Tensor
    if isinstance(prior, protocols.Autoregressive):
        prediction = prior.logits(example.inputs, cond)
    elif isinstance(prior, protocols.Denoising):
        prediction = prior.denoise(noisy, torch.ones(len(cond), dtype=torch.long, device=noisy.device), cond)
    elif isinstance(prior, protocols.HasVelocity):
        prediction = prior.velocity(noisy, noisy.new_full((len(cond),), 0.5), cond)
    else:  # drawn in a way of its own: what a step of training predicts, from the same noise
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            prediction = prior(example.codes, example.inputs, cond)[1]
    return prediction


def other_fields(cond: Cond) -> dict[str, Cond]:
    """The conditions with one of their fields changed each, by its name."""
    others = {"state": replace(cond, state=cond.state + 1.5), "return": replace(cond, returns=cond.returns + 1.5)}
    return others if cond.goal is None else {**others, "goal": replace(cond, goal=cond.goal + 1.5)}


def _respond_planner(planner: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    plan = planner.plan(batch.condition(), generator)
    first = batch.chunk_states[:, :1]
    responses = {
        "the latent of plans": plan.latent,
        "the actions of plans": planner.action(plan, first, torch.zeros_like(first[..., 0], dtype=torch.long)),
    }
    return responses if plan.trajectory is None else {**responses, "the trajectory of plans": plan.trajectory}


def points_of(fixture: Fixture, planner: Any, example: Example) -> dict[str, Tensor]:
    """The fields of an example's points as a critic gets them: those of the view, or states where there is none."""
    view = fixture.part(planner, "view")
    if view is None:
        return {"state": example.batch.states}
    return {name: view.read(example.x, name) for name in view.slices}


def acting_plan(action: Any, example: Example) -> Plan:
    """The plan as an action head gets it when acting: decoded only if the head reads the trajectory."""
    trajectory = example.x if action.reads_trajectory else None
    return replace(example.plan, trajectory=trajectory, goal=example.batch.goals)


def chunk_offsets(example: Example) -> Tensor:
    """0 to H - 1 for each window, (B, H)."""
    return torch.arange(example.batch.chunk_states.shape[1], device=example.x.device).expand(len(example.batch), -1)


@contract("finite float32 in evaluation", *PROTOCOLS)
def finite(fixture: Fixture) -> None:
    for name, value in responses(fixture).items():
        if value.is_floating_point():
            require(
                value.dtype == torch.float32,
                f"{name} is not in single precision, though weights and data are.",
                got=value.dtype,
                look="numpy's double precision",
            )
            require(torch.isfinite(value).all(), f"{name} has values that are not finite.")


@contract("the same twice in evaluation", *PROTOCOLS)
def deterministic(fixture: Fixture) -> None:
    torch.manual_seed(1)
    first = responses(fixture)
    torch.manual_seed(2)
    require_equal(
        first,
        responses(fixture),
        "{name} differs by {by} in a second call with the same seed.",
        look="random numbers without rng, dropout in evaluation, state that is left over",
    )


@contract("acting changes nothing that stays: modes, saved state, the global seed", *PROTOCOLS)
@torch.no_grad()
def leaves_no_trace(fixture: Fixture) -> None:
    planner, batch = fixture.build_ready(), fixture.batch()
    before, generators = {name: value.clone() for name, value in planner.state_dict().items()}, []
    for training, seed in ((False, 1), (False, 2), (True, 3)):
        planner.train(training)
        modes = {name: module.training for name, module in planner.named_modules()}
        torch.manual_seed(seed)
        respond(fixture, planner, batch)
        changed = [name or "planner" for name, module in planner.named_modules() if module.training != modes[name]]
        require(not changed, "A call changes the mode of modules.", got=", ".join(changed), look="train() and eval()")
        generators.append(torch.get_rng_state())
        if not training:
            changed = [name for name, value in planner.state_dict().items() if not torch.equal(value, before[name])]
            require(
                not changed, "Acting changes the state that is saved.", got=", ".join(changed), look="self.training"
            )
    require(
        not torch.equal(generators[0], generators[1]),
        "A call seeds the global generator: all that is drawn after it is the same each time.",
        look="torch.manual_seed; a torch.Generator of its own draws without harm",
    )


@contract("what it was given before changes nothing", *PROTOCOLS)
def no_memory(fixture: Fixture) -> None:
    used, fresh, batch = fixture.build_ready(), fixture.build_ready(), fixture.batch(seed=3)
    with torch.no_grad():
        respond(fixture, used, fixture.batch())
        first, second = respond(fixture, fresh, batch), respond(fixture, used, batch)
    require_equal(
        first,
        second,
        "{name} differs by {by} after other inputs of the same shape.",
        look="what is cached or counted from one call to the next",
    )


@contract("acting without gradients (torch.inference_mode)", *PROTOCOLS)
def inference_mode(fixture: Fixture) -> None:
    expected = responses(fixture)
    with torch.inference_mode():
        inferred = respond(fixture, fixture.planner, fixture.batch())
    require_equal(expected, inferred, "{name} differs by {by} under torch.inference_mode, as policies act.")


@contract("what it samples carries no gradient", "sampler", "planner")
def no_gradient(fixture: Fixture) -> None:
    for name, value in respond(fixture, fixture.planner, fixture.batch()).items():
        detached = "actions" in name or not value.requires_grad
        require(detached, f"{name} carries a gradient: plans would keep memory.", look="@torch.no_grad()")


@contract("one window does not depend on the others of its batch", *PROTOCOLS)
def independent_of_batch(fixture: Fixture) -> None:
    own_way = fixture.kind == "prior" and not isinstance(fixture.component, DRAWN_BY)  # predicts from noise
    if own_way or (fixture.kind in ("sampler", "planner") and _is_random(fixture)):
        raise NotApplicableError("random draws differ with the place in the batch")
    batched = {name: value[2:3] for name, value in responses(fixture).items()}
    with torch.no_grad():
        alone = respond(fixture, fixture.planner, select(fixture.batch(), slice(2, 3)))
    require_equal(
        batched,
        alone,
        "{name} of the third window differs by {by} when it is computed alone.",
        look="sums, means and normalizations over the batch axis",
    )


@contract("works for data without goals", "conditioner", "prior", "decoder", "critic", "return_target", "planner")
def without_goals(fixture: Fixture) -> None:
    try:
        planner = fixture.build_ready(goals=False)
    except ConfigError as refusal:
        raise NotApplicableError(f"it is refused: {refusal.rule}") from refusal
    with torch.no_grad():
        respond(fixture, planner, fixture.batch(goals=False))


@contract("makes its tensors on the device of its inputs", *PROTOCOLS)
def device_of_inputs(fixture: Fixture) -> None:
    expected, batch = responses(fixture), fixture.batch()
    problem = ContractError(
        "A tensor is made without saying on which device: on a GPU this fails.",
        expected="device=x.device, x.new_zeros(…), torch.zeros_like(x), or a buffer",
        look="torch.zeros, torch.arange, torch.tensor and their like",
    )
    try:
        with torch.no_grad(), torch.device("meta"):  # a default device unlike that of the inputs, without values
            on_meta = respond(fixture, fixture.planner, batch)
    except RuntimeError as error:
        if "meta" not in str(error).lower() and "device" not in str(error).lower():
            raise
        raise problem from error
    if any(value.device != expected[name].device for name, value in on_meta.items()):
        raise problem


@contract("its state dict is complete", *PROTOCOLS)
def complete_state(fixture: Fixture) -> None:
    other = fixture.build_ready(seed=5)
    try:
        other.load_state_dict(fixture.planner.state_dict())
    except RuntimeError as error:
        raise ContractError(
            "A planner that is built anew does not load the state of a trained one.", got=" ".join(str(error).split())
        ) from error
    with torch.no_grad():
        loaded = respond(fixture, other, fixture.batch())
    require_equal(
        responses(fixture),
        loaded,
        "{name} differs by {by} once the state is loaded into a planner that is built anew.",
        look="attributes that are not registered as buffers",
    )


@contract("training reaches all of its weights", *PROTOCOLS)
def weights_are_trained(fixture: Fixture) -> None:
    planner = fixture.build_ready()
    part = fixture.part(planner)
    untrained = dict(part.named_parameters()) if isinstance(part, nn.Module) else {}
    if fixture.kind == "encoder":  # whose backbone may be frozen
        trained = {id(p) for p in part.trained_parameters()}
        untrained = {name: p for name, p in untrained.items() if id(p) in trained}
    if not untrained:
        raise NotApplicableError("it has no weights")
    for stage in all_stages(planner):
        if stage.parameters:
            stage.begin(planner)
            stage.loss(fixture.batch(32))["total"].backward()
            listed = {id(p) for p in stage.trained}
            untrained = {
                name: p for name, p in untrained.items() if p.grad is None or not p.grad.any() or id(p) not in listed
            }
    with torch.no_grad():  # as below: with gradients a recurrent network may round otherwise
        expected = respond(fixture, planner.eval(), fixture.batch()) if untrained else {}
    for name, p in untrained.items():  # an option may leave a weight unused, which does no harm
        require(
            not _affects_responses(fixture, planner, p, expected),
            f"The weight '{name}' changes the output, and no stage of training reaches it (gradient absent or 0).",
            look="detach(), no_grad(), products with 0, and the parameters that stages() and the decoder list",
        )


@torch.no_grad()
def _affects_responses(fixture: Fixture, planner: Any, parameter: Tensor, expected: Mapping[str, Tensor]) -> bool:
    original = parameter.clone()
    parameter.add_(torch.randn_like(parameter))
    changed = respond(fixture, planner, fixture.batch())
    parameter.copy_(original)
    return any(not torch.equal(value, changed[name]) for name, value in expected.items())


def _is_random(fixture: Fixture) -> bool:
    with torch.no_grad():
        first, second = (respond(fixture, fixture.planner, fixture.batch(), seed=seed) for seed in (0, 1))
    return any(not torch.equal(first[name], second[name]) for name in first)


def responses(fixture: Fixture) -> dict[str, Tensor]:
    """What the component in the shared planner returns, without gradients."""
    with torch.no_grad():
        return respond(fixture, fixture.planner, fixture.batch())


def require_equal(
    expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], problem: str, *, look: str | None = None
) -> None:
    for name, value in expected.items():
        other = actual[name]
        require(other.shape == value.shape, problem.format(name=name, by="its shape"), got=tuple(other.shape))
        if not torch.allclose(value.float(), other.float(), atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True):
            difference = f"{float((value.float() - other.float()).abs().max()):.2g}"
            raise ContractError(problem.format(name=name, by=difference), look=look)
