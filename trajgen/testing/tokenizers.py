"""What tokenizers promise: codes and back, scale by scale."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.protocols import Values
from trajgen.testing.bench import Bench
from trajgen.testing.contract import ContractError, NotApplicableError, contract
from trajgen.testing.shapes import check_losses, check_shape


@contract("codes, vectors, inputs and latent have their shapes", "tokenizer")
@torch.no_grad()
def shapes(bench: Bench) -> None:
    tokenizer, x = bench.component, _windows(bench)
    schedule, width, codes = tokenizer.schedule, tokenizer.code_dim, tokenizer.encode(x).codes
    tokens = schedule.tokens
    if tokenizer.vocabulary is None:
        check_shape("encode().codes, continuous", codes, (6, tokens, width), "(B, L, C)")
    else:
        check_shape("encode().codes", codes, (6, tokens), "(B, L)")
        if codes.dtype != torch.int64:
            raise ContractError("Token ids are whole numbers.", expected=torch.int64, got=codes.dtype, look="encode()")
        if int(codes.min()) < 0 or int(codes.max()) >= tokenizer.vocabulary:
            raise ContractError(
                "A token id is not in the vocabulary.",
                expected=f"0 to {tokenizer.vocabulary - 1}",
                got=f"{int(codes.min())} to {int(codes.max())}",
                look="encode() and vocabulary",
            )
    if len(codes.unique()) < 2:
        raise ContractError(
            "All windows get the same codes.", expected="different codes", got="one code", look="encode()"
        )
    vectors = tokenizer.vectors(codes)
    check_shape("vectors()", vectors, (6, tokens, width), "(B, L, C)")
    layout, encoding = tokenizer.layout, tokenizer.encode(x)
    inputs, latent = (6, tokens - schedule.lengths[0], width), (6, tokenizer.latent_length, width)
    check_shape("layout.inputs()", layout.inputs(vectors), inputs, "(B, L - l_1, C)")
    check_shape("layout.latent()", layout.latent(vectors), latent, "(B, N, C)")
    for name, value in (("inputs", layout.inputs(vectors)), ("latent", layout.latent(vectors))):
        same = getattr(encoding, name)
        if same.shape != value.shape or not torch.allclose(same, value, atol=1e-5):
            raise ContractError(
                f"encode().{name} differs from layout.{name}() of the vectors of its codes.",
                expected=f"encode(x).{name} equal to layout.{name}(vectors(encode(x).codes))",
                look="encode()",
            )


@contract("the partial latent, drawn step by step, is what inputs() and latent() say", "tokenizer")
@torch.no_grad()
def stepwise(bench: Bench) -> None:
    tokenizer = bench.component
    schedule, vectors = tokenizer.schedule, tokenizer.vectors(tokenizer.encode(_windows(bench)).codes)
    layout, first = tokenizer.layout, schedule.lengths[0]
    inputs, partial_latent = layout.inputs(vectors), layout.start(len(vectors))
    check_shape(
        "the partial latent of start()", partial_latent, (6, tokenizer.latent_length, tokenizer.code_dim), "(B, N, C)"
    )
    for k, span in enumerate(schedule.spans):
        if k:
            seen = layout.scale_input(partial_latent, k)
            check_shape(
                f"scale_input() of scale {k + 1}", seen, (6, schedule.lengths[k], tokenizer.code_dim), "(B, l_k, C)"
            )
            expected = inputs[:, span.start - first : span.stop - first]
            if not torch.allclose(seen, expected, atol=1e-5):
                raise ContractError(
                    f"What scale {k + 1} sees of the partial latent differs from its teacher-forcing input by "
                    f"{float((seen - expected).abs().max()):.2g}.",
                    expected="scale_input(partial_latent, k) equal to the part of inputs(vectors) of scale k",
                    look="scale_input() and extend() against inputs(): both see the scales before k, and only those",
                )
        partial_latent = layout.extend(partial_latent, vectors[:, span], k)
    latent = layout.latent(vectors)
    if partial_latent.shape != latent.shape or not torch.allclose(partial_latent, latent, atol=1e-5):
        raise ContractError(
            "The partial latent after the last scale is not the latent.",
            expected="extend() of all scales equal to latent(vectors)",
            got=f"{tuple(partial_latent.shape)} and {tuple(latent.shape)}, with other values",
            look="extend() and latent()",
        )


@contract("one-hot codes have the vectors of their ids", "tokenizer")
@torch.no_grad()
def one_hot(bench: Bench) -> None:
    tokenizer = bench.component
    if tokenizer.vocabulary is None:
        raise NotApplicableError("its codes are continuous")
    codes = tokenizer.encode(_windows(bench)).codes
    relaxed = tokenizer.vectors(F.one_hot(codes, tokenizer.vocabulary).float())
    if relaxed.shape != tokenizer.vectors(codes).shape or not torch.allclose(
        relaxed, tokenizer.vectors(codes), atol=1e-5
    ):
        raise ContractError(
            "One-hot codes (B, L, V) have other vectors than the ids they stand for: L_cond could not reach the prior.",
            expected="vectors(one_hot(codes)) equal to vectors(codes)",
            look="vectors(): floating codes are weights, codes @ table",
        )


@contract("the loss trains, and counts what it should", "tokenizer")
def loss(bench: Bench) -> None:
    planner = bench.ready()
    tokenizer, decoder, batch = bench.of(planner), bench.of(planner, "decoder"), bench.batch(32)
    x = bench.of(planner, "view")(batch)
    tokenizer.train()
    seen: list[Tensor] = []

    def decode(latent: Tensor) -> Tensor:
        seen.append(latent)
        decoded: Tensor = x + latent.mean() if decoder is None else decoder.base(latent, batch.condition())
        return decoded

    losses = tokenizer.loss(batch, x, decode)
    check_losses(losses)
    if not seen:
        raise ContractError(
            "The tokenizer's loss never decodes.", expected="a call of decode(latent)", got="none", look="loss()"
        )
    check_shape("the latent that is decoded", seen[0], (32, tokenizer.latent_length, tokenizer.code_dim), "(B, N, C)")
    own = isinstance(tokenizer, nn.Module) and list(tokenizer.parameters())
    if own and not losses["total"].requires_grad:
        raise ContractError("Nothing is learnt from the loss.", expected="a gradient", got="none", look="loss()")
    usage = tokenizer.usage()
    if any(not isinstance(v, float) for v in usage.values()):
        raise ContractError("usage() gives figures by name.", expected="dict[str, float]", got=usage, look="usage()")


@contract("padding does not count in the loss", "tokenizer")
@torch.no_grad()
def padding(bench: Bench) -> None:
    planner = bench.ready()
    tokenizer, batch = bench.of(planner), bench.batch(8)
    x, real = bench.of(planner, "view")(batch), batch.mask.unsqueeze(-1)

    def total(error: float) -> float:
        torch.manual_seed(0)
        losses = tokenizer.loss(batch, x, lambda latent: torch.where(real, x + 2.0, x + error))
        return float(losses["total"])

    if not abs(total(2.0) - total(100.0)) <= 1e-4 * abs(total(2.0)):
        raise ContractError(
            "How padding is decoded changes the loss: short episodes would be learnt wrong.",
            expected=f"a total of {total(2.0):.4g}",
            got=f"{total(100.0):.4g} where padded points are decoded badly",
            look="loss(): only points where batch.mask (B, T) is true count",
        )


@contract("decoded_fraction() grows to 1", "tokenizer")
def decoded_fraction(bench: Bench) -> None:
    shares = [float(bench.component.layout.decoded_fraction(k)) for k in range(bench.component.schedule.scales)]
    if shares != sorted(shares) or shares[0] <= 0 or abs(shares[-1] - 1) > 1e-6:
        raise ContractError(
            "decoded_fraction(k) is the share of the window that stands once scales 0 to k are drawn.",
            expected="shares above 0 that grow, the last one 1",
            got=shares,
            look="decoded_fraction()",
        )


@contract("codes that are given are those of such windows", "tokenizer")
@torch.no_grad()
def known_codes(bench: Bench) -> None:
    planner = bench.planner
    tokenizer, batch = bench.of(planner), bench.batch(padded=False)
    known = tokenizer.known_codes(batch.condition())
    if known is None:
        raise NotApplicableError("nothing follows from the condition alone")
    codes = tokenizer.encode(bench.of(planner, "view")(batch)).codes
    for what, value in (("known_codes().codes", known.codes), ("known_codes().mask", known.mask)):
        check_shape(what, value, tuple(codes.shape), "that of encode()")
    if known.mask.dtype != torch.bool:
        raise ContractError(
            "A mask is true where codes are known.", expected=torch.bool, got=known.mask.dtype, look="known_codes()"
        )
    same = torch.isclose(known.codes.float(), codes.float(), atol=1e-5) | ~known.mask
    if not same.all():
        raise ContractError(
            f"{int((~same).sum())} codes that are given differ from those of windows that start (and end) so.",
            expected="known_codes(cond).codes equal to encode(x).codes where the mask is true",
            look="known_codes()",
        )


@contract("a latent that is a trajectory can be read and written", "tokenizer")
@torch.no_grad()
def values(bench: Bench) -> None:
    tokenizer, x = bench.component, _windows(bench)
    if not isinstance(bench.component, Values):
        raise NotApplicableError("its latent is not the trajectory")
    if len(tokenizer.fields_of_tokens) != tokenizer.period:
        raise ContractError(
            "Each token of a point belongs to a field.",
            expected=f"{tokenizer.period} fields, as period says",
            got=tokenizer.fields_of_tokens,
            look="fields_of_tokens and period",
        )
    latent = tokenizer.spread(x)
    check_shape("spread()", latent, (6, tokenizer.latent_length, tokenizer.code_dim), "(B, N, C)")
    points = tokenizer.points(latent)
    check_shape("points()", points, tuple(x.shape), "(B, T, D)")
    if not torch.allclose(tokenizer.points(tokenizer.spread(points)), points, atol=1e-5):
        raise ContractError(
            "points() does not undo spread().", expected="the same points", look="points() and spread()"
        )


def _windows(bench: Bench) -> Any:
    return bench.of(bench.planner, "view")(bench.batch())
