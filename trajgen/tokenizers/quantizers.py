"""Quantizers: the code vectors of a tokenizer, and how they are learnt."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError

MAX_VOCABULARY = 2**16
"""Of codes that follow from other options: a prior has an output for each."""

MIN_LEVELS = 3
"""Of a channel of FSQ: with two, the bound of arXiv 2309.15505 is almost flat around zero."""

SMOOTHING = 1e-5
"""Laplace smoothing of cluster sizes, as in vector-quantize-pytorch."""

KMEANS_STEPS = 10


class Quantizer(nn.Module, ABC):
    """V code vectors of width C.

    Args:
        size: V.
        code_dim: C.
    """

    def __init__(self, size: int, code_dim: int) -> None:
        super().__init__()
        self.size, self.code_dim = size, code_dim

    @property
    def initialized(self) -> bool:
        """Whether the codes need no `initialize`."""
        return True

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """All code vectors (V, C), in float32."""

    @abstractmethod
    def loss(self, x: Tensor, ids: Tensor) -> Tensor:
        """The loss of the codes, from vectors x (B, n, C) and the ids (B, n) of the codes nearest to them."""

    def bound(self, f: Tensor) -> Tensor:
        """Maps the output of an encoder (B, N, C) into the range of the codes."""
        return f

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n) of the codes nearest to x (B, n, C)."""
        return torch.cdist(x.float(), self.codebook).argmin(-1)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, n) and vectors (B, n, C) of the codes nearest to x (B, n, C); `loss` alone trains the codes."""
        ids = self.nearest(x)
        return ids, F.embedding(ids, self.codebook.detach())

    def initialize(self, x: Tensor) -> None:
        """Initializes the codes from vectors x (B, n, C)."""

    def after_step(self) -> None:
        """Updates what no optimizer trains; called once after each optimizer step."""


class EMAVectorQuantizer(Quantizer):
    """Codes that are moving averages of the vectors nearest to them (VQ-VAE, arXiv 1711.00937, appendix A.1).

    Starts from k-means centers of the first batch. Codes that fall out of use are replaced by vectors of the batch
    (arXiv 2005.00341, section 3.1). `loss` collects vectors in training, and `after_step` updates the codes once by all
    of them, however many micro-batches or processes share a batch: the first process updates the codes, the others copy
    them. Nothing waits for the device.

    Args:
        codebook_size: V.
        code_dim: C.
        commitment: weight of the loss that keeps vectors near their codes.
        decay: of the moving averages.
        dead_code_threshold: moving count below which a code is replaced.
    """

    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment: float = 0.25,
        decay: float = 0.9,
        dead_code_threshold: float = 1.0,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        self.commitment, self.decay, self.dead_code_threshold = commitment, decay, dead_code_threshold
        self.register_buffer("embed", torch.zeros(codebook_size, code_dim))
        self.register_buffer("embed_avg", torch.zeros(codebook_size, code_dim))
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self._initialized = False
        self._collected: list[tuple[Tensor, Tensor]] = []

    @property
    def initialized(self) -> bool:
        """Whether the codes have been counted; waits for the device only until they have."""
        self._initialized = self._initialized or bool(self.cluster_size.any())
        return self._initialized

    @property
    def codebook(self) -> Tensor:
        """All code vectors (V, C)."""
        return self.embed

    def loss(self, x: Tensor, ids: Tensor) -> Tensor:
        """The commitment loss; in training, the vectors are collected for `after_step`."""
        if self.training:
            self._collected.append((x.detach().float(), ids))
        return self.commitment * F.mse_loss(x.float(), F.embedding(ids, self.embed))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the codes to the k-means centers of vectors x (B, n, C), those of the first process."""
        self._set_to_kmeans(x.float().flatten(0, 1))
        self._broadcast()
        self._initialized = True

    @torch.no_grad()
    def after_step(self) -> None:
        """Updates the codes by the vectors collected since the last call, in the order of the whole batch."""
        if self._collected:
            x, ids = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*self._collected, strict=True))
            self._collected.clear()
            x_all, ids_all = gather_windows(x), gather_windows(ids)
            if x_all is not None and ids_all is not None:
                self._update(x_all.flatten(0, 1), ids_all.flatten())
            self._broadcast()

    def _update(self, x: Tensor, ids: Tensor) -> None:
        """One step of the moving averages towards vectors x (n, C) with the codes ids (n,)."""
        counts, sums = self._cluster_sums(x, ids)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embed_avg.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        size = (self.cluster_size + SMOOTHING) / (total + self.size * SMOOTHING) * total
        self.embed.copy_(self.embed_avg / size.unsqueeze(1))
        self._replace_dead_codes(x)

    def _replace_dead_codes(self, x: Tensor) -> None:
        """Replaces codes out of use by different vectors of x (n, C); at most n of them."""
        is_dead = self.cluster_size < self.dead_code_threshold
        order = is_dead.cumsum(0) - 1
        is_dead &= order < len(x)
        rows = torch.randperm(len(x), device=x.device)[order.clamp(0, len(x) - 1)]
        threshold, dead_rows = self.dead_code_threshold, is_dead.unsqueeze(1)
        self.embed.copy_(torch.where(dead_rows, x[rows], self.embed))
        self.embed_avg.copy_(torch.where(dead_rows, x[rows] * threshold, self.embed_avg))
        self.cluster_size.masked_fill_(is_dead, threshold)

    def _set_to_kmeans(self, x: Tensor) -> None:
        rows = torch.randperm(len(x), device=x.device)
        self.embed.copy_(x[rows[torch.arange(self.size, device=x.device) % len(x)]])
        for _ in range(KMEANS_STEPS):
            counts, sums = self._cluster_sums(x, self.nearest(x))
            means = sums / counts.clamp(min=1).unsqueeze(1)
            self.embed.copy_(torch.where(counts.unsqueeze(1) > 0, means, self.embed))
        self.cluster_size.copy_(counts)
        self.embed_avg.copy_(self.embed * counts.unsqueeze(1))

    def _cluster_sums(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """How many of the vectors x (n, C) have each code (V,), and their sums (V, C)."""
        one_hot = x.new_zeros(len(x), self.size).scatter_(1, ids.unsqueeze(1), 1.0)
        with torch.autocast(x.device.type, enabled=False):
            return one_hot.sum(0), one_hot.T @ x

    def _broadcast(self) -> None:
        if world_size() > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, src=0)


