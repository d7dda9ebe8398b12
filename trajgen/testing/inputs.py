"""What views, schedules, conditioners and return targets promise: what a plan is made of and asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, spec
from trajgen.core.schedule import ScaleSchedule
from trajgen.testing.bench import Bench
from trajgen.testing.contract import ContractError, NotApplicableError, contract
from trajgen.testing.shapes import check_losses, check_shape

LENGTHS = (1, 2, 3, 4, 7, 8, 16)
ODD = (0, -1, 1, 1000)
"""Values that a schedule's options may be given by mistake."""


@contract("features of every point", "view")
def features(bench: Bench) -> None:
    view, batch = bench.component, bench.batch()
    check_shape("the features", view(batch), (*batch.states.shape[:2], view.features), "(B, T, features)")
    widths = [cut.stop - cut.start for cut in view.slices.values()]
    covered = sorted(i for cut in view.slices.values() for i in range(cut.start, cut.stop))
    if covered != list(range(view.features)):
        raise ContractError(
            "`slices` says where each field lies, and each feature belongs to one field.",
            expected=f"slices that cover 0 to {view.features}",
            got=f"{view.slices}, of widths {widths}",
            look="__init__, where slices and features are set",
        )


@contract("read() finds the fields again", "view")
def read(bench: Bench) -> None:
    view, batch = bench.component, bench.batch()
    x = view(batch)
    fields = {
        "return": batch.returns.unsqueeze(-1),
        "state": batch.states,
        "action": batch.actions.flatten(2),
        "reward": batch.rewards.unsqueeze(-1),
    }
    for name in view.slices:
        found, first = view.read(x, name), view.read(x[:, 0], name)
        if found is None or not torch.equal(found[:, 0], first):
            raise ContractError(
                f"read(x, '{name}') reads any (..., D), one point as well as whole windows.",
                expected="(..., width of the field)",
                got=None if found is None else tuple(found.shape),
                look="read(): index the last axis alone, x[..., slice]",
            )
        if name in fields and (found.shape != fields[name].shape or not torch.allclose(found, fields[name])):
            raise ContractError(
                f"read() does not give the {name} that the view put there.",
                expected=f"batch.{name}, as (B, T, {fields[name].shape[-1]})",
                got=f"other values, {tuple(found.shape)}",
                look="read() and slices, which follow the order of the features",
            )
    for absent in (set(fields) | {"no_such_field"}) - set(view.slices):
        if view.read(x, absent) is not None:
            raise ContractError(f"The view has no {absent}.", expected="None", got="a tensor", look="read()")


@contract("lengths that suit a latent", "schedule")
def lengths(bench: Bench) -> None:
    made = bench.component
    if not isinstance(made, ScaleSchedule):
        raise ContractError(
            "A schedule is a function from N to scales.", expected="a ScaleSchedule", got=type(made).__name__
        )
    n = bench.of(bench.planner, "tokenizer").latent_length
    if made.lengths[-1] != n and made.tokens != n:
        raise ContractError(
            "The scales neither end at the latent's length nor add up to it.",
            expected=f"a last scale of {n} (a pyramid), or lengths that add up to {n} (a row)",
            got=str(made),
            look="the lengths that it returns",
        )


@contract("a schedule or a refusal for every length and option", "schedule")
def refusals(bench: Bench) -> None:
    node = bench.composition.nodes["schedule"]
    integers = [o.name for o in spec("schedule", bench.name).options if type(o.default) is int]
    tried: list[tuple[int, dict[str, Any]]] = [(n, {}) for n in LENGTHS]
    tried += [(8, {name: value}) for name in integers for value in ODD]
    for length, options in tried:
        try:
            made = build("schedule", {**node, **options}, length=length)
        except ConfigError as refusal:
            if not (refusal.expected and refusal.got and refusal.fix):
                raise ContractError(
                    f"The refusal of a length of {length} with {options or 'its options'} says too little.",
                    expected="ConfigError(rule, expected=…, got=…, fix=…)",
                    got=str(refusal),
                ) from refusal
        else:
            again = build("schedule", {**node, **options}, length=length)
            if tuple(made) != tuple(again):
                raise ContractError("The same length gives another schedule.", expected=str(made), got=str(again))


@contract("an embedding per scale, or one for all", "conditioner")
def embedding(bench: Bench) -> None:
    conditioner, tokenizer = bench.component, bench.of(bench.planner, "tokenizer")
    if not isinstance(getattr(conditioner, "width", None), int):
        raise ContractError(
            "Whoever reads the embedding asks for its width.", expected="an int attribute `width`", got="none"
        )
    found = conditioner(bench.cond())
    own_scale = tokenizer is not None and found.ndim == 3 and found.shape[1] != 1
    scales = tokenizer.schedule.scales if own_scale else 1
    check_shape("the embedding", found, (6, scales, conditioner.width), "(B, K or 1, width)")


@contract("what is withheld is not looked at", "conditioner")
@torch.no_grad()
def unconditional(bench: Bench) -> None:
    conditioner, cond = bench.component, bench.cond()
    other = replace(cond, returns=cond.returns + 1)
    if torch.equal(conditioner(cond), conditioner(other)):
        raise NotApplicableError("it does not look at the return")
    without = conditioner(cond.unconditional())
    if not torch.equal(without, conditioner(other.unconditional())):
        raise ContractError(
            "A return that is withheld still changes the embedding.",
            expected="the same embedding for all returns where cond.cond_mask is false",
            got="another one",
            look="forward(): cond.cond_mask (B,) is false where guidance or dropout withholds the condition"
            "; None means given",
        )
    some = torch.arange(len(cond)) % 2 == 0
    mixed = torch.where(some[:, None, None], conditioner(cond), without)
    if not torch.allclose(conditioner(replace(cond, cond_mask=some)), mixed, atol=1e-6):
        raise ContractError(
            "Withholding some conditions of a batch changes others.",
            expected="each window as its own cond.cond_mask says",
            got="another embedding",
            look="forward(): torch.where(cond.cond_mask[:, None], …)",
        )


@contract("one return for each state", "return_target")
@torch.no_grad()
def returns(bench: Bench) -> None:
    target, batch = bench.component, bench.batch()
    for remaining in (torch.full((6,), torch.nan), torch.linspace(-1, 1, 6)):
        asked = target(batch.states[:, 0], batch.goals, remaining)
        check_shape("the return to ask for", asked, (6,), "(B,)")
        if not torch.isfinite(asked).all():
            raise ContractError(
                "The return to ask for is not a number.",
                expected="a finite return, also where `remaining` is NaN: at an episode's first plan",
                got=asked.tolist(),
                look="forward(): torch.where(remaining.isnan(), …)",
            )


@contract("losses that can be trained", "return_target")
def target_losses(bench: Bench) -> None:
    losses = bench.component.loss(bench.batch())
    check_losses(losses, total=False)
    if list(bench.component.parameters()) and not losses:
        raise ContractError(
            "A target with weights has something to learn.", expected="losses", got="none", look="loss()"
        )
