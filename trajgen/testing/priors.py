"""What priors promise: stepwise predictions equal the teacher-forced ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trajgen.core.protocols import Autoregressive, Denoising
from trajgen.core.types import Cond
from trajgen.testing.contract import ContractError, NotApplicableError, contract, require, require_losses, require_shape
from trajgen.testing.fixture import Example, Fixture, input_spans

STEPS, LEARNING_RATE, SEEDS = 30, 3e-3, 4


@contract("one step of training: a loss and a prediction", "prior")
def training_step(fixture: Fixture) -> None:
    planner = fixture.build_ready()
    prior, example = fixture.part(planner).train(), fixture.example(planner)
    result = prior(example.codes, example.inputs, example.cond)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ContractError(
            "Calling a prior is one step of training.", expected="(loss, prediction)", got=type(result).__name__
        )
    require_losses({"total": result[0]})
    require_shape("the prediction", result[1], _prediction_shape(fixture, example), "(B, L, V or C)")
    require(
        result[1].requires_grad,
        "No gradient flows back from the prediction: L_cond could not reach the prior.",
        look="forward(): detach() and no_grad()",
    )


@contract("teacher-forced predictions equal the stepwise ones", "prior")
@torch.no_grad()
def teacher_forcing(fixture: Fixture) -> None:
    prior, example = _autoregressive(fixture)
    forced = prior.logits(example.inputs, example.cond)
    require_shape("logits()", forced, _prediction_shape(fixture, example), "(B, L, V or C)")
    require(forced.std() > 1e-4, "All predictions are the same.", look="logits()")
    for _ in range(2):  # what is left over of one plan must not reach the next
        state = prior.start(example.cond)
        for k, span, inputs in _spans(fixture):
            step = prior.step(None if k == 0 else example.inputs[:, inputs], k, state)
            require_shape(f"step() of scale {k + 1}", step, tuple(forced[:, span].shape), "(B, l_k, V or C)")
            difference = float((forced[:, span] - step).abs().max())
            require(
                difference <= 1e-4,  # false for NaN
                f"Teacher-forced logits of scale {k + 1} differ from the stepwise ones by {difference:.2g}.",
                look=f"step(): at scale {k + 1} it must see what logits() sees, the scales before it and its input",
            )


@contract("no scale sees the inputs of finer ones", "prior")
@torch.no_grad()
def causality(fixture: Fixture) -> None:
    prior, example = _autoregressive(fixture)
    before, scales = prior.logits(example.inputs, example.cond), _spans(fixture)[1:]
    if not scales:
        raise NotApplicableError("there is a single scale")
    for k, span, inputs in scales:
        changed = example.inputs.clone()
        changed[:, inputs] += 1.0
        differences = (prior.logits(changed, example.cond) - before).abs().amax((0, 2))
        leak = differences[: span.start]
        require(
            float(leak.max()) <= 1e-5,
            f"The input of scale {k + 1} changes the predictions of coarser scales, by {float(leak.max()):.2g}.",
            look="the mask of logits(): sampling cannot see ahead",
        )
        require(
            float(differences[span].max()) > 1e-7,
            f"The predictions of scale {k + 1} do not depend on its input.",
            look="logits(): which inputs go with which scale",
        )


@contract("the condition reaches every scale", "prior")
@torch.no_grad()
def condition(fixture: Fixture) -> None:
    prior, example = fixture.component, fixture.example()
    other = example.cond.map(lambda value: value + 1 if value.is_floating_point() else value)
    conditioner = fixture.part(fixture.planner, "conditioner")
    if conditioner is not None and torch.equal(conditioner(example.cond), conditioner(other)):
        raise NotApplicableError("in this composition nothing is conditioned on")

    def predict(cond: Cond) -> Tensor:
        if isinstance(prior, Denoising):
            return _denoise(prior, example, cond)
        logits: Tensor = prior.logits(example.inputs, cond)
        return logits

    differences = (predict(example.cond) - predict(other)).abs().amax((0, 2))
    deaf = [str(k + 1) for k, span, _ in _spans(fixture) if not float(differences[span].min()) > 1e-7]
    require(
        not deaf,
        f"The condition does not change the predictions of scale {', '.join(deaf)}.",
        look="where conditioner(cond), (B, K or 1, E), enters",
    )


@contract("it denoises at every noise level, in the shape of the codes", "prior")
@torch.no_grad()
def denoising(fixture: Fixture) -> None:
    prior, example = fixture.component, fixture.example()
    if not isinstance(prior, Denoising):
        raise NotApplicableError("it is sampled scale by scale")
    levels = [_denoise(prior, example, example.cond, t) for t in (0, 5)]
    for denoised in levels:
        require_shape("denoise()", denoised, tuple(example.vectors.shape), "(B, L, C)")
    require(not torch.equal(*levels), "The noise level changes nothing.", look="denoise(): t")


@contract("it learns in a few steps", "prior")
def learning(fixture: Fixture) -> None:
    planner = fixture.build_ready()
    prior, example = fixture.part(planner), fixture.example(planner, fixture.batch(16))
    prior.requires_grad_(True).train()
    optimizer = torch.optim.Adam(prior.parameters(), LEARNING_RATE)

    def evaluate() -> tuple[float, float]:
        """The loss, and the error of the predictions, averaged over some seeds of the noise."""
        losses, errors = [], []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            loss, prediction = prior(example.codes, example.inputs, example.cond)
            losses.append(float(loss.detach()))
            errors.append(float(_error(prediction.detach(), example.codes)))
        return sum(losses) / SEEDS, sum(errors) / SEEDS

    before = evaluate()
    for step in range(STEPS):
        torch.manual_seed(step % SEEDS)
        optimizer.zero_grad()
        prior(example.codes, example.inputs, example.cond)[0].backward()
        optimizer.step()
    for name, first, last in zip(("the loss", "the error of the predictions"), before, evaluate(), strict=True):
        require(
            last < first,
            f"On one batch, {STEPS} steps of Adam do not lower {name}.",
            got=f"{first:.3g} before, {last:.3g} after",
            look="forward(): the sign of the loss, and what is detached",
        )


def _error(prediction: Tensor, codes: Tensor) -> Tensor:
    if codes.is_floating_point():
        return F.mse_loss(prediction, codes)
    return F.cross_entropy(prediction.flatten(0, 1), codes.flatten())


def _autoregressive(fixture: Fixture) -> tuple[Any, Example]:
    if not isinstance(fixture.component, Autoregressive):
        raise NotApplicableError("it is sampled by denoising")
    return fixture.component, fixture.example()


def _prediction_shape(fixture: Fixture, example: Example) -> tuple[int, int, int]:
    tokenizer = fixture.part(fixture.planner, "tokenizer")
    return (*example.vectors.shape[:2], tokenizer.vocabulary or tokenizer.code_dim)


def _spans(fixture: Fixture) -> list[tuple[int, slice, slice]]:
    return list(input_spans(fixture.part(fixture.planner, "tokenizer").schedule.lengths))


def _denoise(prior: Any, example: Example, cond: Cond, t: int = 1) -> Tensor:
    x = example.vectors * 0.5 + 0.3
    denoised: Tensor = prior.denoise(x, torch.full((len(x),), t), cond)
    return denoised
