"""The diffusion prior: continuous codes, predicted from noisy ones at every level of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Codes, Cond, KnownCodes
from trajgen.nn.diffusion import LevelEmbedding, NoisyConvolutions, NoisyTransformer, noise_levels
from trajgen.nn.layers import FourierFeatures, mlp

OCTAVES = 4
"""Fourier frequencies of the state and the goal in the value network."""


@register("prior", "diffusion")
class DiffusionPrior(nn.Module):
    """Denoises all codes of a window at once (Diffuser, arXiv 2205.09991; DiT, arXiv 2212.09748).

    Trained as Diffuser is: codes that follow from the condition (the current state, say) are left without noise and
    count nothing in the loss, so that the prior knows them for sure when the sampler sets them in. It predicts the
    codes x_0 rather than the noise, as Diffuser does for mazes. The other conditions reach every layer, together with
    the noise level, and can be withheld for guidance as in Decision Diffuser (arXiv 2211.15657).

    Args:
        schedule: a single scale of L tokens.
        code_dim: C.
        vocabulary: None: diffusion is of continuous codes.
        conditioner: module from `Cond` to embeddings (B, 1, E).
        tokenizer: which says the codes that follow from a condition.
        view: features of a window.
        state_dim: S.
        goal_dim: G; 0 without goals.
        network: convolutions along time, as Diffuser's, or the transformer of DiT.
        width: W.
        depth: layers; the value network has half of them.
        heads: attention heads of the transformer; must divide the width.
        expansion: hidden width of the transformer's MLPs in units of W.
        dropout: on the outputs of attention and MLP.
        timesteps: levels of noise in training; the sampler visits some of them.
        beta_schedule: how the noise grows with the level, by the names that diffusers gives.
        value: whether to learn a value network too, whose gradient can guide the sampler (Diffuser, section 3.2).

    Raises:
        ConfigError: for discrete codes, several scales, heads that do not divide the width, no level of noise, a value
            network where the view holds the return, or if diffusers is not installed.
    """

    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: nn.Module,
        tokenizer: Any,
        view: Any,
        state_dim: int,
        goal_dim: int,
        *,
        network: Literal["convolution", "transformer"] = "convolution",
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: float = 4.0,
        dropout: float = 0.0,
        timesteps: int = 100,
        beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2",
        value: bool = False,
    ) -> None:
        super().__init__()
        _check_codes(schedule, vocabulary)
        _check_sizes(width, heads, timesteps)
        if value and "return" in view.slices:
            raise ConfigError(
                "The value network reads the return off states and actions, so the window cannot hold it.",
                expected="a view without the return",
                got=f"prior.value=true, view.fields={list(view.slices)}",
                fix="view.fields=[state,action], or prior.value=false",
            )
        self.schedule, self.vocabulary, self.conditioner = schedule, vocabulary, conditioner
        self.timesteps, self.beta_schedule = timesteps, beta_schedule
        self._levels = noise_levels(timesteps, beta_schedule)
        self._known = tokenizer.known_codes  # the method alone, since the tokenizer is no part of the prior
        embedding = int(getattr(conditioner, "width", width))
        self.level = LevelEmbedding(timesteps, embedding)
        sizes: dict[str, Any] = {"width": width, "dropout": dropout}
        if network == "transformer":
            sizes |= {"heads": heads, "expansion": expansion}
        kind = NoisyTransformer if network == "transformer" else NoisyConvolutions
        self.network = kind(schedule.tokens, code_dim, code_dim, embedding, depth=depth, **sizes)
        self.value: ValueNetwork | None = None
        if value:
            sizes["depth"] = max(1, depth // 2)
            self.value = ValueNetwork(kind, schedule.tokens, code_dim, state_dim, goal_dim, timesteps, **sizes)

    def forward(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The loss at random levels of noise (squared errors of codes and values), and the predicted codes (B, L, C).

        Args:
            codes: (B, L, C).
            inputs: not looked at, since a single scale has none.
            cond: B conditions.
        """
        clean = codes.float()  # noise is added in full precision, whatever the networks compute in
        t = torch.randint(self.timesteps, (len(cond),), device=clean.device)
        x = self._levels.add_noise(clean, torch.randn_like(clean), t)
        given = self._known(cond)
        if given is not None:
            given = KnownCodes(clean, given.mask.expand_as(clean))
            x = given.into(x)
        prediction = self.denoise(x, t, cond)
        if given is None:
            loss = (prediction - clean).square().mean()
        else:
            prediction = given.into(prediction)  # leaves no error there
            loss = (prediction - clean).square().sum() / (~given.mask).sum().clamp(min=1)
        if self.value is not None:
            loss = loss + (self.value(x, t, cond) - cond.returns).square().mean()
        return loss, prediction

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The codes (B, L, C) expected behind noisy ones x (B, L, C) at noise levels t (B,)."""
        predicted: Tensor = self.network(x, self.conditioner(cond) + self.level(t))
        return predicted.float()


class ValueNetwork(nn.Module):
    """The return-to-go at a window's start, expected from its noisy codes: Diffuser's J (section 3.2).

    It sees the state and the goal of the condition, never the return that is asked for.

    Args:
        network: the kind of network.
        tokens: L.
        code_dim: C.
        state_dim: S.
        goal_dim: G; 0 without goals.
        timesteps: levels of noise.
        width: W; ``sizes`` are the network's other sizes.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
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
        self.level = LevelEmbedding(timesteps, width)
        self.embed = nn.ModuleDict()
        for name, size in (("state", state_dim), ("goal", goal_dim)):
            if size:
                features = FourierFeatures(size, OCTAVES)
                self.embed[name] = nn.Sequential(features, mlp(features.outputs, width, width))
        self.network = network(tokens, code_dim, 1, width, width=width, **sizes)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Normalized returns-to-go (B,) from noisy codes (B, L, C) at noise levels t (B,)."""
        condition = self.level(t)
        for name, embed in self.embed.items():
            seen = getattr(cond, name)
            if seen is not None:
                condition = condition + embed(seen).unsqueeze(1)
        values: Tensor = self.network(x, condition).float()
        return values.mean(dim=(1, 2))


def _check_codes(schedule: ScaleSchedule, vocabulary: int | None) -> None:
    if vocabulary is not None:
        raise ConfigError(
            "Diffusion is of continuous codes; there is no small amount of noise on a token of a vocabulary.",
            expected="a tokenizer with continuous codes",
            got=f"prior=diffusion with a vocabulary of {vocabulary}",
            fix="tokenizer=identity schedule=single sampler=diffusion, or prior=transformer sampler=temperature",
        )
    if schedule.scales != 1:
        raise ConfigError(
            "Diffusion draws all tokens of a window together, so there is a single scale.",
            expected=f"the schedule ({schedule.tokens},)",
            got=f"prior=diffusion with the schedule {schedule}",
            fix="schedule=single, or prior=transformer sampler=greedy",
        )


def _check_sizes(width: int, heads: int, timesteps: int) -> None:
    if heads < 1 or width < 1 or width % heads:
        raise ConfigError(
            "The attention heads divide the width; both are at least 1.",
            expected="for example prior.width=128 prior.heads=4",
            got=f"prior.width={width}, prior.heads={heads}",
            fix=f"prior.width={32 * max(heads, 1)} prior.heads={max(heads, 1)}",
        )
    if timesteps < 1:
        raise ConfigError(
            "Diffusion has at least one level of noise.",
            expected="for example prior.timesteps=100",
            got=f"prior.timesteps={timesteps}",
            fix="prior.timesteps=100",
        )
