"""Tokenizers without a learnt latent: the codes are the values of the trajectory, or bins of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Affine, Normalizer
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Codes, Cond, Encoding, KnownCodes, Losses
from trajgen.nn.layers import columns
from trajgen.tokenizers.inpainting import Inpainting
from trajgen.tokenizers.layouts import TokenRow

MAX_BINS = 2**16


class ValueTokenizer(nn.Module, ABC):
    """Splits every point of a window (B, T, D) into P tokens of consecutive features, in a row.

    Args:
        schedule: from N = T·P to a scale schedule that adds up to N.
        horizon: T.
        tokens: for each of the P tokens, its field and its slice of D.
        code_dim: C; None for the width of the widest token, to which the others are padded with zeros.
        inpainting: the values that follow from a condition.

    Raises:
        ConfigError: if the schedule does not add up to N, or the goal of a single point is inpainted.
    """

    vocabulary: int | None = None
    scatter: Tensor
    gather: Tensor
    mask: Tensor

    def __init__(
        self,
        schedule: Callable[[int], ScaleSchedule],
        horizon: int,
        tokens: list[tuple[str, slice]],
        code_dim: int | None,
        inpainting: Inpainting,
    ) -> None:
        super().__init__()
        if inpainting.goal and horizon == 1:
            raise ConfigError(
                "tokenizer.inpaint_goal fixes the last point of a plan, which must not be the first.",
                got="data.horizon=1",
                fix="tokenizer.inpaint_goal=false, or data.horizon=2",
            )
        self.period, self.fields_of_tokens = len(tokens), tuple(name for name, _ in tokens)
        self.horizon, self.latent_length = horizon, horizon * len(tokens)
        slices = [features for _, features in tokens]
        widest = max(s.stop - s.start for s in slices)
        self.code_dim = code_dim or widest
        self.layout = TokenRow(schedule(self.latent_length), self.code_dim, self.latent_length)
        self.schedule, self.inpainting = self.layout.schedule, inpainting

        self.features = max(s.stop for s in slices)
        gather = torch.full((len(slices), widest), self.features)  # the feature past the last one is the padding
        scatter = torch.zeros(self.features, dtype=torch.int64)
        for p, s in enumerate(slices):
            width = s.stop - s.start
            gather[p, :width] = torch.arange(s.start, s.stop)
            scatter[s] = p * widest + torch.arange(width)
        self.register_buffer("gather", gather, persistent=False)
        self.register_buffer("scatter", scatter, persistent=False)
        self.register_buffer("mask", self.to_tokens(inpainting.mask(horizon, self.features), True), persistent=False)
        self.inpaints_past = set(inpainting.fields) == {"state"}  # a target return is of the present point
        self.inpaints_goal = bool(inpainting.goal)
        self.known_tokens = tuple(bool(is_known) for is_known in self.mask[0].all(-1))

    @abstractmethod
    def codes(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to codes."""

    @abstractmethod
    def vectors(self, codes: Codes) -> Tensor:
        """Codes to code vectors (B, L, C)."""

    @abstractmethod
    def points(self, latent: Tensor) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""

    def to_tokens(self, x: Tensor, padding: float = 0.0) -> Tensor:
        """Points (B, T, D) to the values (B, N, n) of their tokens, n that of the widest token."""
        padded = torch.cat([x, torch.full_like(x[..., :1], padding)], dim=-1)
        return padded[..., self.gather].flatten(1, 2)

    def to_points(self, values: Tensor) -> Tensor:
        """The values (B, N, n) of tokens to points (B, T, D)."""
        return values.unflatten(1, (self.horizon, self.period)).flatten(2)[..., self.scatter]

    def spread(self, x: Tensor) -> Tensor:
        """Trajectory (B, T, D) to latent (B, N, C)."""
        return self.vectors(self.codes(x))

    def encode(self, x: Tensor) -> Encoding:
        """Windows (B, T, D) to codes, teacher-forcing inputs (B, L - l_1, C) and latent (B, N, C)."""
        codes = self.codes(x)
        vectors = self.vectors(codes)
        return Encoding(codes, self.layout.inputs(vectors), vectors)

    def known_codes(self, cond: Cond) -> KnownCodes | None:
        """The codes of the inpainted values; padding is known too.

        All token ids of past points are known. Continuous values of a past point are known if the episode has had it,
        except for its return.
        """
        if not self.inpainting:
            return None
        codes = self.codes(self.inpainting(cond, self.horizon, self.features))
        mask, known_tokens = self.mask, self.known_tokens
        if cond.past is not None and self.inpaints_past:
            before = (cond.past.mask.shape[1] - 1) * self.period
            if self.vocabulary is None:
                mask = self.to_points(self.mask).repeat(len(cond), 1, 1)
                for field, points in self.inpainting.of_past(cond.past):
                    mask[:, : points.shape[1], field] = cond.past.mask[:, : points.shape[1]].unsqueeze(-1)
                return KnownCodes(codes, self.to_tokens(mask, True).reshape(codes.shape))
            later = slice(before + self.period, None)
            known_tokens = (True,) * before + known_tokens[: self.period] + known_tokens[later]
            present, later_points = mask[:, : self.period], mask[:, later]
            mask = torch.cat([torch.ones_like(mask[:, :before]), present, later_points], dim=1)
        return KnownCodes(codes, mask.reshape(1, *codes.shape[1:]).expand_as(codes), known_tokens)

    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        """Reconstruction over real points, for a decoder that is learnt."""
        error = (decode(self.spread(x)) - x).square().mean(-1)
        reconstruction = batch.mean(error, lambda batch: batch.mask)
        return {"total": reconstruction, "reconstruction": reconstruction}

    def after_step(self) -> None:
        """Nothing: the codes are not learnt."""

    def usage(self) -> dict[str, float]:
        """Nothing: the codes are not learnt."""
        return {}


