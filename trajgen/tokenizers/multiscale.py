"""The tokenizer with a learnt latent: a convolutional encoder, a layout of the codes, and a quantizer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.protocols import ChoosesScales
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import AgentAxis, Batch, Codes, Cond, Encoding, KnownCodes, Losses
from trajgen.nn.agents import AgentSplit, unfold
from trajgen.nn.layers import ConvEncoder, doublings
from trajgen.tokenizers.layouts import layout_of
from trajgen.tokenizers.quantizers import build_quantizer

MIN_OPTIONS = {"latent_length": 1, "code_dim": 1, "codebook_size": 2}
"""The lowest values of options; 0 for others."""


@register("tokenizer", "multiscale")
class MultiscaleTokenizer(nn.Module):
    """Quantized latent of a convolutional encoder, as scales that add up or in a row (MAGE, section 3; VQ-VAE).

    The encoder gives f (B, N, C). A schedule that ends at N makes a residual pyramid, the MTAE of MAGE (arXiv
    2602.23770); one that adds up to N makes a row of tokens, as in VQ-VAE (arXiv 1711.00937) and TAP. The encoder
    learns from the reconstruction (straight-through) and the commitment loss, the pyramid's convolutions from the
    agreement of the quantized latent with f, and all scales share one codebook.

    Args:
        schedule: from N to a scale schedule that ends at N (a pyramid) or adds up to N (a row).
        features: D.
        horizon: T, which is N times a power of two.
        agent_axis: of a team, whose agents share the encoder and the codebook; the latent is a grid of agents and time.
        quantizer: vq has codes that are moving averages; fsq rounds channels to levels (arXiv 2309.15505); lfq takes
            their signs (arXiv 2310.05737); simvq maps random codes by a learnt matrix (arXiv 2411.02038).
        latent_length: points N of the latent, the number of tokens of the finest scale; of a team, those of an agent.
        code_dim: C; of lfq, which has 2^C codes, at most 16. Not of fsq.
        codebook_size: number of codes V in the codebook, of vq and simvq.
        levels: of fsq, per channel; V is their product.
        width: channels of the encoder; a multiple of 8, or less than 8.
        depth: residual blocks per length in the encoder.
        commitment: weight of the commitment loss. Not of fsq.
        decay: of vq's moving averages.
        dead_code_threshold: of vq, moving count below which a code is replaced.
        entropy: of lfq, weight of the entropy loss.
        diversity: of lfq, weight in it of the entropy over the batch.
        agreement: whether the last scale's sum agrees with f, or the mean over every scale's, as in VAR.
        joint_scales: of a team, the number of coarsest scales whose tokens are of all agents together; those of the
            others are of one agent each. null for all but the finest.

    Raises:
        ConfigError: for an option out of range or not of this quantizer, a T that is not N times a power of two, a
            schedule that does not fit, or more agents than joint tokens tell apart.
    """

    def __init__(
        self,
        schedule: Callable[[int], ScaleSchedule],
        features: int,
        horizon: int,
        agent_axis: AgentAxis | None = None,
        *,
        quantizer: Literal["vq", "fsq", "lfq", "simvq"] = "vq",
        latent_length: int = 8,
        code_dim: int = 8,
        codebook_size: int = 128,
        levels: tuple[int, ...] = (8, 6, 5),
        width: int = 64,
        depth: int = 1,
        commitment: float = 0.25,
        decay: float = 0.9,
        dead_code_threshold: float = 1.0,
        entropy: float = 0.1,
        diversity: float = 1.0,
        agreement: Literal["last", "every"] = "last",
        joint_scales: int | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "code_dim": code_dim,
            "codebook_size": codebook_size,
            "commitment": commitment,
            "decay": decay,
            "dead_code_threshold": dead_code_threshold,
            "entropy": entropy,
            "diversity": diversity,
        }
        defaults = {p.name: p.default for p in inspect.signature(MultiscaleTokenizer).parameters.values()}
        most = {"decay": 1.0, "latent_length": horizon}
        for name, value in {**options, "latent_length": latent_length}.items():
            high = most.get(name, math.inf)
            check_range(f"tokenizer.{name}", value, MIN_OPTIONS.get(name, 0), high, usual=min(defaults[name], high))
        halvings = doublings(horizon, latent_length)
        self.quantizer = build_quantizer(quantizer, {**options, "levels": tuple(levels)}, defaults)
        self.vocabulary, self.code_dim = self.quantizer.size, self.quantizer.code_dim
        scales, self.features_of_agents = schedule(latent_length), None
        if agent_axis is not None:
            scales = _team_scales(scales, agent_axis, joint_scales, self.code_dim)
            self.features_of_agents = AgentSplit(agent_axis, features)
            features, latent_length = len(agent_axis.columns[0]), agent_axis.agents * latent_length
        elif joint_scales is not None:
            raise ConfigError(
                "tokenizer.joint_scales needs a view that tells agents apart.",
                got=f"tokenizer.joint_scales={joint_scales}",
                fix="view=agents with data of several agents, or tokenizer.joint_scales=null",
            )
        identify = agent_axis is None or agent_axis.identify
        self.layout = layout_of(scales, self.code_dim, latent_length, identify)
        self.agreement = agreement
        self.schedule, self.latent_length = self.layout.schedule, latent_length
        self.encoder = ConvEncoder(features, self.code_dim, halvings, width=width, depth=depth)
        self.code_usage = CodeUsage(self.schedule, self.vocabulary)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Encoding:
        """Windows (B, T, D) to token ids (B, L), teacher-forcing inputs and latent."""
        ids, _, inputs, latent = self.layout.encode(self._latent(x), self.quantizer.quantize)
        return Encoding(ids, inputs, latent)

    def vectors(self, codes: Codes) -> Tensor:
        """Token ids (B, L), or relaxed one-hot codes (B, L, V), to code vectors (B, L, C)."""
        if codes.is_floating_point():
            return codes @ self.quantizer.codebook.to(codes.dtype)
        return F.embedding(codes, self.quantizer.codebook)

    def known_codes(self, cond: Cond) -> KnownCodes | None:
        """None: the codes are learnt."""
        return None

    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        """Reconstruction over real points, commitment, and agreement of the quantized latent with f."""
        f = self._latent(x)
        if self.training and not self.quantizer.initialized:
            self.quantizer.initialize(self.layout.samples(f))
        ids, vectors, _, latent = self.layout.encode(f, self.quantizer.quantize)
        self.code_usage.add(ids)
        commitment, agreement = self.quantizer.loss(vectors, ids), self._agreement(f.detach(), ids, latent)
        # The value is the quantized latent; the gradient reaches both the encoder and the layout's convolutions.
        error = (decode(latent + f - f.detach()) - x).square().mean(-1)
        reconstruction = batch.mean(error, lambda batch: batch.mask)
        total = reconstruction + commitment + agreement
        return {"total": total, "reconstruction": reconstruction, "commitment": commitment, "agreement": agreement}

    @property
    def initialized(self) -> bool:
        """Whether the codes need no `initialize`."""
        return self.quantizer.initialized

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Initializes the codes from windows x (B, T, D)."""
        self.quantizer.initialize(self.layout.samples(self._latent(x)))

    def _latent(self, x: Tensor) -> Tensor:
        """The latent f (B, N, C) of windows, before it is quantized."""
        agents = self.features_of_agents
        f = self.encoder(x) if agents is None else unfold(self.encoder(agents.split(x)), agents.agents)
        bound: Tensor = self.quantizer.bound(f)
        return bound

    def _agreement(self, f: Tensor, ids: Tensor, latent: Tensor) -> Tensor:
        """How far the quantized latent, or that after every scale, is from f: the convolutions learn from it."""
        if self.agreement == "last":
            return F.mse_loss(latent, f)
        sums = self.layout.after_scales(F.embedding(ids, self.quantizer.codebook.detach()))
        return torch.stack([F.mse_loss(each, f) for each in sums]).mean()

    def after_step(self) -> None:
        """Updates the quantizer once after each optimizer step."""
        self.quantizer.after_step()

    def usage(self) -> dict[str, float]:
        """Per scale, the share of codes in use and their perplexity since the last call."""
        return self.code_usage.take()


