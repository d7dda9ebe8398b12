"""What decoders, action heads and samplers promise: from codes to a trajectory and to actions."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Autoregressive, HasActionLoss, SamplesActions
from trajgen.core.types import Cond, KnownCodes
from trajgen.testing.common import acting_plan, chunk_offsets
from trajgen.testing.contract import NotApplicableError, contract, require, require_shape
from trajgen.testing.fixture import Fixture, input_spans, perturb
from trajgen.testing.tokenizers import require_token_ids

STEPS, LEARNING_RATE = 15, 3e-3
STRENGTHS = {"temperature": (0.05, 20.0), "guidance": (0.0, 5.0)}
"""Options that any sampler may have, and values whose plans differ."""


@contract("a trajectory of the right shape", "decoder")
def trajectory(fixture: Fixture) -> None:
    decoder, example = fixture.component, fixture.example()
    decoded = decoder(example.latent, example.cond)
    for name, value in (("the trajectory", decoded), ("base()", decoder.base(example.latent, example.cond))):
        require_shape(name, value, tuple(example.x.shape), "(B, T, D)")
    other = decoder(example.latent + torch.randn_like(example.latent), example.cond)
    require(not torch.equal(decoded, other), "Another latent decodes to the same trajectory.", look="forward()")
    follows = (decoded != other).any(0).all(-1).tolist()
    deaf = [str(t) for t in range(1, len(follows) - 1) if not follows[t]]  # the ends may be those of the condition
    require(not deaf, "Some features of points do not depend on the latent.", got=f"points {', '.join(deaf)}")


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
    decoded = fixture.component(latent, example.cond)
    (decoded * torch.randn_like(decoded)).sum().backward()
    require(
        latent.grad is not None and bool((latent.grad.abs().amax(0) > 0).all()),
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


@contract("each step has its own action and its own error", "action")
@torch.no_grad()
def errors_of_steps(fixture: Fixture) -> None:
    action, example = fixture.component, fixture.example()
    plan, states, offsets = acting_plan(action, example), example.batch.chunk_states, chunk_offsets(example)
    predicted, target = action(plan, states, offsets), example.batch.chunk_actions
    differs = (predicted[:, 1:] != predicted[:, :1]).any((0, 2))
    require(differs.all(), "All steps of a plan have the same action.", look="forward(): offsets (B, H) and states")
    if not isinstance(action, HasActionLoss):
        return
    errors = action.loss(plan, states, offsets, target)
    expected = torch.zeros_like(errors, dtype=torch.bool)
    expected[2, -1] = True
    for dim in range(target.shape[2]):
        reached = torch.zeros_like(expected)
        for change in (-1.0, 1.0):
            changed = target.clone()
            changed[2, -1, dim] += change
            reached |= (action.loss(plan, states, offsets, changed) - errors).abs() > 1e-6
        require(
            torch.equal(reached, expected),
            f"The errors (B, H) are not those of each step's own action: dimension {dim} of one action changes "
            f"{int((reached & ~expected).sum())} others, and its own {'too' if reached[2, -1] else 'not'}.",
            look="loss(): shifted or permuted actions, means over steps or windows",
        )


@contract("it learns in a few steps", "action")
def learning(fixture: Fixture) -> None:
    action, example = fixture.part(fixture.build_ready()), fixture.example()
    weights = list(action.parameters()) if isinstance(action, nn.Module) else []
    if not weights:
        raise NotApplicableError("it has no weights")
    plan, states, offsets = acting_plan(action, example), example.batch.chunk_states, chunk_offsets(example)
    target, optimizer = example.batch.chunk_actions, torch.optim.Adam(weights, LEARNING_RATE)

    def squared() -> Tensor:
        error: Tensor = (action(plan, states, offsets) - target).square().mean()
        return error

    before = float(squared().detach())
    for _ in range(STEPS):
        optimizer.zero_grad()
        (
            action.loss(plan, states, offsets, target).mean() if isinstance(action, HasActionLoss) else squared()
        ).backward()
        optimizer.step()
    after = float(squared().detach())
    require(
        after < before,
        f"On one batch, {STEPS} steps of Adam do not bring actions nearer to those of the data.",
        got=f"a squared error of {before:.3g} before, {after:.3g} after",
        look="loss(): its sign, and whose actions it compares with",
    )


@contract("noise of actions is drawn with rng", "action")
def action_noise(fixture: Fixture) -> None:
    action = fixture.component
    if not isinstance(action, SamplesActions):
        raise NotApplicableError("it samples no actions")
    generators = (torch.Generator().manual_seed(seed) for seed in (3, 3, 4))
    draws = [noise for rng in generators if (noise := action.noise(6, rng, torch.device("cpu"))) is not None]
    if not draws:
        raise NotApplicableError("with these options it samples no actions")
    require(torch.equal(draws[0], draws[1]), "The same seed draws other noise.", look="generator=rng in noise()")
    alike = torch.equal(draws[0], draws[2]) or torch.equal(draws[0][0], draws[0][1])
    require(not alike, "Other seeds, or other plans, have the same noise.", look="noise(plans, rng, device)")


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
    prior = fixture.part(fixture.planner, "prior")
    plan = fixture.component(prior, tokenizer, fixture.cond(8), torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = tokenizer.layout.latent(tokenizer.vectors(plan.codes))
    require(
        plan.latent.shape == latent.shape and torch.allclose(plan.latent, latent, atol=1e-4),
        "The latent of a plan is not that of its codes.",
        expected="layout.latent(tokenizer.vectors(codes)), or layout.extend() after each scale",
    )


@contract("plans and tokens are drawn independently, and likely ones", "sampler")
@torch.no_grad()
def draws(fixture: Fixture) -> None:
    planner = perturb(fixture.build_ready(), 0.5).eval()
    prior, tokenizer, sampler = (fixture.part(planner, kind) for kind in ("prior", "tokenizer", "sampler"))
    cond = fixture.cond(32)

    def codes(cond: Cond, seed: int) -> Tensor:
        sampled: Tensor = sampler(prior, tokenizer, cond, torch.Generator().manual_seed(seed)).codes
        return sampled

    if isinstance(prior, Autoregressive) and tokenizer.vocabulary is not None:
        sampled = codes(cond, 0)
        logits = prior.logits(tokenizer.layout.inputs(tokenizer.vectors(sampled)), cond).log_softmax(-1)
        gain = logits.gather(-1, sampled.unsqueeze(-1)).squeeze(-1) - logits.mean(-1)
        unlikely = [str(k + 1) for k, span in enumerate(tokenizer.schedule.spans) if not gain[:, span].mean() >= 0]
        require(
            not unlikely,
            f"Codes of scale {', '.join(unlikely)} are less likely than codes at random.",
            look="the sign of logits, what is masked, and the inputs that step() is given",
        )
    for parameter in prior.parameters():
        parameter.zero_()  # so that all codes are alike
    same = cond.map(lambda values: values[:1].expand_as(values))
    first, second = (codes(same, seed) for seed in (0, 1))
    if torch.equal(first, second):
        return
    rows = (first == first[:1]).all()
    require(
        not rows, "All plans of a batch are drawn with the same random numbers.", look="the shape of the noise (B, …)"
    )
    scale = first[:, max(tokenizer.schedule.spans, key=lambda span: span.stop - span.start)]
    tokens = scale.shape[1] > 1 and bool((scale == scale[:, :1]).all())
    require(not tokens, "All tokens of a scale are drawn with the same random numbers.", look="the shape of the noise")


@contract("a scale is drawn from those before it", "sampler")
@torch.no_grad()
def inputs_of_scales(fixture: Fixture) -> None:
    if not isinstance(fixture.part(fixture.planner, "prior"), Autoregressive):
        raise NotApplicableError("its prior does not predict scale by scale")
    planner = fixture.build_ready()
    prior, tokenizer, sampler = (fixture.part(planner, kind) for kind in ("prior", "tokenizer", "sampler"))
    cond, steps = fixture.cond(), list[tuple[int, Tensor | None]]()
    step = prior.step

    def recorded(x: Tensor | None, k: int, state: Any) -> Tensor:
        steps.append((k, None if x is None else x.clone()))
        return step(x, k, state)

    prior.step = recorded
    codes = sampler(prior, tokenizer, cond, torch.Generator().manual_seed(0)).codes
    inputs = tokenizer.layout.inputs(tokenizer.vectors(codes))
    spans = [span for _, _, span in input_spans(tokenizer.schedule.lengths)]
    rows = [len(cond) if x is None else len(x) for _, x in steps]
    if [k for k, _ in steps] != [*range(len(spans))] or {*rows} != {len(cond)}:
        raise NotApplicableError("it searches, or predicts more than the plans that it returns")
    for k, x in steps[1:]:
        expected = inputs[:, spans[k]]
        require(
            x is not None and x.shape == expected.shape and torch.allclose(x, expected, atol=1e-4),
            f"Scale {k + 1} is not predicted from all codes before it.",
            look="what layout.extend() is given, and step()",
        )


@contract("temperature and guidance have an effect", "sampler")
@torch.no_grad()
def strengths(fixture: Fixture) -> None:
    node, cond = fixture.composition.nodes["sampler"], fixture.cond(32)
    tried = False
    for option, values in STRENGTHS.items():
        codes: list[Tensor] = []
        for value in values if option in node else ():
            nodes = fixture.composition.nodes | {"sampler": {**node, option: value}}
            with suppress(ConfigError):  # other options may leave it out
                planner = Fixture("sampler", fixture.name, replace(fixture.composition, nodes=nodes)).build().eval()
                prior, tokenizer, sampler = (fixture.part(planner, kind) for kind in ("prior", "tokenizer", "sampler"))
                codes.append(sampler(prior, tokenizer, cond, torch.Generator().manual_seed(0)).codes)
        if len(codes) == len(values):
            tried = True
            require(not torch.equal(*codes), f"The codes are the same for {option} {values[0]} and {values[1]}.")
    if not tried:
        raise NotApplicableError(f"it has neither {' nor '.join(STRENGTHS)}")


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