@register("tokenizer", "identity")
class IdentityTokenizer(ValueTokenizer):
    """The trajectory itself as continuous codes: Diffuser (arXiv 2205.09991), Decision Transformer (arXiv 2106.01345).

    Args:
        schedule: from N to a scale schedule that adds up to N.
        features: D.
        horizon: T.
        view: the fields of a point.
        normalizer: of the data.
        goal_state: indices of the state features that goals specify.
        goal_dim: G.
        tokens: "point" for one token per point (N = T, C = D); "field" for one per field of the view (C that of the
            widest, the others padded with zeros).
        inpaint: fields of the first point that are taken from the condition, any of state and return.
        inpaint_goal: whether the last point is fixed at the goal (inpainting, arXiv 2205.09991, section 3.3), where the
            data have goals; with "at_rest" the velocity, all else that a state has, is 0 there, as in Diffuser's mazes.

    Raises:
        ConfigError: if the schedule does not add up to N, a field is not in the view, or the goal cannot be inpainted.
    """

    def __init__(
        self,
        schedule: Callable[[int], ScaleSchedule],
        features: int,
        horizon: int,
        view: Any,
        normalizer: Normalizer,
        goal_state: tuple[int, ...],
        goal_dim: int,
        *,
        tokens: Literal["point", "field"] = "point",
        inpaint: tuple[str, ...] = ("state",),
        inpaint_goal: bool | Literal["at_rest"] = False,
    ) -> None:
        slices = [("point", slice(0, features))] if tokens == "point" else list(view.slices.items())
        inpainting = Inpainting(view.slices, inpaint, normalizer, goal_state, goal_dim, inpaint_goal)
        super().__init__(schedule, horizon, slices, None, inpainting)

    def codes(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to codes (B, L, C)."""
        return self.to_tokens(x)

    def vectors(self, codes: Codes) -> Tensor:
        """The codes (B, L, C) themselves."""
        return codes

    def points(self, latent: Tensor) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        return self.to_points(latent)


@register("tokenizer", "bins")
class BinTokenizer(ValueTokenizer):
    """One token per number, which is its bin: Trajectory Transformer (arXiv 2106.02039, section 2.1).

    Code vectors are one-hot.

    Args:
        schedule: from N = T·D to a scale schedule that adds up to N.
        features: D.
        horizon: T.
        view: the fields of a point.
        normalizer: of the data.
        goal_state: indices of the state features that goals specify.
        goal_dim: G.
        num_bins: number of bins V of each value.
        binning: uniform bins are equally wide in normalized values; quantile bins hold equal shares of the data. A
            value that fills several of these, as a bound of clipped actions, has one of its own.
        bin_limit: uniform bins cover -bin_limit to bin_limit; values outside are in the outermost ones.
        inpaint: fields of the first point that are taken from the condition, any of state and return.
        inpaint_goal: whether the last point is fixed at the goal (inpainting, arXiv 2205.09991, section 3.3), where the
            data have goals; with "at_rest" the velocity, all else that a state has, is 0 there, as in Diffuser's mazes.

    Raises:
        ConfigError: if the schedule does not add up to N, an option is out of range, a field is not in the view, or the
            goal cannot be inpainted.
    """

    vocabulary: int
    uniform_edges: Tensor

    def __init__(
        self,
        schedule: Callable[[int], ScaleSchedule],
        features: int,
        horizon: int,
        view: Any,
        normalizer: Normalizer,
        goal_state: tuple[int, ...],
        goal_dim: int,
        *,
        num_bins: int = 100,
        binning: Literal["uniform", "quantile"] = "uniform",
        bin_limit: float = 3.0,
        inpaint: tuple[str, ...] = ("state",),
        inpaint_goal: bool | Literal["at_rest"] = False,
    ) -> None:
        check_range("tokenizer.num_bins", num_bins, 2, MAX_BINS, usual=100)
        check_range("tokenizer.bin_limit", bin_limit, 1e-3, 1e6, usual=3)
        indices = {name: range(field.start, field.stop) for name, field in view.slices.items()}
        tokens = [(name, slice(i, i + 1)) for name, of_field in indices.items() for i in of_field]
        inpainting = Inpainting(view.slices, inpaint, normalizer, goal_state, goal_dim, inpaint_goal)
        super().__init__(schedule, horizon, tokens, num_bins, inpainting)
        self.vocabulary = num_bins
        edges = torch.linspace(-bin_limit, bin_limit, num_bins + 1, dtype=torch.float64).float()
        self.register_buffer("uniform_edges", edges.expand(features, -1).clone(), persistent=False)
        self._quantiles: list[tuple[Affine, int, list[int] | None]] = []  # of each field: map, repetitions, features
        maps: dict[str, Affine] = {"return": normalizer.returns, "position": normalizer.state}
        if "terminal" in view.slices:
            self.terminal = maps["terminal"] = Affine(1)  # never fitted, so that its bins are even
        for name, field in view.slices.items() if binning == "quantile" else ():
            affine = maps[name] if name in maps else getattr(normalizer, name)
            affine.fit_quantiles(num_bins + 1)
            picked = list(goal_state) if name == "position" else None
            width = len(picked or affine.mean)
            self._quantiles.append((affine, (field.stop - field.start) // width, picked))

    @property
    def edges(self) -> Tensor:
        """The edges of the bins of each feature, (D, V + 1)."""
        if not self._quantiles:
            return self.uniform_edges
        fields = []
        for affine, repetitions, picked in self._quantiles:  # actions: one for each step from a point to the next
            quantiles = cast(Tensor, affine.quantiles)
            quantiles = quantiles if picked is None else columns(quantiles, picked)
            fields.append(quantiles.T.repeat(repetitions, 1))
        return torch.cat(fields)

    @property
    def centers(self) -> Tensor:
        """The values that bins stand for, (D, V)."""
        edges = self.edges
        return (edges[:, 1:] + edges[:, :-1]) / 2

    def codes(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to token ids (B, L)."""
        edges = self.edges.contiguous()
        values = self.to_tokens(x).squeeze(-1).unflatten(1, (self.horizon, self.period)).flatten(0, 1).T.contiguous()
        # A value that several edges share is put into the middle one of the bins between them, whose center it is.
        if torch.compiler.is_exporting():  # ONNX has no search
            below, above = edges.unsqueeze(1) < values.unsqueeze(2), edges.unsqueeze(1) <= values.unsqueeze(2)
            ids = below.sum(-1) + above.sum(-1) - 1
        else:
            ids = torch.searchsorted(edges, values) + torch.searchsorted(edges, values, right=True) - 1
        ids = torch.div(ids, 2, rounding_mode="floor").clamp(0, self.vocabulary - 1)
        return ids.T.unflatten(0, (len(x), self.horizon)).flatten(1)

    def vectors(self, codes: Codes) -> Tensor:
        """Token ids (B, L) to one-hot vectors (B, L, V); relaxed ones are returned as they are."""
        if codes.is_floating_point():
            return codes
        # Not F.one_hot, which allocates int64 first: for rows of hundreds of tokens these are the largest tensors.
        return self.uniform_edges.new_zeros(*codes.shape, self.vocabulary).scatter_(-1, codes.unsqueeze(-1), 1.0)

    def points(self, latent: Tensor) -> Tensor:
        """Latent (B, N, V) to trajectory (B, T, D): the mean of the bins' centers."""
        # Not a matrix product: autocast would round the centers.
        by_point = latent.float().unflatten(1, (self.horizon, self.period))
        return self.to_points((by_point * self.centers).sum(-1, keepdim=True).flatten(1, 2))
