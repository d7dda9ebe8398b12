"""What tokenizers promise: windows to codes and back, scale by scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.protocols import Values
from trajgen.core.types import Batch
from trajgen.testing.contract import NotApplicableError, contract, require, require_losses, require_shape
from trajgen.testing.fixture import Fixture, input_spans, select
from trajgen.testing.inputs import shares


@contract("codes, vectors, inputs and latent have their shapes", "tokenizer")
@torch.no_grad()
def shapes(fixture: Fixture) -> None:
    tokenizer, x = fixture.component, fixture.windows()
    schedule, width, encoding, layout = tokenizer.schedule, tokenizer.code_dim, tokenizer.encode(x), tokenizer.layout
    codes, tokens = encoding.codes, schedule.tokens
    if tokenizer.vocabulary is None:
        require_shape("encode().codes, continuous", codes, (6, tokens, width), "(B, L, C)")
    else:
        require_token_ids("encode().codes", codes, (6, tokens), tokenizer.vocabulary)
    require(len(codes.unique()) > 1, "All windows get the same code.", look="encode()")
    vectors = tokenizer.vectors(codes)
    require_shape("vectors()", vectors, (6, tokens, width), "(B, L, C)")
    inputs, latent = layout.inputs(vectors), layout.latent(vectors)
    require_shape("layout.inputs()", inputs, (6, tokens - schedule.lengths[0], width), "(B, L - l_1, C)")
    require_shape("layout.latent()", latent, (6, tokenizer.latent_length, width), "(B, N, C)")
    for name, value in (("inputs", inputs), ("latent", latent)):
        require(
            _is_close(getattr(encoding, name), value),
            f"encode().{name} differs from layout.{name}() of the vectors of its codes.",
        )


def require_token_ids(name: str, codes: Tensor, shape: tuple[int, ...], vocabulary: int) -> None:
    """Raises `ContractError` unless ``codes`` are int64 token ids of the vocabulary."""
    require_shape(name, codes, shape, "(B, L)")
    low, high = int(codes.min()), int(codes.max())
    require(
        codes.dtype == torch.int64 and low >= 0 and high < vocabulary,
        f"{name[:1].upper()}{name[1:]} are not token ids of the vocabulary.",
        expected=f"int64 from 0 to {vocabulary - 1}",
        got=f"{codes.dtype} from {low} to {high}",
    )


@contract("the partial latent, extended step by step, agrees with inputs() and latent()", "tokenizer")
@torch.no_grad()
def stepwise(fixture: Fixture) -> None:
    tokenizer = fixture.component
    schedule, layout = tokenizer.schedule, tokenizer.layout
    vectors = tokenizer.vectors(tokenizer.encode(fixture.windows()).codes)
    inputs, partial_latent = layout.inputs(vectors), layout.start(len(vectors))
    bounded = layout.decoded_fraction(0) < 1  # a pyramid's scales all reach the whole window
    require_shape("start()", partial_latent, (6, tokenizer.latent_length, tokenizer.code_dim), "(B, N, C)")
    for k, span, rows in input_spans(schedule.lengths):
        if k:
            inputs_of_scale, shape = layout.scale_input(partial_latent, k), (6, schedule.lengths[k], tokenizer.code_dim)
            require_shape(f"scale_input() of scale {k + 1}", inputs_of_scale, shape, "(B, l_k, C)")
            difference = float((inputs_of_scale - inputs[:, rows]).abs().max())
            require(
                difference <= 1e-5,
                f"What scale {k + 1} sees of the partial latent differs from its teacher-forcing input by "
                f"{difference:.2g}.",
                look="scale_input(), extend() and inputs(): all see the scales before k, and only those",
            )
        before, final = partial_latent.clone(), round(layout.decoded_fraction(k) * tokenizer.latent_length)
        extended = layout.extend(partial_latent, vectors[:, span], k)
        require(torch.equal(partial_latent, before), "extend() changes the partial latent that it is given.")
        partial_latent = extended
        if not bounded:
            continue
        require(
            _is_close(partial_latent[:, :final], layout.latent(vectors)[:, :final])
            and not partial_latent[:, final:].any(),
            f"After scale {k + 1}, decoded_fraction({k}) of the latent is not final, or the rest not zero.",
            look="decoded_fraction()",
        )
    require(
        _is_close(partial_latent, layout.latent(vectors)),
        "The partial latent after the last scale is not the latent.",
        look="extend() and latent()",
    )


@contract("one-hot codes have the vectors of their ids", "tokenizer")
def one_hot(fixture: Fixture) -> None:
    tokenizer = fixture.component
    if tokenizer.vocabulary is None:
        raise NotApplicableError("its codes are continuous")
    codes = tokenizer.encode(fixture.windows()).codes
    hard = F.one_hot(codes, tokenizer.vocabulary).float()
    weights = (0.25 * hard + 0.75 * hard.roll(1, 0)).requires_grad_()
    relaxed, vectors = tokenizer.vectors(weights), tokenizer.vectors(codes)
    tokenizer.layout.latent(relaxed).square().sum().backward()
    require(
        _is_close(tokenizer.vectors(hard), vectors)
        and _is_close(relaxed, 0.25 * vectors + 0.75 * vectors.roll(1, 0))
        and weights.grad is not None
        and weights.grad.abs().sum() > 0,
        "Weighted codes (B, L, V) lack the mean of the codes' vectors or its gradient: L_cond cannot reach the prior.",
        look="vectors(): floating codes are weights, codes @ table",
    )


@contract("the loss trains, and decodes its latent", "tokenizer")
def loss(fixture: Fixture) -> None:
    planner = fixture.build_ready()
    tokenizer, decoder, batch = fixture.part(planner), fixture.part(planner, "decoder"), fixture.batch(32)
    x = fixture.part(planner, "view")(batch)
    latents: list[Tensor] = []

    def decode(latent: Tensor) -> Tensor:
        latents.append(latent)
        decoded: Tensor = x + latent.mean() if decoder is None else decoder.base(latent, batch.condition())
        return decoded

    losses = tokenizer.train().loss(batch, x.requires_grad_(), decode)
    require_losses(losses)
    require(latents, "The tokenizer's loss never decodes.", expected="a call of decode(latent)", look="loss()")
    shape = (32, tokenizer.latent_length, tokenizer.code_dim)
    require_shape("the latent that is decoded", latents[0], shape, "(B, N, C)")
    trainable = isinstance(tokenizer, nn.Module) and list(tokenizer.parameters())
    require(losses["total"].requires_grad or not trainable, "The loss has no gradient.", look="loss()")
    if trainable:
        _require_reached(latents[0], x, list(tokenizer.parameters()))
    with torch.no_grad():
        tokenizer.eval().loss(batch, x, decode)
        same = _is_close(latents[-1], tokenizer.encode(x).latent)
    require(same, "What is decoded in training is not the latent of the codes.", look="loss(): what decode() is given")
    usage = tokenizer.usage()
    require(all(isinstance(value, float) for value in usage.values()), "usage() is a dict[str, float].", got=usage)
    once, twice = (float(_evaluated_loss(fixture, repeats)) for repeats in (1, 2))
    require(
        abs(twice - once) <= 0.01 * abs(once),
        "The loss of a batch that holds each window twice differs from that of the windows.",
        expected=f"{once:.4g}, a mean",
        got=f"{twice:.4g}",
        look="loss(): sums over the batch",
    )


def _require_reached(latent: Tensor, x: Tensor, weights: list[Tensor]) -> None:
    """Raises `ContractError` if reconstruction trains neither what the latent follows from nor all that there is."""
    gradients: tuple[Tensor | None, ...] = (None,)
    if latent.requires_grad:
        gradients = torch.autograd.grad(latent.square().sum(), [x, *weights], retain_graph=True, allow_unused=True)
    reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
    require(
        reached[0] or (len(reached) > 1 and all(reached[1:])),
        "No gradient leads from the decoded latent back to the window: reconstruction does not train the encoder.",
        expected="the latent's value with the encoder's gradient (straight-through): f + (z - f).detach()",
        look="loss(): detach(), and codes that are chosen by argmin",
    )


@torch.no_grad()
def _evaluated_loss(fixture: Fixture, repeats: int) -> Tensor:
    """The tokenizer's loss in evaluation, of a batch that holds each window several times."""
    planner, batch = fixture.planner, select(fixture.batch(8), list(range(8)) * repeats)
    x = fixture.part(planner, "view")(batch)
    torch.manual_seed(0)
    total: Tensor = fixture.component.loss(batch, x, lambda latent: x + latent.mean((1, 2), keepdim=True))["total"]
    return total


