"""What priors promise: stepwise predictions equal the teacher-forced ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trajgen.core.protocols import Autoregressive, PredictsPrefix
from trajgen.core.types import Cond
from trajgen.testing.common import other_fields, predict
from trajgen.testing.contract import ContractError, NotApplicableError, contract, require, require_losses, require_shape
from trajgen.testing.fixture import Example, Fixture, input_spans

STEPS, LEARNING_RATE, SEEDS = 15, 3e-3, 4


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
    weights = [p for p in prior.parameters() if p.requires_grad]
    gradients = (
        torch.autograd.grad(result[1].square().sum(), weights, retain_graph=True, allow_unused=True)
        if result[1].requires_grad
        else []
    )
    require(
        any(gradient is not None and gradient.any() for gradient in gradients),
        "No gradient flows back from the prediction: L_cond could not reach the prior.",
        look="forward(): detach(), no_grad(), and products with 0",
    )
    torch.manual_seed(0)
    twice = float(prior.eval()(*_twice(example))[0].detach())
    torch.manual_seed(0)
    once = float(prior(example.codes, example.inputs, example.cond)[0].detach())
    require(
        abs(twice) <= 1.5 * abs(once),
        "The loss of a batch grows with its windows.",
        expected="a mean",
        got=f"{once:.3g} for 6 windows, {twice:.3g} for 12",
        look="forward(): sums over the batch",
    )


def _twice(example: Example) -> tuple[Tensor, Tensor, Cond]:
    cond = example.cond.map(lambda values: torch.cat([values, values]))
    return torch.cat([example.codes] * 2), torch.cat([example.inputs] * 2), cond


@contract("the loss pulls every prediction to its code", "prior")
def loss_of_codes(fixture: Fixture) -> None:
    prior, example = _autoregressive(fixture)
    codes = example.codes
    with torch.no_grad():
        forced = prior.logits(example.inputs, example.cond)
    is_predicted = forced.abs().amax((0, 2)) > 0  # a first code that has to be known is not
    logits = forced.clone().requires_grad_()
    gradient = torch.autograd.grad(prior.loss(logits, codes), logits)[0]
    _require_pull("loss()", gradient, logits, codes, is_predicted, fixture)
    total, prediction = prior(codes, example.inputs, example.cond)
    through = torch.autograd.grad(total, prediction, allow_unused=True)[0] if prediction.requires_grad else None
    if through is not None:
        _require_pull("forward()", through, prediction, codes, is_predicted, fixture)
    if codes.is_floating_point():
        even, expected = float(prior.loss(codes + 1, codes)), 1.0
    else:
        even, expected = float(prior.loss(torch.zeros_like(forced), codes)), math.log(forced.shape[-1])
    require(
        expected / 4 <= even <= 1.5 * expected,
        "The loss is not a mean over windows and codes.",
        expected=f"{expected:.3g}, as for {'errors of 1' if codes.is_floating_point() else 'even probabilities'}",
        got=f"{even:.3g}",
        look="loss(): sums where there should be means, and means of means",
    )


def _require_pull(
    name: str, gradient: Tensor, logits: Tensor, codes: Tensor, is_predicted: Tensor, fixture: Fixture
) -> None:
    """Raises `ContractError` unless a step against the gradient makes each predicted code likelier."""
    if codes.is_floating_point():
        pull = (gradient * (logits - codes)).sum(-1)
    else:
        pull = -gradient.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    is_pulled = (pull > 0).all(0) | ~is_predicted
    wrong = [str(k + 1) for k, span, _ in _spans(fixture) if not is_pulled[span].all()]
    require(
        not wrong,
        f"{name} does not pull the predictions of scale {', '.join(wrong[:8])} to their codes.",
        look=f"{name}: predictions and codes of the same token, of all scales, and the sign",
    )


@contract("the rows of its state can be selected", "prior")
@torch.no_grad()
def rows(fixture: Fixture) -> None:
    prior, example = _autoregressive(fixture)
    if not hasattr(prior.start(example.cond), "rows"):
        raise NotApplicableError("its state has no rows(): a search repeats its steps instead")
    spans, index = _spans(fixture), torch.tensor([3, 3, 0, 5, 1])
    forced = prior.logits(example.inputs, example.cond)[index]
    for split in sorted({0, min(1, len(spans) - 1), len(spans) - 1}):
        state = prior.start(example.cond)
        for k, span, inputs in spans:
            if k == split:
                state = state.rows(index)
            x = None if k == 0 else example.inputs[:, inputs]
            step = prior.step(x if x is None or k < split else x[index], k, state)
            if k < split:
                continue
            same = step.shape == forced[:, span].shape and torch.allclose(step, forced[:, span], atol=1e-4)
            require(
                same,
                f"Once rows are selected before scale {split + 1}, scale {k + 1} is predicted for other rows.",
                look="rows(index) of the state that start() returns: all of its tensors, the cache too, by row",
            )


@contract("what is withheld changes no prediction", "prior")
@torch.no_grad()
def unconditional(fixture: Fixture) -> None:
    prior, example = fixture.component, fixture.example()
    conditioner = fixture.part(fixture.planner, "conditioner")
    goal = None if example.cond.goal is None else example.cond.goal + 1
    other = replace(example.cond, returns=example.cond.returns + 1, goal=goal).unconditional()
    cond = example.cond.unconditional()
    if conditioner is None or not torch.equal(conditioner(cond), conditioner(other)):
        raise NotApplicableError("its conditioner withholds nothing")
    require(
        torch.allclose(predict(prior, example, cond), predict(prior, example, other), atol=1e-6),
        "A return or goal that is withheld still changes the predictions.",
        look="cond.cond_mask on the way to the conditioner",
    )


@contract("teacher-forced predictions equal the stepwise ones", "prior")
@torch.no_grad()
def teacher_forcing(fixture: Fixture) -> None:
    prior, example = _autoregressive(fixture)
    forced = prior.logits(example.inputs, example.cond)
    require_shape("logits()", forced, _prediction_shape(fixture, example), "(B, L, V or C)")
    require(forced.std() > 1e-4, "All predictions are the same.", look="logits()")
    torch.manual_seed(0)
    trained = prior(example.codes, example.inputs, example.cond)[1]
    require(
        trained.shape == forced.shape and torch.allclose(trained, forced, atol=1e-4),
        "The prediction that is trained differs from logits(), of which plans are drawn.",
        look="forward(): the mask, the condition, and whether it looks at the codes that it is to predict",
    )
    other = fixture.example(batch=fixture.batch(seed=2))
    others_forced = prior.logits(other.inputs, other.cond)
    for _ in range(2):  # what is left over of one plan must not reach the next
        state, others_state = prior.start(example.cond), prior.start(other.cond)
        for k, span, inputs in _spans(fixture):
            step = prior.step(None if k == 0 else example.inputs[:, inputs], k, state)
            require_shape(f"step() of scale {k + 1}", step, tuple(forced[:, span].shape), "(B, l_k, V or C)")
            difference = float((forced[:, span] - step).abs().max())
            require(
                difference <= 1e-4,  # false for NaN
                f"Teacher-forced logits of scale {k + 1} differ from the stepwise ones by {difference:.2g}.",
                look=f"step(): at scale {k + 1} it must see what logits() sees, the scales before it and its input",
            )
            others_step = prior.step(None if k == 0 else other.inputs[:, inputs], k, others_state)
            require(
                torch.allclose(others_forced[:, span], others_step, atol=1e-4),
                f"Other plans that are drawn at the same time have other predictions of scale {k + 1}.",
                look="start(): all that it computes belongs to the state that it returns, not to the module",
            )
            if isinstance(prior, PredictsPrefix) and k:
                prefix = prior.predict_prefix(example.inputs[:, : inputs.stop], k, prior.start(example.cond))
                same = prefix.shape == forced[:, : span.stop].shape
                require(
                    same and torch.allclose(prefix, forced[:, : span.stop], atol=1e-4),
                    f"predict_prefix() of scales 1 to {k + 1} differs from the teacher-forced logits.",
                    look="predict_prefix(): the mask between scales, and the condition of each scale",
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
            float(differences[span].min()) > 1e-7,
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

    before = predict(prior, example, example.cond)
    differences = (before - predict(prior, example, other)).abs().amax((0, 2))
    deaf = [str(k + 1) for k, span, _ in _spans(fixture) if not float(differences[span].min()) > 1e-7]
    require(
        not deaf,
        f"The condition does not change the predictions of scale {', '.join(deaf)}.",
        look="where conditioner(cond), (B, K or 1, E), enters",
    )
    for name, changed in other_fields(example.cond).items():
        if conditioner is None or torch.equal(conditioner(example.cond), conditioner(changed)):
            continue
        require(
            not torch.allclose(before, predict(prior, example, changed), atol=1e-7),
            f"The {name} changes the conditioner's embedding, and no prediction.",
            look="what becomes of cond on the way to the conditioner",
        )


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
        raise NotApplicableError("it is not drawn scale by scale")
    return fixture.component, fixture.example()


def _prediction_shape(fixture: Fixture, example: Example) -> tuple[int, int, int]:
    tokenizer = fixture.part(fixture.planner, "tokenizer")
    return (*example.vectors.shape[:2], tokenizer.vocabulary or tokenizer.code_dim)


def _spans(fixture: Fixture) -> list[tuple[int, slice, slice]]:
    return list(input_spans(fixture.part(fixture.planner, "tokenizer").schedule.lengths))
