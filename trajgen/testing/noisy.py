"""What priors promise that are drawn from noise: they denoise, or have a velocity, towards the codes they learn."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trajgen.core.protocols import Denoising, HasVelocity
from trajgen.core.types import Cond
from trajgen.testing.contract import NotApplicableError, contract, require, require_shape
from trajgen.testing.fixture import Fixture

WINDOWS, STEPS, LEARNING_RATE = 16, 60, 3e-3
LEAST_SHARE = 0.75
"""Of the windows in which a token's prediction is pulled to its code: close to the codes a flow along other paths than
straight ones may be led elsewhere. By chance, as where the codes are those of other tokens, it is about a half."""
LARGEST_LOSS = 8.0
"""In units of the mean square of what is predicted, or of 1 where that is less: any usual weighting of the noise levels
has about 1 before it is trained, and a sum over tokens as much as there are tokens."""
NEARER = 0.85
"""An error below this share of the one expected to be small, and not itself large, shows what else was learnt."""


@contract("it denoises at every noise level, in the shape of the codes", "prior")
@torch.no_grad()
def denoising(fixture: Fixture) -> None:
    prior, example = fixture.component, fixture.example()
    if not isinstance(prior, Denoising):
        raise NotApplicableError("it does not denoise")
    x = example.vectors * 0.5 + 0.3
    levels = [prior.denoise(x, torch.full((len(x),), t), example.cond) for t in (0, 5)]
    for denoised in levels:
        require_shape("denoise()", denoised, tuple(example.vectors.shape), "(B, L, C)")
    require(not torch.equal(*levels), "The noise level changes nothing.", look="denoise(): t")


@contract("it has a velocity at every time, in the shape of the codes", "prior")
@torch.no_grad()
def velocities(fixture: Fixture) -> None:
    prior, example = fixture.component, fixture.example()
    if not isinstance(prior, HasVelocity):
        raise NotApplicableError("it has no velocity")
    x = example.vectors * 0.5 + 0.3
    early, late = (prior.velocity(x, x.new_full((len(x),), t), example.cond) for t in (0.0, 0.9))
    for velocity in (early, late):
        require_shape("velocity()", velocity, tuple(x.shape), "(B, L, C)")
    require(not torch.equal(early, late), "The time changes nothing.", look="velocity(): t")


@contract("the loss pulls what it predicts from noise to the codes", "prior")
def loss_of_noisy_codes(fixture: Fixture) -> None:
    planner = fixture.build(perturbed=False)
    prior, example = fixture.part(planner), fixture.example(planner.eval(), fixture.batch(WINDOWS))
    name, codes = _method(prior), example.codes
    if not codes.is_floating_point():
        raise NotApplicableError("its codes are discrete")
    predict, calls = getattr(prior, name), list[tuple[Tensor, Tensor, Tensor]]()

    def recorded(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        prediction: Tensor = predict(x, t, cond)
        if prediction.requires_grad:
            calls.append((x, t, prediction))
        return prediction

    setattr(prior, name, recorded)
    total = prior.train()(codes, example.inputs, example.cond)[0]
    predicted = float(codes.square().mean()) + (name == "velocity")  # which leaves the noise, of variance 1
    require(
        float(total.detach()) <= LARGEST_LOSS * max(predicted, 1.0),
        "The loss is not a mean over windows and codes.",
        expected=f"about {max(predicted, 1.0):.2g} before it is trained",
        got=f"{float(total.detach()):.3g}",
        look="forward(): sums where there should be means",
    )
    gradient = torch.autograd.grad(total, calls[0][2], allow_unused=True)[0] if len(calls) == 1 else None
    if gradient is None:
        raise NotApplicableError(f"its loss is not that of one call of {name}()")
    x, t, prediction = calls[0]
    towards = prediction if name == "denoise" else x + (1 - t)[:, None, None] * prediction
    known_codes = fixture.part(planner, "tokenizer").known_codes(example.cond)
    is_known = torch.zeros_like(codes, dtype=torch.bool) if known_codes is None else known_codes.mask.expand_as(codes)
    share = ((gradient * (towards - codes)).sum(-1) > 0).float().mean(0)
    wrong = ((share < LEAST_SHARE) & ~is_known.all(-1).all(0)).nonzero().flatten() + 1
    require(
        not len(wrong),
        f"The loss does not pull what {name}() predicts to the codes of tokens {', '.join(map(str, wrong.tolist()))}.",
        look="forward(): predictions and codes of the same token and window, of all tokens, and the sign",
    )


@contract("it is drawn towards the codes that it learns", "prior")
def leads_to_codes(fixture: Fixture) -> None:
    planner = fixture.build(perturbed=False)
    prior: Any = fixture.part(planner)
    name, example = _method(prior), fixture.example(planner.eval(), fixture.batch(WINDOWS))
    optimizer = torch.optim.Adam(prior.train().parameters(), LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        prior(example.codes, example.inputs, example.cond)[0].backward()
        optimizer.step()
    clean, noise = example.vectors, torch.randn_like(example.vectors)
    prior.eval()

    def at(x: Tensor, time: float) -> Tensor:
        """What it predicts at a time from 0, noise, to 1, codes."""
        if name == "denoise":
            return prior.denoise(x, torch.full((len(x),), round((1 - time) * (prior.timesteps - 1))), example.cond)
        return prior.velocity(x, torch.full((len(x),), time), example.cond)

    with torch.no_grad():
        near_codes, other_end = at(clean, 0.99), at(clean, 0.01)
        if name == "denoise":  # of noise, and of codes without any: usual weightings teach little of one of them
            x, target = torch.cat([noise, clean]), torch.cat([clean, clean])
            prediction = torch.cat([at(noise, 0.0), near_codes])
            opposite = x - prediction
        else:  # where it leads away from noise
            prediction, target = at(0.1 * clean + 0.9 * noise, 0.1), clean - noise
            opposite = -prediction
    error, others = float(F.mse_loss(prediction, target)), float(F.mse_loss(opposite, target))
    require(
        others >= NEARER * min(error, 2 * float(target.square().mean())),  # both are large where noise is predicted
        f"{name}() leads away from the codes, once it is trained on them.",
        expected="what leads from noise to codes",
        got=f"an error of {error:.3g}; the opposite has {others:.3g}",
        look=f"{name}(), beside what forward() trains",
    )
    error = float(F.mse_loss(near_codes, clean))
    for dim, neighbour in ((0, "window"), (1, "token")):
        others = float(F.mse_loss(near_codes, clean.roll(1, dim)))
        require(
            others >= NEARER * min(error, float(clean.square().mean())),
            f"{name}() leads to the codes of another {neighbour}, once it is trained.",
            got=f"an error of {error:.3g}; the codes of the {neighbour} before have {others:.3g}",
            look="forward(): predictions and codes of the same token and window",
        )
    others = float(F.mse_loss(other_end, clean))
    require(
        others >= NEARER * error,
        f"{name}() takes codes for noise, once it is trained.",
        expected="a time that means the same when it is trained and when it is drawn",
        got=f"at the codes' end an error of {error:.3g}, at the other one {others:.3g}",
        look=f"{name}() and forward(): the direction of t",
    )


def _method(prior: Any) -> str:
    """How it predicts what it is drawn from."""
    if isinstance(prior, Denoising):
        return "denoise"
    if isinstance(prior, HasVelocity):
        return "velocity"
    raise NotApplicableError("it has neither denoise() nor velocity()")
