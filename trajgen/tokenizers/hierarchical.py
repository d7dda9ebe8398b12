"""The multi-scale quantizer of vector-quantize-pytorch as a tokenizer, an alternative to our own pyramid."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.bounds import check_options, halvings
from trajgen.tokenizers.codebook import Hierarchy
from trajgen.tokenizers.latent import LatentTokenizer
from trajgen.tokenizers.pyramid import Pyramid, pyramid_schedule


class LibraryPyramid(Pyramid):
    """The partial latent of the library's quantizer: pools and grows as it does.

    Args:
        schedule: lengths that end at N.
        hierarchy: the quantizer, which belongs to the tokenizer.
        code_dim: C.
        length: N.

    Raises:
        ConfigError: if the schedule does not end at N, or a scale is longer than N.
    """

    def __init__(self, schedule: ScaleSchedule, hierarchy: Hierarchy, code_dim: int, length: int) -> None:
        super().__init__(schedule, code_dim, length)
        self._hierarchy = [hierarchy]  # in a list, so that its parameters are counted once

    def pool(self, z: Tensor, k: int) -> Tensor:
        """A latent (B, N, C), averaged to the length of scale k."""
        return self._hierarchy[0].pool(z, k)

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The running sum with the code vectors (B, l_k, C) of scale k added."""
        return partial_latent + self._hierarchy[0].grow(vectors, k)


class HierarchicalTokenizer(LatentTokenizer):
    """Learns by the library's own pass: the codes move after every scale, and the encoder through each of them."""

    codebook: Hierarchy

    def learn(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of the codes on f (B, N, C): the latent to decode, ids, and the loss of the codes."""
        latent, ids, commitment = self.codebook.quantize(f)
        return latent, ids, commitment, latent.new_zeros(())


@register("tokenizer", "hierarchical_vq")
def hierarchical_vq(
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
    convolutions: int = 1,
    smoothing: float = 0.5,
) -> HierarchicalTokenizer:
    """The library's multi-scale residual quantizer (VAR, arXiv 2404.02905, algorithm 1), trained as the library does.

    Codes are the same as those of ``multiscale_vq`` with the same weights; it differs in how they are learnt: scale by
    scale, with gradients through every scale, and with convolutions that the scales may share.

    Args:
        schedule: from N to a scale schedule that ends at N and never shrinks.
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
        convolutions: how many smoothing convolutions the scales share out; 0 for one per scale.
        smoothing: weight of the convolutions.

    Raises:
        ConfigError: for a size out of bounds, a T that is not N times a power of two, or a schedule that does not
            end at N or shrinks.
    """
    check_options(code_dim=code_dim, codebook_size=codebook_size, width=width, depth=depth)
    check_options(commitment=commitment, decay=decay, dead_code_threshold=dead_code_threshold)
    check_options(convolutions=convolutions, smoothing=smoothing)
    halvings(horizon, latent_length)
    scales = schedule(latent_length)
    codes = Hierarchy(
        codebook_size, code_dim, _growing(scales, latent_length), decay=decay, dead_code_threshold=dead_code_threshold,
        commitment=commitment, convolutions=convolutions, smoothing=smoothing,
    )  # fmt: skip
    layout = LibraryPyramid(scales, codes, code_dim, latent_length)
    return HierarchicalTokenizer(layout, codes, features, horizon, width=width, depth=depth)


def _growing(schedule: ScaleSchedule, length: int) -> ScaleSchedule:
    """The schedule, if no scale is shorter than the one before."""
    if any(later < earlier for earlier, later in pairwise(schedule)):
        raise ConfigError(
            "The scales of this quantizer never shrink.",
            expected=f"lengths in ascending order, as in (1, …, {length})",
            got=f"schedule {schedule}",
            fix=f"{pyramid_schedule(length)}, or tokenizer=multiscale_vq",
        )
    return schedule