@contract("padding does not count in the loss", "tokenizer")
@torch.no_grad()
def padding(fixture: Fixture) -> None:
    planner = fixture.build_ready()
    tokenizer, batch, view = fixture.part(planner), fixture.batch(8), fixture.part(planner, "view")

    def total(error: float, padding_error: float, batch: Batch = batch) -> float:
        """The loss if points of padded windows are decoded with an error, others with 2, and padding with another."""
        torch.manual_seed(0)
        x, real = view(batch), batch.mask.unsqueeze(-1)
        errors = torch.where(batch.mask.all(1), 2.0, error)[:, None, None]
        return float(tokenizer.loss(batch, x, lambda _: torch.where(real, x + errors, x + padding_error))["total"])

    usual, other = total(2.0, 2.0), total(2.0, 100.0)
    require(
        abs(usual - other) <= 1e-4 * abs(usual),
        "How padding is decoded changes the loss: short episodes would be learnt wrong.",
        look="loss(): only points where batch.mask (B, T) is true count",
    )
    rise, *rises = (total(3.0, 3.0, each) - total(2.0, 2.0, each) for each in (batch, *shares(batch)))
    require(
        abs(rise - sum(rises) / len(rises)) <= 1e-3 * abs(rise),
        "A batch that is shared out to several devices or micro-batches has another loss.",
        expected=f"{rise:.4g} more where errors of padded windows are larger",
        got=f"{sum(rises) / len(rises):.4g}, the mean of two shares",
        look="batch.mean(errors, lambda batch: batch.mask), which counts the points of the full batch",
    )


