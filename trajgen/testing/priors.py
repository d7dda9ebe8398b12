"""What priors promise: what teacher forcing learns is what sampling draws."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trajgen.core.protocols import Autoregressive, Denoising
from trajgen.testing.bench import Bench, Known, spans
from trajgen.testing.contract import ContractError, NotApplicableError, contract
from trajgen.testing.shapes import check_losses, check_shape

STEPS, LEARNING_RATE, SEEDS = 30, 3e-3, 4


@contract("draws step by step, or denoises", "prior")
def capability(bench: Bench) -> None:
    if not isinstance(bench.component, (Autoregressive, Denoising)):
        missing = [name for name in ("logits", "loss", "start", "step") if not hasattr(bench.component, name)]
        raise ContractError(
            "A prior is drawn from scale by scale, or by taking noise away.",
            expected="logits, loss, start and step; or denoise",
            got=f"{type(bench.component).__name__} without {', '.join(missing)}",
            look="trajgen/core/protocols.py: Autoregressive and Denoising",
        )


@contract("one step of training: a loss and a prediction", "prior")
def training_step(bench: Bench) -> None:
    planner = bench.ready()
    prior, known = bench.of(planner).train(), bench.known(planner, bench.batch())
    answer = prior(known.codes, known.inputs, known.cond)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ContractError(
            "Calling a prior is one step of training.",
            expected="(loss, prediction)",
            got=type(answer).__name__,
            look="forward()",
        )
    check_losses({"total": answer[0]})
    check_shape("the prediction", answer[1], _predicted(bench, planner, known), "(B, L, V), or (B, L, C) if continuous")
    if not answer[1].requires_grad:
        raise ContractError(
            "No gradient flows back from the prediction: L_cond could not reach the prior.",
            expected="a prediction that requires a gradient",
            got="one that does not",
            look="forward(): detach() and no_grad()",
        )


@contract("teacher-forced predictions are those drawn step by step", "prior")
@torch.no_grad()
def teacher_forcing(bench: Bench) -> None:
    prior, known = _autoregressive(bench)
    forced = prior.logits(known.inputs, known.cond)
    check_shape("logits()", forced, _predicted(bench, bench.planner, known), "(B, L, V), or (B, L, C) if continuous")
    if forced.std() < 1e-4:
        raise ContractError("All predictions are the same.", expected="predictions that differ", look="logits()")
    for _ in range(2):  # what is left over of one plan must not reach the next
        state = prior.start(known.cond)
        for k, span, seen in _scales(bench):
            step = prior.step(None if k == 0 else known.inputs[:, seen], k, state)
            check_shape(f"step() of scale {k + 1}", step, tuple(forced[:, span].shape), "(B, l_k, V or C)")
            by = float((forced[:, span] - step).abs().max())
            if not by <= 1e-4:  # NaN included
                raise ContractError(
                    f"Teacher-forced logits of scale {k + 1} differ from those drawn step by step by {by:.2g}.",
                    expected="logits(inputs, cond) equal to step(x, k, state) at every scale",
                    look=f"step(): at scale {k + 1} it must see what logits() sees, the scales before it and its "
                    "input; start() keeps what they have in common",
                )


@contract("no scale sees the inputs of finer ones", "prior")
@torch.no_grad()
def causality(bench: Bench) -> None:
    prior, known = _autoregressive(bench)
    before = prior.logits(known.inputs, known.cond)
    scales = [(k, span, seen) for k, span, seen in _scales(bench) if k]
    if not scales:
        raise NotApplicableError("there is a single scale")
    for k, span, seen in scales:
        changed = known.inputs.clone()
        changed[:, seen] += 1.0
        by = (prior.logits(changed, known.cond) - before).abs().amax(-1)
        leak = float(by[:, : span.start].max())
        if not leak <= 1e-5:
            raise ContractError(
                f"The input of scale {k + 1} changes the predictions of coarser scales, by {leak:.2g}.",
                expected="each scale to follow from its own input and those before it",
                got=f"a change at token {int(by[:, : span.start].amax(0).argmax())}, before {span.start}",
                look="the mask of logits(): sampling cannot see ahead",
            )
        if not float(by[:, span].max()) > 1e-7:
            raise ContractError(
                f"The predictions of scale {k + 1} do not follow from its input.",
                expected="other predictions for other inputs",
                got="the same",
                look="logits(): which inputs go with which scale",
            )


@contract("the condition reaches every scale", "prior")
@torch.no_grad()
def condition(bench: Bench) -> None:
    prior, known = bench.component, bench.known(bench.planner, bench.batch())
    other = known.cond.map(lambda v: v + 1 if v.is_floating_point() else v)
    conditioner = bench.of(bench.planner, "conditioner")
    if conditioner is not None and torch.equal(conditioner(known.cond), conditioner(other)):
        raise NotApplicableError("in this composition nothing is conditioned on")
    if isinstance(prior, Autoregressive):
        by = (prior.logits(known.inputs, known.cond) - prior.logits(known.inputs, other)).abs().amax((0, 2))
    else:
        by = (_denoised(prior, known, known.cond) - _denoised(prior, known, other)).abs().amax((0, 2))
    deaf = [k + 1 for k, span, _ in _scales(bench) if not float(by[span].min()) > 1e-7]
    if deaf:
        raise ContractError(
            f"The condition does not change the predictions of scale {', '.join(map(str, deaf))}.",
            expected="state, return and goal to reach every token",
            got="the same predictions for another condition",
            look="where conditioner(cond), (B, K or 1, E), enters",
        )


@contract("noise is taken away at every level, in the shape of the codes", "prior")
@torch.no_grad()
def denoising(bench: Bench) -> None:
    prior, known = bench.component, bench.known(bench.planner, bench.batch())
    if not isinstance(prior, Denoising):
        raise NotApplicableError("it is drawn scale by scale")
    shape = tuple(known.vectors.shape)
    levels = [_denoised(prior, known, known.cond, t) for t in (0, 5)]
    for found in levels:
        check_shape("denoise()", found, shape, "(B, L, C)")
    if torch.equal(*levels):
        raise ContractError(
            "The level of noise changes nothing.", expected="other codes at another t", look="denoise()"
        )


@contract("it learns in a few steps", "prior")
def learning(bench: Bench) -> None:
    planner = bench.ready()
    prior, known = bench.of(planner), bench.known(planner, bench.batch(16))
    prior.requires_grad_(True).train()
    optimizer = torch.optim.Adam(prior.parameters(), LEARNING_RATE)

    def figures() -> tuple[float, float]:
        """The loss, and how far predictions are from the codes, over some draws of noise."""
        losses, errors = [], []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            loss, prediction = prior(known.codes, known.inputs, known.cond)
            losses.append(float(loss.detach()))
            errors.append(float(_error(prediction.detach(), known.codes)))
        return sum(losses) / SEEDS, sum(errors) / SEEDS

    before = figures()
    for step in range(STEPS):
        torch.manual_seed(step % SEEDS)
        optimizer.zero_grad()
        prior(known.codes, known.inputs, known.cond)[0].backward()
        optimizer.step()
    for what, then, now in zip(("the loss", "the error of the predictions"), before, figures(), strict=True):
        if not now < then:
            raise ContractError(
                f"On one batch, {STEPS} steps of Adam do not lower {what}.",
                expected=f"less than {then:.3g}",
                got=f"{now:.3g}",
                look="forward(): the sign of the loss, what is detached, and whether it is of the prediction",
            )


def _error(prediction: Tensor, codes: Tensor) -> Tensor:
    if codes.is_floating_point():
        return F.mse_loss(prediction, codes)
    return F.cross_entropy(prediction.flatten(0, 1), codes.flatten())


def _autoregressive(bench: Bench) -> tuple[Any, Known]:
    if not isinstance(bench.component, Autoregressive):
        raise NotApplicableError("it is drawn by taking noise away")
    return bench.component, bench.known(bench.planner, bench.batch())


def _predicted(bench: Bench, planner: Any, known: Known) -> tuple[int, int, int]:
    tokenizer = bench.of(planner, "tokenizer")
    return (*known.vectors.shape[:2], tokenizer.vocabulary or tokenizer.code_dim)


def _scales(bench: Bench) -> list[tuple[int, slice, slice]]:
    lengths = bench.of(bench.planner, "tokenizer").schedule.lengths
    return [(0, slice(0, lengths[0]), slice(0, 0)), *spans(lengths)]


def _denoised(prior: Any, known: Known, cond: Any, t: int = 1) -> Tensor:
    x = known.vectors * 0.5 + 0.3
    found: Tensor = prior.denoise(x, torch.full((len(x),), t), cond)
    return found
