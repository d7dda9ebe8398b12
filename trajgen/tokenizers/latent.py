"""Tokenizers with a learnt latent: a convolutional encoder, a layout of the codes, and a quantizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Codes, Cond, Encoding, KnownCodes, Losses
from trajgen.nn.conv import ConvEncoder
from trajgen.tokenizers.bounds import check_bits, check_levels, check_options, halvings
from trajgen.tokenizers.codebook import Codebook, FiniteScalars, LinearCodebook, Quantizer, Signs
from trajgen.tokenizers.layout import Layout, layout_of
from trajgen.tokenizers.pyramid import ResidualPyramid
from trajgen.tokenizers.row import TokenRow
from trajgen.tokenizers.usage import Usage


class LatentTokenizer(nn.Module):
    """An encoder gives f (B, N, C); the layout says what each scale has to describe of it, the quantizer by which code.

    The encoder learns through the sum of all scales (straight-through), the layout's convolutions through
    reconstruction and through f, the codes as their quantizer does, once per step over the tokens of all scales.

    Args:
        layout: of L tokens in a latent of length N and width C.
        codebook: V codes of width C.
        features: D.
        horizon: T, which is N times a power of two.
        width: channels of the encoder.
        depth: residual blocks per length in the encoder.

    Raises:
        ConfigError: if T is not N times a power of two.
    """

    def __init__(
        self, layout: Layout, codebook: Quantizer, features: int, horizon: int, *, width: int, depth: int
    ) -> None:
        super().__init__()
        self.schedule, self.code_dim, self.latent_length = layout.schedule, layout.code_dim, layout.length
        self.vocabulary = codebook.size
        self.layout = layout
        times = halvings(horizon, layout.length)
        self.encoder = ConvEncoder(features, layout.code_dim, times, width=width, depth=depth)
        self.codebook = codebook
        self.counter = Usage(self.schedule, codebook.size)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Encoding:
        """Windows (B, T, D) to token ids (B, L), teacher-forcing inputs and latent."""
        ids, _, inputs, latent = self.quantize(self.features(x))
        return Encoding(ids, inputs, latent)

    def vectors(self, codes: Codes) -> Tensor:
        """Token ids (B, L), or relaxed one-hot codes (B, L, V), to code vectors (B, L, C)."""
        if codes.is_floating_point():
            return codes @ self.codebook.table.to(codes.dtype)
        return F.embedding(codes, self.codebook.table)

    def known_codes(self, cond: Cond) -> KnownCodes | None:
        """Nothing: which codes a condition leads to has to be learnt."""
        return None

    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        """Reconstruction over real points, and what the codes and the layout learn from."""
        f = self.features(x)
        if self.training and not self.codebook.started:
            with torch.no_grad():  # from vectors of all scales rather than of the coarsest alone
                self.codebook.learn(self.layout.samples(f))
        latent, ids, commitment, agreement = self.learn(f)
        self.counter.add(ids)
        reconstruction = batch.mean((decode(latent) - x).square().mean(-1), lambda batch: batch.mask)
        return {
            "total": reconstruction + commitment + agreement,
            "reconstruction": reconstruction,
            "commitment": commitment,
        }

    def after_step(self) -> None:
        """Moves the codes, where they learn by themselves."""
        if isinstance(self.codebook, Codebook):
            self.codebook.after_step()

    def usage(self) -> dict[str, float]:
        """Per scale, the share of codes in use and their perplexity since the last call."""
        return self.counter.take()

    def features(self, x: Tensor) -> Tensor:
        """Windows (B, T, D) to the latent f (B, N, C) that the codes are to describe."""
        return self.codebook.bound(self.encoder(x))

    def quantize(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids (B, L), the vectors they stand for (B, L, C), the inputs (B, L - l_1, C) and the latent (B, N, C)."""
        ids: list[Tensor] = []
        table = self.codebook.table.detach()  # the quantizer alone moves its codes

        def nearest(x: Tensor) -> Tensor:
            ids.append(self.codebook.nearest(x))
            return F.embedding(ids[-1], table)

        quantized, inputs, latent = self.layout.encode(f, nearest)
        return torch.cat(ids, 1), quantized, inputs, latent

    def learn(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of the codes on f (B, N, C): the latent to decode, ids, and the losses of codes and layout."""
        ids, quantized, _, total = self.quantize(f)
        commitment = self.codebook.learn(quantized)
        # The value is the quantized latent; the gradient reaches the encoder and the layout's convolutions, which
        # learn from the agreement too.
        return total + f - f.detach(), ids, commitment, F.mse_loss(total, f.detach())


@register("tokenizer", "multiscale_vq")
def multiscale_vq(
    schedule: Callable[[int], ScaleSchedule],
    features: int,
    horizon: int,
    *,
    latent_length: int = 8,
    code_dim: int = 8,
    codebook_size: int = 128,
    width: int = 64,
    depth: int = 1,
    commitment: float = 0.25,
    decay: float = 0.9,
    dead_code_threshold: float = 1.0,
) -> LatentTokenizer:
    """Multi-scale residual tokens with one shared codebook: the MTAE of MAGE (arXiv 2602.23770, section 3).

    Args:
        schedule: from N to a scale schedule that ends at N.
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: N.
        code_dim: C.
        codebook_size: V.
        width: channels of the encoder.
        depth: residual blocks per length in the encoder.
        commitment: weight of the commitment loss.
        decay: of the codebook's running averages.
        dead_code_threshold: running count under which a code is revived.

    Raises:
        ConfigError: for a size out of bounds, a T that is not N times a power of two, or a schedule that does not
            end at N.
    """
    check_options(code_dim=code_dim, codebook_size=codebook_size, width=width, depth=depth)
    check_options(commitment=commitment, decay=decay, dead_code_threshold=dead_code_threshold)
    halvings(horizon, latent_length)
    layout = ResidualPyramid(schedule(latent_length), code_dim, latent_length)
    codes = Codebook(
        codebook_size, code_dim, decay=decay, dead_code_threshold=dead_code_threshold, commitment=commitment
    )
    return LatentTokenizer(layout, codes, features, horizon, width=width, depth=depth)


@register("tokenizer", "vq")
def vq(
    schedule: Callable[[int], ScaleSchedule],
    features: int,
    horizon: int,
    *,
    latent_length: int = 8,
    code_dim: int = 8,
    codebook_size: int = 128,
    width: int = 64,
    depth: int = 1,
    commitment: float = 0.25,
    decay: float = 0.9,
    dead_code_threshold: float = 1.0,
) -> LatentTokenizer:
    """A row of vector-quantized tokens, one per stretch of the window: VQ-VAE (arXiv 1711.00937, section 3).

    Args:
        schedule: from N to a scale schedule that adds up to N.
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: N.
        code_dim: C.
        codebook_size: V.
        width: channels of the encoder.
        depth: residual blocks per length in the encoder.
        commitment: weight of the commitment loss.
        decay: of the codebook's running averages.
        dead_code_threshold: running count under which a code is revived.

    Raises:
        ConfigError: for a size out of bounds, a T that is not N times a power of two, or a schedule that does not
            add up to N.
    """
    check_options(code_dim=code_dim, codebook_size=codebook_size, width=width, depth=depth)
    check_options(commitment=commitment, decay=decay, dead_code_threshold=dead_code_threshold)
    halvings(horizon, latent_length)
    layout = TokenRow(schedule(latent_length), code_dim, latent_length)
    codes = Codebook(
        codebook_size, code_dim, decay=decay, dead_code_threshold=dead_code_threshold, commitment=commitment
    )
    return LatentTokenizer(layout, codes, features, horizon, width=width, depth=depth)


@register("tokenizer", "fsq")
def fsq(
    schedule: Callable[[int], ScaleSchedule],
    features: int,
    horizon: int,
    *,
    latent_length: int = 8,
    levels: tuple[int, ...] = (8, 6, 5),
    width: int = 64,
    depth: int = 1,
) -> LatentTokenizer:
    """Finite scalar quantization: every channel of the latent is rounded to a few levels (arXiv 2309.15505, section 3).

    Args:
        schedule: from N to a scale schedule that ends at N (a pyramid) or adds up to N (a row).
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: N.
        levels: per channel; there are C of them, and the vocabulary V is their product.
        width: channels of the encoder.
        depth: residual blocks per length in the encoder.

    Raises:
        ConfigError: for a size out of bounds, a T that is not N times a power of two, or a schedule that does not fit.
    """
    check_options(width=width, depth=depth)
    check_levels(levels)
    halvings(horizon, latent_length)
    layout = layout_of(schedule(latent_length), len(levels), latent_length)
    return LatentTokenizer(layout, FiniteScalars(levels), features, horizon, width=width, depth=depth)


@register("tokenizer", "lfq")
def lfq(
    schedule: Callable[[int], ScaleSchedule],
    features: int,
    horizon: int,
    *,
    latent_length: int = 8,
    code_dim: int = 8,
    width: int = 64,
    depth: int = 1,
    entropy: float = 0.1,
    diversity: float = 1.0,
    commitment: float = 0.25,
) -> LatentTokenizer:
    """Lookup-free quantization: a code is the signs of its channels (arXiv 2310.05737, section 3.1).

    Args:
        schedule: from N to a scale schedule that ends at N (a pyramid) or adds up to N (a row).
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: N.
        code_dim: C; the vocabulary V is 2^C.
        width: channels of the encoder.
        depth: residual blocks per length in the encoder.
        entropy: weight of the entropy loss.
        diversity: weight in it of the entropy over the batch.
        commitment: weight of the loss that keeps channels near -1 and 1.

    Raises:
        ConfigError: for a size out of bounds, a T that is not N times a power of two, or a schedule that does not fit.
    """
    check_options(code_dim=code_dim, width=width, depth=depth)
    check_options(entropy=entropy, diversity=diversity, commitment=commitment)
    check_bits(code_dim)
    halvings(horizon, latent_length)
    layout = layout_of(schedule(latent_length), code_dim, latent_length)
    codes = Signs(code_dim, entropy=entropy, diversity=diversity, commitment=commitment)
    return LatentTokenizer(layout, codes, features, horizon, width=width, depth=depth)


@register("tokenizer", "simvq")
def simvq(
    schedule: Callable[[int], ScaleSchedule],
    features: int,
    horizon: int,
    *,
    latent_length: int = 8,
    code_dim: int = 8,
    codebook_size: int = 128,
    width: int = 64,
    depth: int = 1,
    commitment: float = 0.25,
) -> LatentTokenizer:
    """Random codes seen through one learnt linear map, so that all of them move (SimVQ, arXiv 2411.02038, section 4).

    Args:
        schedule: from N to a scale schedule that ends at N (a pyramid) or adds up to N (a row).
        features: D.
        horizon: T, which is N times a power of two.
        latent_length: N.
        code_dim: C.
        codebook_size: V.
        width: channels of the encoder.
        depth: residual blocks per length in the encoder.
        commitment: weight of the loss that keeps vectors near their codes, beside that which moves the codes.

    Raises:
        ConfigError: for a size out of bounds, a T that is not N times a power of two, or a schedule that does not fit.
    """
    check_options(code_dim=code_dim, codebook_size=codebook_size, width=width, depth=depth, commitment=commitment)
    halvings(horizon, latent_length)
    layout = layout_of(schedule(latent_length), code_dim, latent_length)
    codes = LinearCodebook(codebook_size, code_dim, commitment=commitment)
    return LatentTokenizer(layout, codes, features, horizon, width=width, depth=depth)