class FSQQuantizer(Quantizer):
    """Rounds every channel to a few levels (FSQ, arXiv 2309.15505, section 3.1); nothing is learnt.

    Args:
        levels: codes per channel; C of them, and V is their product.

    Raises:
        ConfigError: if there are no levels, one is too small, or their product is too large.
    """

    levels: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        size = math.prod(levels)
        if not levels or min(levels) < MIN_LEVELS or size > MAX_VOCABULARY:
            raise ConfigError(
                f"Every channel of FSQ has {MIN_LEVELS} levels or more; their product is at most {MAX_VOCABULARY}.",
                got=f"tokenizer.levels={list(levels)}, a product of {size}",
                fix="tokenizer.levels=[8,6,5]",
            )
        from vector_quantize_pytorch import FSQ  # its import takes longer than loading a policy

        super().__init__(size, len(levels))
        self.fsq = FSQ(list(levels))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """All code vectors (V, C), in [-1, 1]."""
        return self.fsq.implicit_codebook

    def bound(self, f: Tensor) -> Tensor:
        """The paper's bounding function, before rounding: (B, N, C) into the range of the levels."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (torch.tanh(f.float() + torch.atanh(offset / half)) * half - offset) / (self.levels // 2)

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n): every channel of x (B, n, C) rounded to its nearest level."""
        half = self.levels // 2
        rounded = torch.clamp((x.float() * half).round(), min=-half, max=self.levels - 1 - half)
        return self.fsq.codes_to_indices(rounded / half).long()

    def loss(self, x: Tensor, ids: Tensor) -> Tensor:
        """Zero: nothing is learnt."""
        return x.new_zeros(())


