"""What decoders, action heads and samplers promise: from codes to a trajectory and to actions."""

from __future__ import annotations

import torch
from torch import Tensor

from trajgen.core.types import Cond, KnownCodes, Plan
from trajgen.testing.bench import Bench
from trajgen.testing.contract import ContractError, NotApplicableError, contract
from trajgen.testing.responses import offsets, seen
from trajgen.testing.shapes import check_shape


@contract("a trajectory of the right shape", "decoder")
def trajectory(bench: Bench) -> None:
    decoder, known = bench.component, bench.known(bench.planner, bench.batch())
    for what, value in (
        ("the trajectory", decoder(known.latent, known.cond)),
        ("base()", decoder.base(known.latent, known.cond)),
    ):
        check_shape(what, value, tuple(known.x.shape), "(B, T, D)")
    other = known.latent + torch.randn_like(known.latent)
    if torch.equal(decoder(known.latent, known.cond), decoder(other, known.cond)):
        raise ContractError("Another latent decodes to the same trajectory.", expected="another one", look="forward()")


@contract("each weight is base or adapter", "decoder")
def partition(bench: Bench) -> None:
    decoder = bench.component
    names = {id(p): name for name, p in decoder.named_parameters()}
    base, adapters = ({id(p) for p in some} for some in (decoder.base_parameters(), decoder.adapter_parameters()))
    wrong = {
        "in both lists": base & adapters,
        "in neither list": set(names) - base - adapters,
        "not the decoder's": (base | adapters) - set(names),
    }
    for what, which in wrong.items():
        if which:
            raise ContractError(
                "base_parameters() train with the tokenizer, adapter_parameters() with the prior.",
                expected="each weight in one of the two lists",
                got=f"{', '.join(names.get(i, 'a weight of another part') for i in which)}: {what}",
                look="base_parameters() and adapter_parameters()",
            )


@contract("adapters start without effect, and are left out of base()", "decoder")
@torch.no_grad()
def adapters(bench: Bench) -> None:
    planner = bench.build(shaken=False).eval()
    decoder, ready = bench.of(planner), bench.known(bench.planner, bench.batch())
    base = decoder.base(ready.latent, ready.cond)
    by = float((decoder(ready.latent, ready.cond) - base).abs().max())
    if not by <= 1e-6:
        raise ContractError(
            f"Before any training of the adapters, the trajectory differs from base() by {by:.2g}.",
            expected="adapters whose last layer starts at zero",
            look="__init__(), where the adapters are made, or base(), which leaves them out",
        )
    if not decoder.adapter_parameters():
        raise NotApplicableError("it has no adapters")
    for parameter in decoder.adapter_parameters():
        parameter.add_(0.3)
    if not torch.equal(decoder.base(ready.latent, ready.cond), base):
        raise ContractError("base() uses adapters.", expected="base parameters alone", look="base()")
    other = ready.cond.map(lambda v: v + 1 if v.is_floating_point() else v)
    if torch.allclose(decoder(ready.latent, ready.cond), decoder(ready.latent, other)):
        raise ContractError("The adapters do not read the condition.", expected="another trajectory", look="forward()")


@contract("gradients flow through it to the latent", "decoder")
def gradient(bench: Bench) -> None:
    known = bench.known(bench.planner, bench.batch())
    latent = known.latent.clone().requires_grad_()
    bench.component(latent, known.cond).square().sum().backward()
    if latent.grad is None or not float(latent.grad.abs().max()) > 0:
        raise ContractError(
            "No gradient reaches the latent: the tokenizer could not learn, nor L_cond reach the prior.",
            expected="a gradient",
            got="none",
            look="forward(): detach() and no_grad()",
        )


@contract("says whether it reads the trajectory", "action")
def reads_trajectory(bench: Bench) -> None:
    if not isinstance(getattr(bench.component, "reads_trajectory", None), bool):
        raise ContractError(
            "Plans are decoded only for action heads that need it.",
            expected="reads_trajectory = True or False",
            got=repr(getattr(bench.component, "reads_trajectory", "no such attribute")),
            look="the class",
        )


