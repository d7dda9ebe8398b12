"""A tokenizer of one's own: trajectory to codes, and codes to a latent."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen import ScaleSchedule, register
from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch, Cond, Encoding, Losses
from trajgen.tokenizers.layouts import TokenRow


@register("tokenizer", "mine")
class MineTokenizer(nn.Module):
    """Cuts a window into pieces, one token each: the nearest vector of a learnt table.

    Args:
        schedule: from N to the scales.
        features: D.
        horizon: T.
        latent_length: N, how many pieces.
        code_dim: C.
        codebook_size: V.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(
        self, schedule: Callable[[int], ScaleSchedule], features: int, horizon: int,
        *, latent_length: int = 8, code_dim: int = 8, codebook_size: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        self.schedule, self.latent_length = schedule(latent_length), latent_length
        if horizon % latent_length:  # what cannot work is refused
            raise ConfigError(f"{latent_length} pieces do not divide a window of {horizon} points.")
        # How vectors make up a latent: a row of tokens here; ResidualPyramid adds up scales.
        self.layout = TokenRow(self.schedule, code_dim, latent_length)
        self.code_dim, self.vocabulary = code_dim, codebook_size
        self.encoder = nn.Linear(horizon // latent_length * features, code_dim)
        self.table = nn.Parameter(torch.randn(codebook_size, code_dim))

    def pieces(self, x: Tensor) -> Tensor:
        """Windows (B, T, D) to what the codes are to describe, (B, N, C)."""
        return self.encoder(x.unflatten(1, (self.latent_length, -1)).flatten(2))

    def codes(self, x: Tensor) -> Tensor:
        """Windows (B, T, D) to token ids (B, L)."""
        return torch.cdist(self.pieces(x), self.table).argmin(-1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Encoding:
        """Windows (B, T, D) to codes, to the inputs of scales 2 to K (B, L - l_1, C), and to the latent (B, N, C)."""
        codes = self.codes(x)
        vectors = self.vectors(codes)
        return Encoding(codes, self.layout.inputs(vectors), self.layout.latent(vectors))

    def vectors(self, codes: Tensor) -> Tensor:
        """Token ids (B, L), or weights of all codes (B, L, V), to vectors (B, L, C)."""
        return codes @ self.table if codes.is_floating_point() else self.table[codes]

    def known_codes(self, cond: Cond) -> None:
        """No code follows from a condition alone."""

    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        """Reconstruction of real points, and codes and pieces pulled together."""
        f, z = self.pieces(x), self.vectors(self.codes(x))
        error = (decode(f + (z - f).detach()) - x).square().mean(-1)  # straight-through
        reconstruction = batch.mean(error, lambda batch: batch.mask)
        agreement = F.mse_loss(z, f.detach()) + 0.25 * F.mse_loss(f, z.detach())
        return {"total": reconstruction + agreement, "reconstruction": reconstruction}

    def after_step(self) -> None:
        """Called after each optimizer step: moving averages, for example."""

    def usage(self) -> dict[str, float]:
        """Figures on the use of codes, for the log."""
        return {}
