"""A tokenizer of one's own: trajectory to codes, and codes to a latent."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen import ScaleSchedule, register
from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch, Cond, Losses


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
        if self.schedule.tokens != latent_length or horizon % latent_length:  # what cannot work is refused
            raise ConfigError(
                "The scales share out the pieces, and the pieces the window.", got=f"{self.schedule}",
                expected=f"scales that add up to {latent_length}, a divisor of {horizon}", fix="schedule=unit",
            )  # fmt: skip
        self.code_dim, self.vocabulary = code_dim, codebook_size
        self.encoder = nn.Linear(horizon // latent_length * features, code_dim)
        self.table = nn.Parameter(torch.randn(codebook_size, code_dim))

    def pieces(self, x: Tensor) -> Tensor:
        """Windows (B, T, D) to what the codes are to describe, (B, N, C)."""
        return self.encoder(x.unflatten(1, (self.latent_length, -1)).flatten(2))

    def encode(self, x: Tensor) -> Tensor:
        """Windows (B, T, D) to token ids (B, L)."""
        return torch.cdist(self.pieces(x), self.table).argmin(-1)

    def vectors(self, codes: Tensor) -> Tensor:
        """Token ids (B, L), or weights of all codes (B, L, V), to vectors (B, L, C)."""
        return codes @ self.table if codes.is_floating_point() else self.table[codes]

    def latent(self, vectors: Tensor) -> Tensor:
        """Vectors (B, L, C) to the latent (B, N, C): here they are the same."""
        return vectors

    # What scales see: the partial latent is the row of vectors so far, and a scale sees the last of those before it.
    def start(self, batch: int) -> Tensor:
        """An empty partial latent (B, N, C)."""
        return self.table.new_zeros(batch, self.latent_length, self.code_dim)

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The partial latent with the vectors of scale k put in."""
        span = self.schedule.spans[k]
        return torch.slice_scatter(partial_latent, vectors.to(partial_latent.dtype), 1, span.start, span.stop)

    def view(self, partial_latent: Tensor, k: int) -> Tensor:
        """What scale k sees of the partial latent, (B, l_k, C)."""
        start = self.schedule.spans[k].start
        return partial_latent[:, start - 1 : start].expand(-1, self.schedule.lengths[k], -1)

    def inputs(self, vectors: Tensor) -> Tensor:
        """What scales 2 to K see when all is known, (B, L - l_1, C)."""
        views = [self.view(vectors, k) for k in range(1, self.schedule.scales)]
        return torch.cat(views, dim=1) if views else vectors[:, :0]

    def decoded_fraction(self, k: int) -> float:
        """The share of the window that stands once scale k is drawn."""
        return self.schedule.spans[k].stop / self.latent_length

    def known_codes(self, cond: Cond) -> None:
        """No code follows from a condition alone."""

    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        """Reconstruction of real points, and codes and pieces drawn together."""
        f, z = self.pieces(x), self.vectors(self.encode(x))
        error = (decode(f + (z - f).detach()) - x).square().mean(-1)  # straight-through
        reconstruction = batch.mean(error, lambda batch: batch.mask)
        agreement = F.mse_loss(z, f.detach()) + 0.25 * F.mse_loss(f, z.detach())
        return {"total": reconstruction + agreement, "reconstruction": reconstruction}

    def usage(self) -> dict[str, float]:
        """Figures on the use of codes, for the log."""
        return {}