class LFQQuantizer(Quantizer):
    """The signs of C channels: V = 2^C codes without lookup (LFQ, arXiv 2310.05737, section 3.1).

    An entropy loss makes each vector decide for one code, and all vectors together use all codes.

    Args:
        code_dim: C.
        commitment: weight of the loss that keeps channels near -1 and 1.
        entropy: weight of the entropy loss.
        diversity: weight in it of the entropy over the batch.

    Raises:
        ConfigError: if C is too large.
    """

    def __init__(
        self, code_dim: int, *, commitment: float = 0.25, entropy: float = 0.1, diversity: float = 1.0
    ) -> None:
        if 2**code_dim > MAX_VOCABULARY:
            raise ConfigError(
                "The codes of LFQ are all the signs that C channels can have: 2^C codes.",
                expected=f"at most {MAX_VOCABULARY.bit_length() - 1} channels",
                got=f"tokenizer.code_dim={code_dim}, 2^{code_dim} codes",
                fix="tokenizer.code_dim=8",
            )
        from vector_quantize_pytorch import LFQ

        super().__init__(2**code_dim, code_dim)
        self.diversity_weight = entropy * diversity
        self.lfq = LFQ(
            dim=code_dim, entropy_loss_weight=entropy, diversity_gamma=diversity, commitment_loss_weight=commitment
        )

    @property
    def codebook(self) -> Tensor:
        """All code vectors (V, C), of -1 and 1."""
        return self.lfq.codebook

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n): the signs of x (B, n, C) as the digits of a binary number."""
        return ((x > 0) * self.lfq.mask).sum(-1)

    def loss(self, x: Tensor, ids: Tensor) -> Tensor:
        """The entropy and commitment losses in training; zero in evaluation."""
        with torch.autocast(x.device.type, enabled=False):
            (_, _, loss), parts = self.lfq(x.float(), return_loss_breakdown=True)
            if self.training and world_size() > 1:
                # The library (1.32) takes the entropy of each process's own probabilities, divided by the processes.
                loss = loss + self.diversity_weight * (parts.batch_entropy - self._batch_entropy(x.float()))
        return loss

    def _batch_entropy(self, x: Tensor) -> Tensor:
        """The entropy of the mean probabilities of all processes, as the library has them at temperature 0.01."""
        probs = (200 * x.flatten(0, 1) @ self.codebook.T).softmax(-1).mean(0)
        total = probs.detach().clone()
        dist.all_reduce(total)
        probs = probs + (total / world_size() - probs.detach())  # the gradient is that of this process's part
        return -(probs * probs.clamp(min=1e-5).log()).sum()


class SimVQQuantizer(Quantizer):
    """Fixed random codes behind one learnt linear map, so that all codes move (SimVQ, arXiv 2411.02038, section 4).

    Args:
        codebook_size: V.
        code_dim: C.
        commitment: weight of the loss that keeps vectors near their codes, next to the one that moves the codes.
    """

    def __init__(self, codebook_size: int, code_dim: int, *, commitment: float = 0.25) -> None:
        from vector_quantize_pytorch import SimVQ

        super().__init__(codebook_size, code_dim)
        self.simvq = SimVQ(
            code_dim, codebook_size, rotation_trick=False, input_to_quantize_commit_loss_weight=commitment
        )

    @property
    def codebook(self) -> Tensor:
        """All code vectors (V, C), in full precision."""
        with torch.autocast(self.simvq.frozen_codebook.device.type, enabled=False):
            return self.simvq.codebook

    def loss(self, x: Tensor, ids: Tensor) -> Tensor:
        """The loss that moves the codes towards the vectors, and the commitment loss."""
        with torch.autocast(x.device.type, enabled=False):
            return self.simvq(x.float())[2]


QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": EMAVectorQuantizer,
    "fsq": FSQQuantizer,
    "lfq": LFQQuantizer,
    "simvq": SimVQQuantizer,
}


def build_quantizer(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Quantizer:
    """The quantizer of a name.

    Args:
        name: one of `QUANTIZERS`.
        options: of all quantizers.
        defaults: their defaults.

    Raises:
        ConfigError: if an option is set that this quantizer does not have.
    """
    quantizer = QUANTIZERS[name]
    accepted = inspect.signature(quantizer).parameters
    for option, value in options.items():
        default = defaults[option]
        if option not in accepted and value != default:
            usual = str(list(default)).replace(" ", "") if isinstance(default, tuple) else default
            raise ConfigError(
                f"The quantizer {name} has no option {option}.",
                expected=", ".join(accepted),
                got=f"tokenizer.{option}={value} with tokenizer.quantizer={name}",
                fix=f"tokenizer.{option}={usual}",
            )
    return quantizer(**{option: value for option, value in options.items() if option in accepted})


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_windows(x: Tensor) -> Tensor | None:
    """The windows (B, ...) of all processes on the first one, in the order of the whole batch; None on the others."""
    if world_size() == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())] if dist.get_rank() == 0 else None
    dist.gather(x, parts, dst=0)
    return None if parts is None else torch.stack(parts, 1).flatten(0, 1)