@contract("decoded_fraction() grows to 1", "tokenizer")
def decoded_fraction(fixture: Fixture) -> None:
    layout, scales = fixture.component.layout, fixture.component.schedule.scales
    fractions = [float(layout.decoded_fraction(k)) for k in range(scales)]
    require(
        fractions == sorted(fractions) and fractions[0] > 0 and abs(fractions[-1] - 1) <= 1e-6,
        "decoded_fraction(k) is positive and grows to 1 at the last scale.",
        got=fractions,
    )


@contract("nothing changes in evaluation", "tokenizer")
@torch.no_grad()
def evaluation(fixture: Fixture) -> None:
    planner, batch = fixture.build_ready(), fixture.batch()
    tokenizer, x = fixture.part(planner), fixture.part(planner, "view")(batch)
    before, codes = {name: value.clone() for name, value in planner.state_dict().items()}, tokenizer.encode(x).codes
    tokenizer.loss(batch, x, lambda _: x + 1)
    tokenizer.after_step()
    changed = [name for name, value in planner.state_dict().items() if not torch.equal(value, before[name])]
    require(not changed, "The loss in evaluation mode changes the state.", got=", ".join(changed), look="self.training")
    same = torch.equal(tokenizer.train().encode(x).codes, codes)
    require(same, "encode() differs in training mode.", look="encode()")


@contract("known codes are those of such windows", "tokenizer")
@torch.no_grad()
def known_codes(fixture: Fixture) -> None:
    planner, batch = fixture.planner, fixture.batch(padded=False)
    tokenizer = fixture.component
    from_cond = tokenizer.known_codes(batch.condition())
    if from_cond is None:
        raise NotApplicableError("no code follows from the condition alone")
    codes = tokenizer.encode(fixture.part(planner, "view")(batch)).codes
    for name, value in (("known_codes().codes", from_cond.codes), ("known_codes().mask", from_cond.mask)):
        require_shape(name, value, tuple(codes.shape), "of encode().codes")
    dtype = from_cond.mask.dtype
    require(dtype == torch.bool, "A mask is boolean, true where codes are known.", got=dtype)
    equal = torch.isclose(from_cond.codes.float(), codes.float(), atol=1e-5) | ~from_cond.mask
    require(
        equal.all(), f"{int((~equal).sum())} known codes differ from encode(x).codes of windows under that condition."
    )


@contract("a latent that is a trajectory can be read and written", "tokenizer")
@torch.no_grad()
def values(fixture: Fixture) -> None:
    tokenizer, x = fixture.component, fixture.windows()
    if not isinstance(tokenizer, Values):
        raise NotApplicableError("its latent is not the trajectory")
    fields, period = tokenizer.fields_of_tokens, tokenizer.period
    require(len(fields) == period, f"fields_of_tokens names the field of each of {period} tokens.", got=fields)
    latent = tokenizer.spread(x)
    require_shape("spread()", latent, (6, fixture.component.latent_length, fixture.component.code_dim), "(B, N, C)")
    points = tokenizer.points(latent)
    require_shape("points()", points, tuple(x.shape), "(B, T, D)")
    require(_is_close(tokenizer.points(tokenizer.spread(points)), points), "points() does not undo spread().")


def _is_close(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, atol=1e-5)
