"""The multi-scale trajectory autoencoder of MAGE: a residual pyramid over one shared codebook."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Decoder
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Codes, Losses
from trajgen.nn.conv import ConvEncoder
from trajgen.tokenizers.codebook import Codebook, Usage
from trajgen.tokenizers.pyramid import ResidualPyramid


@register("tokenizer", "multiscale_vq")
class MultiscaleVQ(nn.Module):
    """Multi-scale residual tokens with one shared codebook: the MTAE of MAGE (arXiv 2602.23770, section 3).

    A convolutional encoder gives f (B, N, C); each scale quantises what the coarser ones left of it. The encoder
    learns through the sum of all scales (straight-through), the smoothing convolutions through reconstruction, and
    the codebook by running averages, once per step over the tokens of all scales.

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
        revive_below: running count under which a code is revived.

    Raises:
        ConfigError: if T is not N times a power of two, or the schedule does not end at N.
    """

    def __init__(
        self,
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
        revive_below: float = 1.0,
    ) -> None:
        super().__init__()
        ratio = horizon // latent_length if latent_length > 0 else 0
        if ratio < 1 or ratio * latent_length != horizon or ratio & (ratio - 1):
            raise ConfigError(
                "The horizon is the latent length times a power of two.",
                expected=f"tokenizer.latent_length one of "
                f"{[horizon >> i for i in range(12) if (horizon >> i) << i == horizon and horizon >> i]}",
                got=f"data.horizon={horizon}, tokenizer.latent_length={latent_length}",
                fix=f"tokenizer.latent_length={horizon // 4 or 1} or data.horizon={max(latent_length, 1) * 4}",
            )
        self.schedule = schedule(latent_length)
        self.latent_length, self.code_dim, self.vocabulary = latent_length, code_dim, codebook_size
        self.pyramid = ResidualPyramid(self.schedule, code_dim, latent_length)
        self.encoder = ConvEncoder(features, code_dim, ratio.bit_length() - 1, width=width, depth=depth)
        self.codebook = Codebook(codebook_size, code_dim, decay=decay, revive_below=revive_below, commitment=commitment)
        self.counter = Usage(self.schedule, codebook_size)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to token ids (B, L)."""
        return self._quantise(self.encoder(x))[0]

    def vectors(self, codes: Codes) -> Tensor:
        """Token ids (B, L), or relaxed one-hot codes (B, L, V), to code vectors (B, L, C)."""
        if codes.is_floating_point():
            return codes @ self.codebook.table.to(codes.dtype)
        return F.embedding(codes, self.codebook.table)

    def inputs(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the inputs (B, L - l_1, C) of scales 2 to K."""
        sums = self.pyramid.given(vectors)
        views = [self.view(sums[k], k) for k in range(1, self.schedule.scales)]
        return torch.cat(views, dim=1) if views else vectors[:, :0]

    def latent(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the aggregated latent Σ_k z_k (B, N, C)."""
        return self.pyramid.given(vectors)[-1]

    def start(self, batch: int) -> Tensor:
        """The empty canvas of a batch."""
        return self.pyramid.start(batch)

    def extend(self, canvas: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The canvas with the code vectors (B, l_k, C) of scale k added."""
        return self.pyramid.extend(canvas, vectors, k)

    def view(self, canvas: Tensor, k: int) -> Tensor:
        """The canvas pooled to the length of scale k, (B, l_k, C)."""
        return self.pyramid.pool(canvas, k)

    def loss(self, batch: Batch, x: Tensor, decoder: Decoder) -> Losses:
        """Reconstruction over real points, and commitment of each scale's residual to its codes."""
        f = self.encoder(x)
        if self.training and not self.codebook.started:
            self._first_codes(f)
        ids, residuals, total = self._quantise(f)
        commitment = self.codebook.learn(residuals)
        self.counter.add(ids)
        # The value is the quantised latent; the gradient reaches the encoder and the smoothing convolutions.
        decoded = decoder(total + f - f.detach())
        weight = batch.mask.unsqueeze(-1).to(decoded.dtype)
        reconstruction = ((decoded - x).square() * weight).sum() / (weight.sum() * x.shape[-1]).clamp(min=1)
        agreement = F.mse_loss(total, f.detach())
        return {
            "total": reconstruction + commitment + agreement,
            "reconstruction": reconstruction,
            "commitment": commitment,
        }

    def usage(self) -> dict[str, float]:
        """Per scale, the share of codes in use and their perplexity since the last call."""
        return self.counter.take()

    def _quantise(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (B, L), the residuals (B, L, C) they stand for, and the sum of the scales (B, N, C)."""
        ids: list[Tensor] = []
        residuals: list[Tensor] = []

        def pick(k: int, canvas: Tensor) -> Tensor:
            residuals.append(self.pyramid.pool(f - canvas.detach(), k))
            ids.append(self.codebook.nearest(residuals[-1].detach()))
            return F.embedding(ids[-1], self.codebook.table)

        *_, total = self.pyramid.sums(len(f), pick)
        return torch.cat(ids, 1), torch.cat(residuals, 1), total

    @torch.no_grad()
    def _first_codes(self, f: Tensor) -> None:
        """Starts the codebook from vectors of all scales rather than of the coarsest alone."""
        self.codebook.learn(torch.cat([self.pyramid.pool(f, k) for k in range(self.schedule.scales)], 1))