@contract("an action depends on its own state and offset alone", "action")
@torch.no_grad()
def own_offset(bench: Bench) -> None:
    action, known = bench.component, bench.known(bench.planner, bench.batch())
    plan, states, at = seen(action, known), known.batch.chunk_states, offsets(known)
    together = action(plan, states, at)
    check_shape("the actions", together, tuple(known.batch.chunk_actions.shape), "(B, H, A)")
    for h in range(at.shape[1]):
        alone = action(plan, states[:, h : h + 1], at[:, h : h + 1])
        check_shape("one action", alone, (len(known.batch), 1, together.shape[-1]), "(B, 1, A)")
        by = float((alone[:, 0] - together[:, h]).abs().max())
        if not by <= 1e-4:
            raise ContractError(
                f"The action at offset {h} is another, by {by:.2g}, when it is asked for alone, as policies do.",
                expected="actions that follow from the plan, states[:, h] and offsets[:, h]",
                look="forward(): the offset says which step of the plan it is, not the place in the row",
            )
    if not torch.allclose(action(plan, states.flip(1), at.flip(1)).flip(1), together, atol=1e-4):
        raise ContractError(
            "The order in which actions are asked for changes them.", expected="the same", look="forward()"
        )


@contract("actions are read off the plan, and can be learnt", "action")
def read_off(bench: Bench) -> None:
    action, known = bench.component, bench.known(bench.planner, bench.batch())
    plan, states, at = seen(action, known), known.batch.chunk_states, offsets(known)
    trajectory = None if plan.trajectory is None else plan.trajectory * -1.5 + 1
    other = Plan(plan.codes, plan.latent + torch.randn_like(plan.latent), trajectory)
    found = action(plan, states, at)
    if torch.allclose(found, action(other, states, at)):
        raise ContractError(
            "Another plan leads to the same actions.", expected="actions that follow the plan", look="forward()"
        )
    weights = list(action.parameters()) if hasattr(action, "parameters") else []
    if weights and not found.requires_grad:
        raise ContractError(
            "No gradient reaches its weights.", expected="a gradient", look="forward(): detach(), no_grad()"
        )


@contract("codes that the tokenizer knows", "sampler")
def valid_codes(bench: Bench) -> None:
    tokenizer = bench.of(bench.planner, "tokenizer")
    for rng in (torch.Generator().manual_seed(0), None):
        codes = _drawn(bench, bench.cond(8), rng)
        tokens = tokenizer.schedule.tokens
        if tokenizer.vocabulary is None:
            check_shape("the codes", codes, (8, tokens, tokenizer.code_dim), "(B, L, C)")
            continue
        check_shape("the codes", codes, (8, tokens), "(B, L)")
        if codes.dtype != torch.int64 or int(codes.min()) < 0 or int(codes.max()) >= tokenizer.vocabulary:
            raise ContractError(
                "A sampler draws token ids of the vocabulary.",
                expected=f"int64 from 0 to {tokenizer.vocabulary - 1}",
                got=f"{codes.dtype} from {codes.min()} to {codes.max()}",
                look="__call__()",
            )


@contract("draws with rng: a seed repeats them", "sampler")
def seeded(bench: Bench) -> None:
    cond, found = bench.cond(16), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found.append(_drawn(bench, cond, torch.Generator().manual_seed(3)))
    if not torch.equal(*found):
        raise ContractError(
            "The same seed draws other codes: evaluations could not be repeated.",
            expected="every random number to come from rng",
            got=f"{int((found[0] != found[1]).sum())} codes that differ",
            look="__call__(): generator=rng in torch.rand, multinomial, exponential_ and their like",
        )


@contract("codes that are given stay as they are", "sampler")
def known_codes(bench: Bench) -> None:
    tokenizer, known = bench.of(bench.planner, "tokenizer"), bench.known(bench.planner, bench.batch())
    free = _drawn(bench, known.cond, torch.Generator().manual_seed(0))
    other = known.codes if tokenizer.vocabulary is None else (free + 1) % tokenizer.vocabulary
    first = tokenizer.known_codes(known.cond)
    masks = [torch.ones_like(other, dtype=torch.bool)]
    masks.append(masks[0].clone())
    masks[1][:, other.shape[1] // 2 :] = False
    for mask in masks:
        settled = other if first is None else first.into(other)
        codes = _drawn(bench, known.cond, torch.Generator().manual_seed(0), KnownCodes(settled, mask))
        if not torch.allclose(codes[mask].float(), settled[mask].float(), atol=1e-5):
            raise ContractError(
                f"{int((codes[mask] != settled[mask]).sum())} codes that were given come out changed.",
                expected="codes equal to known_codes.codes where known_codes.mask is true",
                look="__call__(): known_codes.into(codes, span) puts them in place, before the next scale",
            )


def _drawn(bench: Bench, cond: Cond, rng: torch.Generator | None, known_codes: KnownCodes | None = None) -> Tensor:
    planner = bench.planner
    prior, tokenizer = bench.of(planner, "prior"), bench.of(planner, "tokenizer")
    codes: Tensor = bench.component(prior, tokenizer, cond, rng, known_codes).codes
    return codes