def _team_scales(scales: ScaleSchedule, axis: AgentAxis, joint_scales: int | None, code_dim: int) -> ScaleSchedule:
    """The scales of a team, from those of one agent."""
    agents = axis.agents
    if isinstance(scales, ChoosesScales):
        raise ConfigError(
            "The scales of several agents are not chosen from data.",
            got="schedule=auto with a view that tells agents apart",
            fix="schedule=geometric",
        )
    all_but_one = scales.scales - 1
    joint = all_but_one if joint_scales is None else joint_scales
    check_range("tokenizer.joint_scales", joint, 0, all_but_one, usual=all_but_one)
    if joint and axis.identify and agents > code_dim:  # those a whole turn apart would be rotated alike
        raise ConfigError(
            "Joint tokens tell at most as many agents apart as a code has channels.",
            got=f"{agents} agents and {code_dim} channels",
            fix=f"tokenizer.joint_scales=0, or {agents} channels (tokenizer.code_dim, with fsq tokenizer.levels)",
        )
    return scales.for_agents(agents, joint)


class CodeUsage(nn.Module):
    """Counts how often each code is used at each scale.

    Args:
        schedule: K scales.
        size: V.
    """

    counts: Tensor
    offsets: Tensor

    def __init__(self, schedule: ScaleSchedule, size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(schedule.scales, size), persistent=False)
        self.register_buffer("offsets", torch.tensor(schedule.levels) * size, persistent=False)

    @torch.no_grad()
    def add(self, ids: Tensor) -> None:
        """Counts token ids (B, L)."""
        index = (ids + self.offsets).reshape(-1)
        self.counts.view(-1).scatter_add_(0, index, torch.ones_like(index, dtype=self.counts.dtype))

    def take(self) -> dict[str, float]:
        """Per scale and overall, the share of codes in use and their perplexity; resets the counts."""
        counts = torch.cat([self.counts, self.counts.sum(0, keepdim=True)])
        probs = counts / counts.sum(1, keepdim=True).clamp(min=1)
        figures = {"usage": (counts > 0).float().mean(1), "perplexity": torch.special.entr(probs).sum(1).exp()}
        self.counts.zero_()
        names = [f"scale_{k + 1}" for k in range(len(self.counts))] + ["all"]
        return {
            f"{label}/{name}": float(value)
            for label, values in figures.items()
            for name, value in zip(names, values, strict=True)
        }
