"""The flow prior: continuous codes, to which a learnt velocity carries noise in a few steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Codes, Cond
from trajgen.priors.noisy import NoisyPrior, unknown_mean


@register("prior", "flow")
class FlowPrior(NoisyPrior):
    """Conditional flow matching on straight paths from noise to codes (arXiv 2210.02747, section 4.1, example II).

    At time t from 0 to 1 a code lies at x_t = (1 - t) noise + t x_1, and moves at x_1 - noise: σ_min is 0. The network
    predicts the mean of that velocity given x_t. Its networks, conditions and inpainting are those of prior=diffusion.

    Args:
        schedule: a single scale of L tokens.
        code_dim: C.
        vocabulary: None: a flow is of continuous codes.
        conditioner: module from `Cond` to embeddings (B, 1, E).
        tokenizer: whose `known_codes` are left without noise.
        network: convolutions along time, Diffuser's U-Net (width=32 depth=4 as published), or the transformer of DiT.
        width: features W of each token within the network; of a U-Net at full length, twice as many at half of it.
        depth: layers, or levels of the U-Net.
        heads: attention heads of the transformer; must divide the width.
        expansion: hidden width of the transformer's MLPs in units of W.
        dropout: on what a block adds; the U-Net has none.

    Raises:
        ConfigError: for discrete codes, several scales, or heads that do not divide the width.
    """

    name, sampler = "flow", "euler"

    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: Any,
        tokenizer: Any,
        *,
        network: Literal["convolution", "unet", "transformer"] = "convolution",
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        sizes: dict[str, Any] = {"width": width, "heads": heads, "expansion": expansion, "dropout": dropout}
        parts = schedule, code_dim, vocabulary, conditioner, tokenizer
        super().__init__(*parts, times=1, network=network, depth=depth, **sizes)

    def forward(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The squared error of velocities at random times, and the codes (B, L, C) where these lead.

        Args:
            codes: (B, L, C).
            inputs: ignored, since a single scale has none.
            cond: B conditions.
        """
        clean = codes.float()
        known_codes = self.known_codes(clean, cond)
        t = torch.rand(len(cond), device=clean.device)
        noise_level = (1 - t)[:, None, None]
        noise = torch.randn_like(clean)
        x = known_codes.into(clean + noise_level * (noise - clean))
        velocity = self.velocity(x, t, cond)
        loss = unknown_mean((velocity - (clean - noise)).square(), known_codes)
        return loss, known_codes.into(x + noise_level * velocity)

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The mean velocity (B, L, C) of codes that are at x (B, L, C) at times t (B,) from 0, noise, to 1, codes."""
        return self.predict(x, t, cond)
