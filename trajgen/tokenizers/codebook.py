"""The quantizers of vector-quantize-pytorch behind one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize, lookup_free_quantization
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook as LibraryCodes


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_over_processes(shares: Tensor) -> Tensor:
    """The mean of what all processes have, with the gradient of one's own part of it."""
    if processes() == 1:
        return shares
    total = shares.detach().clone()
    dist.all_reduce(total)
    return shares + (total / processes() - shares.detach())


# The library's own (1.32) divides by the number of processes, but throws the sum over them away.
lookup_free_quantization.maybe_distributed_mean = mean_over_processes


class SharedCodes(LibraryCodes):
    """The library's codes, moved by what all processes see: the first one moves them, the others take them over.

    So they are the same on all of them to the last bit, and what one process would make of the same batch: its k-means
    centers, its running averages, its draw of codes to revive. The library's own synchronization draws these on each
    process by itself.
    """

    def forward(self, x: Tensor, **options: Any) -> Any:
        """Quantizes x (B, n, C)."""
        self.tokens = x.shape[-2]
        return super().forward(x, **options)

    def init_embed_(self, data: Tensor, mask: Tensor | None = None) -> None:
        """Starts from the k-means centers of data (1, B * n, C)."""
        if processes() == 1:
            super().init_embed_(data, mask)
        elif not self.initted:
            whole = self._gather(data)
            if whole is not None:
                super().init_embed_(whole)
            self._take_over()

    def update_codebook(
        self, flatten: Tensor, embed_onehot: Tensor, mask: Tensor | None = None, **options: Any
    ) -> None:
        """Moves the codes towards vectors (1, B * n, C) that are nearest to them, and revives those out of use."""
        if processes() == 1:
            super().update_codebook(flatten, embed_onehot, **options)
            return
        whole, ids = self._gather(flatten), self._gather(embed_onehot.argmax(-1, keepdim=True))
        if whole is not None and ids is not None:
            chosen = F.one_hot(ids.squeeze(-1), self.codebook_size).type(whole.dtype)
            super().update_codebook(whole, chosen, **options)
        self._take_over()

    def _gather(self, rows: Tensor) -> Tensor | None:
        """Rows (1, B * n, ·) of all processes on the first one, in the order of the whole batch: windows alternate."""
        own = rows.detach().unflatten(1, (-1, self.tokens)).contiguous()
        every = [torch.empty_like(own) for _ in range(processes())] if dist.get_rank() == 0 else None
        dist.gather(own, every, dst=0)
        return None if every is None else torch.stack(every, 2).flatten(1, 3)

    def _take_over(self) -> None:
        for value in (self.embed, self.embed_avg, self.cluster_size, self.initted):
            dist.broadcast(value.data, src=0)


class Quantizer(Protocol):
    """V code vectors of width C, one of which stands for whatever is nearest to it."""

    size: int

    @property
    def started(self) -> bool:
        """Whether the codes have seen the data that they need to start from."""
        ...

    @property
    def table(self) -> Tensor:
        """All code vectors (V, C)."""
        ...

    def bound(self, f: Tensor) -> Tensor:
        """Brings what an encoder gives (B, N, C) into the range of the codes."""
        ...

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n) of the codes nearest to x (B, n, C)."""
        ...

    def learn(self, x: Tensor) -> Tensor:
        """One step of learning from x (B, n, C), where there is something to learn; returns a loss."""
        ...


class _Unbounded(nn.Module, ABC):
    """What quantizers share that look their codes up in a table."""

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """All code vectors (V, C)."""

    def bound(self, f: Tensor) -> Tensor:
        """Leaves (B, N, C) as it is: codes can be anywhere."""
        return f

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n) of the codes nearest to x (B, n, C)."""
        return torch.cdist(x.float(), self.table).argmin(-1)


