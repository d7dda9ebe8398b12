"""What decoders, action heads and samplers promise: from codes to a trajectory and to actions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from trajgen.core.protocols import HasActionLoss
from trajgen.core.types import Cond, KnownCodes
from trajgen.testing.common import acting_plan, chunk_offsets
from trajgen.testing.contract import NotApplicableError, contract, require, require_shape
from trajgen.testing.fixture import Fixture
from trajgen.testing.tokenizers import require_token_ids


@contract("a trajectory of the right shape", "decoder")
def trajectory(fixture: Fixture) -> None:
    decoder, example = fixture.component, fixture.example()
    decoded = decoder(example.latent, example.cond)
    for name, value in (("the trajectory", decoded), ("base()", decoder.base(example.latent, example.cond))):
        require_shape(name, value, tuple(example.x.shape), "(B, T, D)")
    other = decoder(example.latent + torch.randn_like(example.latent), example.cond)
    require(not torch.equal(decoded, other), "Another latent decodes to the same trajectory.", look="forward()")


@contract("each weight is base or adapter", "decoder")
def partition(fixture: Fixture) -> None:
    decoder = fixture.component
    names = {id(p): name for name, p in decoder.named_parameters()}
    base, adapters = ({id(p) for p in listed} for listed in (decoder.base_parameters(), decoder.adapter_parameters()))
    violations = {
        "in both lists": base & adapters,
        "in neither list": set(names) - base - adapters,
        "not the decoder's": (base | adapters) - set(names),
    }
    for violation, weights in violations.items():
        require(
            not weights,
            "base_parameters() train with the tokenizer, adapter_parameters() with the prior: each weight in one.",
            got=f"{', '.join(names.get(i, 'a weight of another part') for i in weights)}: {violation}",
        )


@contract("adapters start without effect, and are left out of base()", "decoder")
@torch.no_grad()
def adapters(fixture: Fixture) -> None:
    decoder, example = fixture.part(fixture.build(perturbed=False).eval()), fixture.example()
    base = decoder.base(example.latent, example.cond)
    difference = float((decoder(example.latent, example.cond) - base).abs().max())
    require(
        difference <= 1e-6,
        f"Before any training of the adapters, the trajectory differs from base() by {difference:.2g}.",
        expected="adapters whose last layer starts at zero",
    )
    if not decoder.adapter_parameters():
        raise NotApplicableError("it has no adapters")
    for parameter in decoder.adapter_parameters():
        parameter.add_(0.3)
    require(torch.equal(decoder.base(example.latent, example.cond), base), "base() uses adapters.", look="base()")
    other = example.cond.map(lambda value: value + 1 if value.is_floating_point() else value)
    same = torch.allclose(decoder(example.latent, example.cond), decoder(example.latent, other))
    require(not same, "The adapters do not read the condition.", look="forward()")


@contract("gradients flow through it to the latent", "decoder")
def gradient(fixture: Fixture) -> None:
    example = fixture.example()
    latent = example.latent.clone().requires_grad_()
    fixture.component(latent, example.cond).square().sum().backward()
    require(
        latent.grad is not None and bool((latent.grad.abs().amax((0, 2)) > 0).all()),
        "No gradient reaches the latent, or some of it: the tokenizer could not learn, nor L_cond reach the prior.",
        look="forward(): detach(), no_grad(), products with 0, and parts of the latent that are left out",
    )


@contract("an action depends on its own state and offset alone", "action")
@torch.no_grad()
def offset_independence(fixture: Fixture) -> None:
    action, example = fixture.component, fixture.example()
    plan, states, offsets = acting_plan(action, example), example.batch.chunk_states, chunk_offsets(example)
    actions = action(plan, states, offsets)
    require_shape("the actions", actions, tuple(example.batch.chunk_actions.shape), "(B, H, A)")
    for h in range(offsets.shape[1]):
        alone = action(plan, states[:, h : h + 1], offsets[:, h : h + 1])
        require_shape("one action", alone, (len(actions), 1, actions.shape[-1]), "(B, 1, A)")
        difference = float((alone[:, 0] - actions[:, h]).abs().max())
        require(
            difference <= 1e-4,
            f"The action at offset {h} differs by {difference:.2g} when it is computed alone, as policies do.",
            look="forward(): the offset is the step of the plan, not the place in the row",
        )
    flipped = action(plan, states.flip(1), offsets.flip(1)).flip(1)
    require(torch.allclose(flipped, actions, atol=1e-4), "The order of the offsets changes the actions.")


@contract("actions are read off the plan, and can be learnt", "action")
def read_off(fixture: Fixture) -> None:
    action, example = fixture.component, fixture.example()
    plan, states, offsets = acting_plan(action, example), example.batch.chunk_states, chunk_offsets(example)
    moved = None if plan.trajectory is None else plan.trajectory * -1.5 + 1
    other = replace(plan, latent=plan.latent + torch.randn_like(plan.latent), trajectory=moved)
    actions = action(plan, states, offsets)
    same = torch.allclose(actions, action(other, states, offsets))
    require(not same, "Another plan leads to the same actions.", look="forward()")
    learns = isinstance(action, nn.Module) and list(action.parameters())
    require(actions.requires_grad or not learns, "No gradient reaches its weights.", look="detach(), no_grad()")
    source = plan.latent if plan.trajectory is None else plan.trajectory
    source = source.clone().requires_grad_()
    generated = replace(plan, **{"latent" if plan.trajectory is None else "trajectory": source})
    if isinstance(action, HasActionLoss):
        errors = action.loss(generated, states, offsets, example.batch.chunk_actions)
        require_shape("the loss", errors, tuple(offsets.shape), "(B, H)")
    else:
        errors = (action(generated, states, offsets) - example.batch.chunk_actions).square().mean(-1)
    errors.sum().backward()
    require(
        source.grad is not None and bool(source.grad.any()),
        "No gradient reaches the plan: L_inv could not train the prior.",
        look="forward() and loss(): detach(), no_grad(), products with 0",
    )


@contract("codes of the tokenizer's vocabulary", "sampler")
def valid_codes(fixture: Fixture) -> None:
    tokenizer = fixture.part(fixture.planner, "tokenizer")
    tokens = tokenizer.schedule.tokens
    for rng in (torch.Generator().manual_seed(0), None):
        codes = _sample(fixture, fixture.cond(8), rng)
        if tokenizer.vocabulary is None:
            require_shape("the codes", codes, (8, tokens, tokenizer.code_dim), "(B, L, C)")
        else:
            require_token_ids("the codes", codes, (8, tokens), tokenizer.vocabulary)


@contract("samples with rng: a seed repeats them", "sampler")
def seeded(fixture: Fixture) -> None:
    cond, samples = fixture.cond(16), []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        samples.append(_sample(fixture, cond, torch.Generator().manual_seed(3)))
    require(
        torch.equal(*samples),
        "The same seed samples other codes: evaluations could not be repeated.",
        look="generator=rng in torch.rand, multinomial, exponential_ and their like",
    )


@contract("known codes stay as they are", "sampler")
def known_codes(fixture: Fixture) -> None:
    tokenizer, example = fixture.part(fixture.planner, "tokenizer"), fixture.example()
    free = _sample(fixture, example.cond, torch.Generator().manual_seed(0))
    other = example.codes if tokenizer.vocabulary is None else (free + 1) % tokenizer.vocabulary
    from_cond = tokenizer.known_codes(example.cond)
    codes = other if from_cond is None else from_cond.into(other)
    all_known, half_known = torch.ones_like(other, dtype=torch.bool), torch.ones_like(other, dtype=torch.bool)
    half_known[:, other.shape[1] // 2 :] = False
    for mask in (all_known, half_known):
        sampled = _sample(fixture, example.cond, torch.Generator().manual_seed(0), KnownCodes(codes, mask))
        require(
            torch.allclose(sampled[mask].float(), codes[mask].float(), atol=1e-5),
            f"{int((sampled[mask] != codes[mask]).sum())} known codes were changed.",
            look="known_codes.into(codes, span), before the next scale",
        )


def _sample(fixture: Fixture, cond: Cond, rng: torch.Generator | None, known_codes: KnownCodes | None = None) -> Tensor:
    prior, tokenizer = (fixture.part(fixture.planner, kind) for kind in ("prior", "tokenizer"))
    codes: Tensor = fixture.component(prior, tokenizer, cond, rng, known_codes).codes
    return codes
