"""The diffusion prior: continuous codes, predicted from noisy ones at every noise level."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Codes, Cond
from trajgen.nn.diffusion import TimeEmbedding, noise_levels
from trajgen.nn.layers import FourierFeatures, mlp
from trajgen.priors.noisy import Network, NoisyPrior, noisy_network, unknown_mean

FOURIER_FREQUENCIES = 4
"""Of each value of the state and the goal in the value network."""


@register("prior", "diffusion")
class DiffusionPrior(NoisyPrior):
    """Denoises all codes of a window at once (Diffuser, arXiv 2205.09991; DiT, arXiv 2212.09748).

    Predicts the codes x_0 rather than the noise, as Diffuser does for mazes. The embedded condition can be dropped for
    classifier-free guidance as in Decision Diffuser (arXiv 2211.15657, section 3.2).

    Args:
        schedule: a single scale of L tokens.
        code_dim: C.
        vocabulary: None: diffusion is of continuous codes.
        conditioner: module from `Cond` to embeddings (B, 1, E).
        tokenizer: whose `known_codes` are left without noise.
        view: features of a window.
        state_dim: S.
        goal_dim: G; 0 without goals.
        network: convolutions along time, Diffuser's U-Net (width=32 depth=4 as published), or the transformer of DiT.
        width: features W of each token within the network; of a U-Net at full length, twice as many at half of it.
        depth: layers, or levels of the U-Net; the value network has half of them.
        heads: attention heads of the transformer; must divide the width.
        expansion: hidden width of the transformer's MLPs in units of W.
        dropout: on what a block adds; the U-Net has none.
        timesteps: noise levels in training; the sampler visits some of them.
        beta_schedule: how the noise grows with the level, as named by diffusers.
        value: learn a value network too, whose gradient can guide the sampler (Diffuser, section 3.2).

    Raises:
        ConfigError: for discrete codes, several scales, heads that do not divide the width, no noise level, a value
            network where the view has the return, or if diffusers is not installed.
    """

    name = sampler = "diffusion"

    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: Any,
        tokenizer: Any,
        view: Any,
        state_dim: int,
        goal_dim: int,
        *,
        network: Literal["convolution", "unet", "transformer"] = "convolution",
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: float = 4.0,
        dropout: float = 0.0,
        timesteps: int = 100,
        beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2",
        value: bool = False,
    ) -> None:
        check_range("prior.timesteps", timesteps, 1, usual=100)
        sizes: dict[str, Any] = {"width": width, "heads": heads, "expansion": expansion, "dropout": dropout}
        parts = schedule, code_dim, vocabulary, conditioner, tokenizer
        super().__init__(*parts, times=timesteps, network=network, depth=depth, **sizes)
        if value and "return" in view.slices:
            raise ConfigError(
                "The value network predicts the return from the window, which must not contain it.",
                got=f"prior.value=true, view.fields={list(view.slices)}",
                fix="view.fields=[state,action], or prior.value=false",
            )
        self.timesteps, self.beta_schedule = timesteps, beta_schedule
        self._noise_levels = noise_levels(timesteps, beta_schedule)
        self.value: ValueNetwork | None = None
        if value:
            dimensions = schedule.tokens, code_dim, state_dim, goal_dim
            self.value = ValueNetwork(network, *dimensions, timesteps, depth=max(1, depth // 2), **sizes)

    def forward(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The loss at random noise levels (squared errors of codes and values), and the predicted codes (B, L, C).

        Args:
            codes: (B, L, C).
            inputs: ignored, since a single scale has none.
            cond: B conditions.
        """
        clean = codes.float()  # noise is added in full precision, whatever the networks compute in
        known_codes = self.known_codes(clean, cond)
        t = torch.randint(self.timesteps, (len(cond),), device=clean.device)
        x = known_codes.into(self._noise_levels.add_noise(clean, torch.randn_like(clean), t))
        prediction = self.denoise(x, t, cond)
        loss = unknown_mean((prediction - clean).square(), known_codes)
        if self.value is not None:
            loss = loss + (self.value(x, t, cond) - cond.returns).square().mean()
        return loss, known_codes.into(prediction)

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The codes (B, L, C) expected behind noisy ones x (B, L, C) at noise levels t (B,)."""
        return self.predict(x, t, cond)


class ValueNetwork(nn.Module):
    """The expected return-to-go at a window's start given its noisy codes: Diffuser's J (section 3.2).

    Depends on the state and the goal of the condition, never on its return.

    Args:
        network: its kind.
        tokens: L.
        code_dim: C.
        state_dim: S.
        goal_dim: G; 0 without goals.
        timesteps: noise levels.
        width: W; ``sizes`` are the network's other sizes.
    """

    def __init__(
        self,
        network: Network,
        tokens: int,
        code_dim: int,
        state_dim: int,
        goal_dim: int,
        timesteps: int,
        *,
        width: int,
        **sizes: Any,
    ) -> None:
        super().__init__()
        self.time = TimeEmbedding(timesteps, width)
        self.embed = nn.ModuleDict()
        for name, size in (("state", state_dim), ("goal", goal_dim)):
            if size:
                features = FourierFeatures(size, FOURIER_FREQUENCIES)
                self.embed[name] = nn.Sequential(features, mlp(features.out_features, width, width))
        self.network = noisy_network(network, tokens, code_dim, 1, width, width=width, **sizes)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Normalized returns-to-go (B,) from noisy codes (B, L, C) at noise levels t (B,)."""
        condition = self.time(t)
        for name, embed in self.embed.items():
            value = cond.state if name == "state" else cond.goal
            if value is not None:
                condition = condition + embed(value).unsqueeze(1)
        values: Tensor = self.network(x, condition).float().mean(dim=(1, 2))
        return values
