"""What components leave alone: their inputs, the other windows of a batch, and other components of their kind."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.assemble import all_stages
from trajgen.core.protocols import Autoregressive, HasActionLoss
from trajgen.core.types import Batch, Cond, KnownCodes
from trajgen.testing.common import acting_plan, chunk_offsets, other_fields, require_equal, respond, responses
from trajgen.testing.contract import NotApplicableError, contract, require
from trajgen.testing.fixture import Example, Fixture, input_spans, perturb, select
from trajgen.testing.registration import PROTOCOLS


@contract("leaves its inputs as they are", *PROTOCOLS)
def inputs_unchanged(fixture: Fixture) -> None:
    planner, batch = fixture.other, fixture.batch()
    example = None if fixture.kind in ("encoder", "planner") else fixture.example(planner, batch)
    inputs = {**_named_tensors(batch, "batch"), **_named_tensors(example, "example")}
    if example is not None and fixture.kind == "sampler":
        mask = torch.zeros_like(example.codes, dtype=torch.bool)
        mask[:, :1] = True
        known_codes = KnownCodes(example.codes.clone(), mask)
        inputs |= _named_tensors(known_codes, "known_codes")
        prior, tokenizer = fixture.part(planner, "prior"), fixture.part(planner, "tokenizer")
        versions = {name: tensor._version for name, tensor in inputs.items()}
        fixture.part(planner)(prior, tokenizer, example.cond, torch.Generator().manual_seed(0), known_codes)
    else:
        versions = {name: tensor._version for name, tensor in inputs.items()}
    with torch.no_grad():
        respond(fixture, planner, batch, example=example)
        if example is not None and fixture.kind == "tokenizer":
            _lay_out(fixture.part(planner).layout, example.vectors)
    _train(fixture, planner, example, batch)
    planner.eval().requires_grad_(True)
    changed = [name for name, tensor in inputs.items() if tensor._version != versions[name]]
    require(
        not changed,
        f"It changes in place what it is given: {', '.join(changed)}. Others read the same tensor.",
        expected="a new tensor",
        look="methods that end in _ (add_, copy_), x[…] = …, x += …",
    )


@contract("each window follows from its own inputs, in training too", *PROTOCOLS)
@torch.no_grad()
def own_rows(fixture: Fixture) -> None:
    planner, batch = fixture.other, fixture.batch(padded=False)
    state = {name: value.clone() for name, value in planner.state_dict().items()}
    try:
        for training in (True, False):
            planner.train(training)
            results = []
            for each in (batch, _with_other_rows(batch, 2)):
                planner.load_state_dict(state)  # a call in training may move it on, as spectral normalization does
                torch.manual_seed(0)
                results.append({name: value[2] for name, value in respond(fixture, planner, each).items()})
            first, second = results
            require_equal(
                first,
                second,
                "{name} of the third window differs by {by} when the other windows change"
                + (" in training." if training else "."),
                look="batch normalization; sums, means and normalizations over the batch axis",
            )
    finally:
        planner.eval()


@contract("two of them share no state", *PROTOCOLS)
def no_shared_state(fixture: Fixture) -> None:
    expected = responses(fixture)
    with torch.no_grad():
        respond(fixture, fixture.other, fixture.batch(seed=2))
    require_equal(
        expected,
        responses(fixture),
        "{name} differs by {by} once another one of its kind, with other weights, was used.",
        look="attributes of the class, of the module or of a default argument, which all of its instances share",
    )


@contract("no hidden tensors: it moves to another device as a whole")
def hidden_tensors(fixture: Fixture) -> None:
    registered = {id(t) for t in (*fixture.planner.parameters(), *fixture.planner.buffers())}
    part = fixture.component
    owners = part.modules() if isinstance(part, nn.Module) else [part] if hasattr(part, "__dict__") else []
    for owner in owners:
        shared = {
            key: value for each in type(owner).__mro__ if each is not nn.Module for key, value in vars(each).items()
        }
        for attribute, value in {**shared, **vars(owner)}.items():
            tensors = [] if attribute in ("_parameters", "_buffers", "_modules") else _tensors(value)
            for tensor in tensors:
                require(
                    id(tensor) in registered,
                    f"The tensor in '{attribute}' of {type(owner).__name__} is neither a parameter nor a buffer: "
                    "it stays behind on another device, and is not in the checkpoint.",
                    expected=f'self.register_buffer("{attribute}", …), nn.Parameter, or an nn.ModuleList',
                )


@contract("each condition has a plan of its own", "sampler", "planner")
@torch.no_grad()
def own_condition(fixture: Fixture) -> None:
    planner = perturb(fixture.build_ready(), 0.5).eval()
    batch = fixture.batch(8, padded=False)
    other = _with_other_rows(batch, 0)

    def differs(rows: slice, first_plan: int) -> bool:
        before, after = (respond(fixture, planner, select(each, rows)) for each in (batch, other))
        plans = [name for name in before if "actions" not in name]  # which depend on the state they are taken in too
        return any(not torch.equal(before[name][first_plan:], after[name][first_plan:]) for name in plans)

    if not any(differs(slice(i, i + 1), 0) for i in (1, 2, 3)):
        raise NotApplicableError("in this composition nothing is conditioned on")
    require(
        differs(slice(8), 1),
        "The conditions of a batch but the first do not change their plans.",
        look="how conditions are repeated, indexed or expanded",
    )
    cond, conditioner = batch.condition(), fixture.part(planner, "conditioner")
    if fixture.kind == "planner" and not _is_given_fields(fixture, planner, cond):
        return
    before = _drawn(fixture, planner, cond)
    for name, changed in other_fields(cond).items():
        if conditioner is not None and not torch.equal(conditioner(cond), conditioner(changed)):
            require(
                not torch.equal(before, _drawn(fixture, planner, changed)),
                f"Another {name} changes the conditioner's embedding, and no plan.",
                look="the condition that the prior is given",
            )


def _is_given_fields(fixture: Fixture, planner: Any, cond: Cond) -> bool:
    """Whether a planner gives its conditioner fields as wide as those of the data, not embeddings that it learns."""
    conditioner, others = fixture.part(planner, "conditioner"), list[Tensor]()

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for each in inputs:
            if isinstance(each, Cond):
                pairs = ((each.state, cond.state), (each.goal, cond.goal))
                others.extend(x for x, y in pairs if x is not None and y is not None and x.shape[1:] != y.shape[1:])

    if isinstance(conditioner, nn.Module):
        hook = conditioner.register_forward_pre_hook(record)
        _drawn(fixture, planner, cond)
        hook.remove()
    return not others


def _drawn(fixture: Fixture, planner: Any, cond: Cond) -> Tensor:
    """The latents (B, N, C) of plans for some conditions, always with the same random numbers."""
    rng = torch.Generator().manual_seed(0)
    if fixture.kind == "planner":
        plan = planner.plan(cond, rng)
    else:
        prior, tokenizer = fixture.part(planner, "prior"), fixture.part(planner, "tokenizer")
        plan = fixture.part(planner)(prior, tokenizer, cond, rng, tokenizer.known_codes(cond))
    latent: Tensor = plan.latent
    return latent


@contract("what is drawn follows from known codes", "sampler")
@torch.no_grad()
def follows_known_codes(fixture: Fixture) -> None:
    planner = perturb(fixture.build_ready(), 0.5).eval()
    prior, tokenizer = fixture.part(planner, "prior"), fixture.part(planner, "tokenizer")
    example = fixture.example(planner, fixture.batch(16, padded=False))
    cond, half = example.cond, example.codes.shape[1] // 2
    mask = torch.zeros_like(example.codes, dtype=torch.bool)
    mask[:, :half] = True
    from_cond, rows = tokenizer.known_codes(cond), []
    for shift in (0, 1):
        codes = (
            example.codes + shift if tokenizer.vocabulary is None else (example.codes + shift) % tokenizer.vocabulary
        )
        codes = codes if from_cond is None else from_cond.into(codes)
        rng = torch.Generator().manual_seed(0)
        rows.append(fixture.part(planner)(prior, tokenizer, cond, rng, KnownCodes(codes, mask)).codes)
    if isinstance(prior, Autoregressive):
        second = torch.cat([rows[1][:, :half], rows[0][:, half:]], dim=1)
        forced = [
            prior.logits(tokenizer.layout.inputs(tokenizer.vectors(codes)), cond)[:, half:]
            for codes in (rows[0], second)
        ]
        if tokenizer.vocabulary is not None:
            forced = [logits.argmax(-1) for logits in forced]
        if torch.equal(*forced):
            raise NotApplicableError("in this composition no code follows from the ones before it")
    require(
        half == 0 or not torch.equal(rows[0][:, half:], rows[1][:, half:]),
        "Other known codes lead to the same codes after them: they are put in once all is drawn.",
        expected="known_codes.into(codes, span) before the next scale is drawn",
    )


def _lay_out(layout: Any, vectors: Tensor) -> None:
    """Puts code vectors into a latent step by step; each partial latent must stay as it was."""
    layout.inputs(vectors), layout.latent(vectors)
    partial_latent = layout.start(len(vectors))
    for k, span in enumerate(layout.schedule.spans):
        version = partial_latent._version
        if k:
            layout.scale_input(partial_latent, k)
        extended = layout.extend(partial_latent, vectors[:, span], k)
        require(partial_latent._version == version, "A partial latent is changed in place.", look="layout.extend()")
        partial_latent = extended


@torch.no_grad()
def _step(prior: Autoregressive, lengths: tuple[int, ...], example: Example) -> None:
    """Predicts all scales of an example one after the other."""
    state = prior.start(example.cond)
    for k, _, inputs in input_spans(lengths):
        prior.step(example.inputs[:, inputs] if k else None, k, state)


def _train(fixture: Fixture, planner: Any, example: Example | None, batch: Batch) -> None:
    """Computes the losses of the component, or of all stages of a planner."""
    part = fixture.part(planner)
    if example is None:
        for stage in all_stages(planner):
            if stage.parameters:
                stage.begin(planner)
                stage.loss(batch)
        return
    planner.train()
    match fixture.kind:
        case "tokenizer":
            part.loss(batch, example.x, lambda latent: example.x + latent.mean())
        case "prior":
            part(example.codes, example.inputs, example.cond)
            if isinstance(part, Autoregressive):
                _step(part, fixture.part(planner, "tokenizer").schedule.lengths, example)
        case "return_target" | "critic":
            part.loss(batch)
        case "action" if isinstance(part, HasActionLoss):
            plan, offsets = acting_plan(part, example), chunk_offsets(example)
            part.loss(plan, batch.chunk_states, offsets, batch.chunk_actions)


def _with_other_rows(batch: Batch, row: int) -> Batch:
    """The batch with all windows but one replaced by others."""

    def changed(values: Tensor) -> Tensor:
        if values.dtype == torch.uint8:  # of images
            return torch.cat([255 - values[:row], values[row : row + 1], 255 - values[row + 1 :]])
        if not values.is_floating_point():
            return values
        keep = (torch.arange(len(values)) == row).view(-1, *[1] * (values.ndim - 1))
        return torch.where(keep, values, 1.5 - 2 * values)

    changes: Any = {f.name: changed(v) for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
    return replace(batch, **changes)


def _named_tensors(record: Any, name: str) -> dict[str, Tensor]:
    """The tensors in a record of tensors and records, by their dotted names."""
    if isinstance(record, Tensor):
        return {name: record}
    if not is_dataclass(record):
        return {}
    return {
        key: tensor
        for f in fields(record)
        if f.name != "full_batch"
        for key, tensor in _named_tensors(getattr(record, f.name), f"{name}.{f.name}").items()
    }


def _tensors(value: Any, visited: set[int] | None = None) -> Iterator[Tensor]:
    """The tensors in a value: in containers, in modules, and in what functions and callable objects hold on to."""
    visited = set() if visited is None else visited
    if id(value) in visited:
        return
    visited.add(id(value))
    parts: Iterable[Any] = ()
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple, set)):
        parts = value
    elif isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
    elif inspect.ismethod(value):
        parts = (value.__self__,)
    elif inspect.isfunction(value):
        cells = [cell for cell in value.__closure__ or () if not _is_empty(cell)]
        parts = (*(cell.cell_contents for cell in cells), *(value.__defaults__ or ()), value.__kwdefaults__ or {})
    elif callable(value) and not inspect.isclass(value) and hasattr(value, "__dict__"):
        parts = vars(value).values()
    for part in parts:
        yield from _tensors(part, visited)


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True