class Codebook(_Unbounded):
    """One codebook for all scales, moved by running averages; codes that fall out of use are revived.

    Args:
        size: V.
        code_dim: C.
        decay: of the running averages.
        dead_code_threshold: a code whose running count falls below this is replaced by a vector of the batch.
        commitment: weight of the loss that keeps vectors near their codes.
    """

    def __init__(
        self,
        size: int,
        code_dim: int,
        *,
        decay: float = 0.9,
        dead_code_threshold: float = 1.0,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        self.size = size
        self.quantizer = VectorQuantize(
            dim=code_dim,
            codebook_size=size,
            decay=decay,
            kmeans_init=True,
            threshold_ema_dead_code=dead_code_threshold,
            commitment_weight=commitment,
            rotation_trick=False,
            sync_codebook=False,
        )
        self.quantizer._codebook.__class__ = SharedCodes
        self._started = False
        self._collected: list[Tensor] = []

    @property
    def started(self) -> bool:
        """Whether the codes have seen data; asked of the device only until they have."""
        self._started = self._started or bool(self.quantizer._codebook.initted)
        return self._started

    @property
    def table(self) -> Tensor:
        """All code vectors (V, C)."""
        return self.quantizer.codebook

    def learn(self, x: Tensor) -> Tensor:
        """The commitment loss of x (B, n, C), towards which ``after_step`` moves the codes.

        The very first call makes its k-means centers the codes.
        """
        if not (self.training and self.started):
            return self.quantizer(x)[2].sum()
        self._collected.append(x.detach())
        return self.quantizer(x, freeze_codebook=True)[2].sum()

    def after_step(self) -> None:
        """Moves the codes once, by the vectors of all micro-batches in the order of the batch: windows alternate."""
        if self._collected:
            self.quantizer(torch.stack(self._collected, 1).flatten(0, 1))
            self._collected = []


class FiniteScalars(nn.Module):
    """Rounds every channel to a few levels (FSQ, arXiv 2309.15505, section 3.1); nothing is learnt, no code dies.

    Args:
        levels: codes per channel; there are C of them, and V is their product.
    """

    started = True

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.quantizer = FSQ(list(levels))
        self.size = int(self.quantizer.codebook_size)

    @property
    def table(self) -> Tensor:
        """All code vectors (V, C), in [-1, 1]."""
        return self.quantizer.implicit_codebook

    def bound(self, f: Tensor) -> Tensor:
        """The bounding function f of the paper: (B, N, C) into the range of the levels, before it is rounded."""
        levels = self.quantizer._levels
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return (torch.tanh(f.float() + torch.atanh(offset / half)) * half - offset) / (levels // 2)

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n): every channel of x (B, n, C) rounded to its nearest level."""
        levels = self.quantizer._levels
        steps = levels // 2
        whole = torch.clamp((x.float() * steps).round(), min=-steps, max=levels - 1 - steps)
        return self.quantizer.codes_to_indices(whole / steps).long()

    def learn(self, x: Tensor) -> Tensor:
        """Nothing to learn: a loss of zero."""
        return x.new_zeros(())


class Signs(nn.Module):
    """The signs of C channels: V = 2^C codes without a table to look in (LFQ, arXiv 2310.05737, section 3.1).

    Codes are kept in use by an entropy loss: each vector decides for one code, and all together use all of them.

    Args:
        code_dim: C.
        entropy: weight of the entropy loss.
        diversity: weight in it of the entropy over the batch.
        commitment: weight of the loss that keeps channels near -1 and 1.
    """

    started = True

    def __init__(self, code_dim: int, *, entropy: float, diversity: float, commitment: float) -> None:
        super().__init__()
        self.quantizer = LFQ(
            dim=code_dim,
            codebook_size=2**code_dim,
            entropy_loss_weight=entropy,
            diversity_gamma=diversity,
            commitment_loss_weight=commitment,
        )
        self.size = int(self.quantizer.codebook_size)

    @property
    def table(self) -> Tensor:
        """All code vectors (V, C), of -1 and 1."""
        return self.quantizer.codebook

    def bound(self, f: Tensor) -> Tensor:
        """Leaves (B, N, C) as it is: the commitment loss keeps it near the codes."""
        return f

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n): the signs of x (B, n, C) as the digits of a binary number."""
        return ((x > 0) * self.quantizer.mask).sum(-1)

    def learn(self, x: Tensor) -> Tensor:
        """The entropy and commitment losses of x (B, n, C); zero in evaluation."""
        with torch.autocast(x.device.type, enabled=False):
            return self.quantizer(x.float()).entropy_aux_loss


class LinearCodebook(_Unbounded):
    """Random codes that are never moved, seen through one learnt linear map (SimVQ, arXiv 2411.02038, section 4).

    All codes move together with the map, so that none falls out of use by being left behind.

    Args:
        size: V.
        code_dim: C.
        commitment: weight of the loss that keeps vectors near their codes, beside that which moves the codes.
    """

    started = True

    def __init__(self, size: int, code_dim: int, *, commitment: float) -> None:
        super().__init__()
        self.size = size
        self.quantizer = SimVQ(
            dim=code_dim, codebook_size=size, rotation_trick=False, input_to_quantize_commit_loss_weight=commitment
        )

    @property
    def table(self) -> Tensor:
        """All code vectors (V, C), in full precision."""
        frozen = self.quantizer.frozen_codebook
        with torch.autocast(frozen.device.type, enabled=False):
            return self.quantizer.codebook

    def learn(self, x: Tensor) -> Tensor:
        """The loss that draws codes and x (B, n, C) together."""
        with torch.autocast(x.device.type, enabled=False):
            return self.quantizer(x.float())[2]
