"""Tokenizers without a learnt latent: the codes are the values of the trajectory themselves, or bins of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Codes, Cond, Encoding, KnownCodes, Losses
from trajgen.tokenizers.bounds import check_options
from trajgen.tokenizers.row import TokenRow


class ValueTokenizer(nn.Module, ABC):
    """Cuts every point of a window (B, T, D) into P tokens of consecutive features, and lays them out in a row.

    Args:
        schedule: from N = T·P to a scale schedule that adds up to N.
        horizon: T.
        cells: for each of the P tokens, its field and the slice of D that it holds.
        code_dim: C; None for the width of the widest token, to which the others are padded with zeros.
        knowledge: what of a trajectory follows from a condition.

    Raises:
        ConfigError: if the schedule does not add up to N.
    """

    vocabulary: int | None = None
    place: Tensor
    source: Tensor
    mask: Tensor

    def __init__(
        self,
        schedule: Callable[[int], ScaleSchedule],
        horizon: int,
        cells: list[tuple[str, slice]],
        code_dim: int | None,
        knowledge: Knowledge,
    ) -> None:
        super().__init__()
        self.period, self.fields_of_tokens = len(cells), tuple(name for name, _ in cells)
        self.horizon, self.latent_length = horizon, horizon * len(cells)
        widest = max(cut.stop - cut.start for _, cut in cells)
        self.code_dim = code_dim or widest
        self.layout = TokenRow(schedule(self.latent_length), self.code_dim, self.latent_length)
        self.schedule = self.layout.schedule
        self.knowledge = knowledge

        features = max(cut.stop for _, cut in cells)
        source = torch.full((len(cells), widest), features)  # the feature past the last one is the padding
        place = torch.zeros(features, dtype=torch.int64)
        for p, (_, cut) in enumerate(cells):
            width = cut.stop - cut.start
            source[p, :width] = torch.arange(cut.start, cut.stop)
            place[cut] = p * widest + torch.arange(width)
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("mask", self.cut(knowledge.mask(horizon, features), True), persistent=False)

    @abstractmethod
    def codes(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to codes."""

    @abstractmethod
    def vectors(self, codes: Codes) -> Tensor:
        """Codes to code vectors (B, L, C)."""

    @abstractmethod
    def points(self, latent: Tensor) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""

    @abstractmethod
    def spread(self, x: Tensor) -> Tensor:
        """Trajectory (B, T, D) to latent (B, N, C)."""

    def cut(self, x: Tensor, padding: float = 0.0) -> Tensor:
        """Points (B, T, D) to the values (B, N, n) of their tokens, n that of the widest token."""
        padded = torch.cat([x, torch.full_like(x[..., :1], padding)], dim=-1)
        return padded[..., self.source].flatten(1, 2)

    def join(self, values: Tensor) -> Tensor:
        """The values (B, N, n) of tokens to points (B, T, D)."""
        return values.unflatten(1, (self.horizon, self.period)).flatten(2)[..., self.place]

    def encode(self, x: Tensor) -> Encoding:
        """Windows (B, T, D) to codes, teacher-forcing inputs (B, L - l_1, C) and latent (B, N, C)."""
        codes = self.codes(x)
        vectors = self.vectors(codes)
        return Encoding(codes, self.layout.inputs(vectors), vectors)

    def known_codes(self, cond: Cond) -> KnownCodes | None:
        """The codes of what the condition says: fields of the first point, and perhaps where the last one is.

        Padding counts as known.
        """
        if not self.knowledge:
            return None
        known = self.knowledge(cond, self.horizon, len(self.place))
        codes = self.codes(known)
        return KnownCodes(codes, self.mask.reshape(1, *codes.shape[1:]).expand_as(codes))

    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        """Reconstruction over real points: there is nothing else to learn here than a decoder."""
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
        goal_state: indices of the state features that goals speak of.
        goal_dim: G.
        tokens: "point" for one token per point (N = T, C = D); "field" for one per field of the view (C that of the
            widest, the others padded with zeros).
        inpaint: fields of the first point that are taken from the condition, any of state and return.
        inpaint_goal: whether the last point is held at the goal (inpainting, arXiv 2205.09991, section 3.3).

    Raises:
        ConfigError: if the schedule does not add up to N, a field is not in the view, or there is no goal to hold.
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
        inpaint_goal: bool = False,
    ) -> None:
        cells = [("point", slice(0, features))] if tokens == "point" else list(view.slices.items())
        knowledge = Knowledge(view.slices, inpaint, normalizer, goal_state, goal_dim, inpaint_goal)
        super().__init__(schedule, horizon, cells, None, knowledge)

    def codes(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to codes (B, L, C)."""
        return self.cut(x)

    def vectors(self, codes: Codes) -> Tensor:
        """The codes (B, L, C) themselves."""
        return codes

    def points(self, latent: Tensor) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        return self.join(latent)

    def spread(self, x: Tensor) -> Tensor:
        """Trajectory (B, T, D) to latent (B, N, C)."""
        return self.cut(x)


@register("tokenizer", "bins")
class BinTokenizer(ValueTokenizer):
    """One token per number, which is the bin that it falls in: Trajectory Transformer (arXiv 2106.02039, section 2.1).

    Bins are uniform in normalized values; code vectors are one-hot, so that what reads them learns their embedding.

    Args:
        schedule: from N = T·D to a scale schedule that adds up to N.
        features: D.
        horizon: T.
        view: the fields of a point.
        normalizer: of the data.
        goal_state: indices of the state features that goals speak of.
        goal_dim: G.
        num_bins: V.
        bin_limit: bins cover -bin_limit to bin_limit; values outside fall in the outermost ones.
        inpaint: fields of the first point that are taken from the condition, any of state and return.
        inpaint_goal: whether the last point is held at the goal (inpainting, arXiv 2205.09991, section 3.3).

    Raises:
        ConfigError: if the schedule does not add up to N, an option is out of bounds, a field is not in the view, or
            there is no goal to hold.
    """

    vocabulary: int
    centers: Tensor

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
        bin_limit: float = 3.0,
        inpaint: tuple[str, ...] = ("state",),
        inpaint_goal: bool = False,
    ) -> None:
        check_options(num_bins=num_bins, bin_limit=bin_limit)
        cells = [(name, slice(i, i + 1)) for name, cut in view.slices.items() for i in range(cut.start, cut.stop)]
        knowledge = Knowledge(view.slices, inpaint, normalizer, goal_state, goal_dim, inpaint_goal)
        super().__init__(schedule, horizon, cells, num_bins, knowledge)
        self.vocabulary, self.bin_limit = num_bins, bin_limit
        edges = torch.linspace(-bin_limit, bin_limit, num_bins + 1, dtype=torch.float64)
        self.register_buffer("centers", ((edges[1:] + edges[:-1]) / 2).float(), persistent=False)

    def codes(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to token ids (B, L)."""
        place = (self.cut(x).squeeze(-1) + self.bin_limit) * (self.vocabulary / (2 * self.bin_limit))
        return place.floor().clamp(0, self.vocabulary - 1).long()

    def vectors(self, codes: Codes) -> Tensor:
        """Token ids (B, L) to one-hot vectors (B, L, V); relaxed ones are what they are."""
        if codes.is_floating_point():
            return codes
        # Not F.one_hot, which counts in int64 first: rows of hundreds of tokens make these the largest values here.
        return self.centers.new_zeros(*codes.shape, self.vocabulary).scatter_(-1, codes.unsqueeze(-1), 1.0)

    def points(self, latent: Tensor) -> Tensor:
        """Latent (B, N, V) to trajectory (B, T, D): the mean of the bins' centers."""
        # Not a matrix product: autocast would round the centers.
        return self.join((latent.float() * self.centers).sum(-1, keepdim=True))

    def spread(self, x: Tensor) -> Tensor:
        """Trajectory (B, T, D) to latent (B, N, V)."""
        return self.vectors(self.codes(x))


class Knowledge:
    """What of a trajectory follows from a condition: fields of its first point, and the goal at its last one.

    Args:
        slices: of the view, field to slice of D.
        fields: those that are taken from the condition.
        normalizer: of the data.
        goal_state: indices of the state features that goals speak of.
        goal_dim: G.
        goal: whether the last point is at the goal.

    Raises:
        ConfigError: if a field is not in both the view and the condition, or there is no goal to hold.
    """

    def __init__(
        self,
        slices: Mapping[str, slice],
        fields: tuple[str, ...],
        normalizer: Normalizer,
        goal_state: tuple[int, ...],
        goal_dim: int,
        goal: bool,
    ) -> None:
        able = [name for name in ("state", "return") if name in slices]
        for name in fields:
            if name not in able:
                raise ConfigError(
                    "What is given of the first point is in the view and in the condition.",
                    expected=f"any of {', '.join(able)}" if able else "none: the view has neither state nor return",
                    got=f"'{name}' in tokenizer.inpaint, with view.fields={list(slices)}",
                    fix=f"tokenizer.inpaint=[{','.join(able[:1])}], or a view with it",
                )
        if goal and not (goal_state and goal_dim == len(goal_state) and "state" in slices):
            raise ConfigError(
                "The last point can be held at a goal that speaks of features of the state.",
                expected="a state in the view, goals in the data, and the state features that they speak of",
                got=f"view.fields={list(slices)}, {goal_dim} goal features for the state features {list(goal_state)}",
                fix="tokenizer.inpaint_goal=false",
            )
        self.fields = {name: slices[name] for name in fields}
        self.normalizer = normalizer
        self.goal = goal
        start = slices["state"].start if "state" in slices else 0
        self.goal_state = list(goal_state)
        self.goal_place = [start + i for i in goal_state]

    def __bool__(self) -> bool:
        return bool(self.fields or self.goal)

    def mask(self, horizon: int, features: int) -> Tensor:
        """What is known of a trajectory, (1, T, D)."""
        mask = torch.zeros(1, horizon, features, dtype=torch.bool)
        for cut in self.fields.values():
            mask[:, 0, cut] = True
        if self.goal:
            mask[:, -1, self.goal_place] = True
        return mask

    def __call__(self, cond: Cond, horizon: int, features: int) -> Tensor:
        """A trajectory (B, T, D) with what is known in its place and zeros elsewhere."""
        x = cond.state.new_zeros(len(cond), horizon, features)
        values = {"state": cond.state, "return": cond.returns.unsqueeze(-1)}
        for name, cut in self.fields.items():
            x[:, 0, cut] = values[name]
        if self.goal and cond.goal is not None:
            state, units = self.normalizer.state, self.normalizer.goal.inverse(cond.goal)
            x[:, -1, self.goal_place] = (units - state.mean[self.goal_state]) / state.scale[self.goal_state]
        return x
