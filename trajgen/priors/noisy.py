"""What priors over noisy continuous codes share: the network, what is known, and the loss."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, KnownCodes
from trajgen.nn.attention import check_heads
from trajgen.nn.diffusion import NoisyConvolutions, NoisyTransformer, NoisyUNet, TimeEmbedding

Network = Literal["convolution", "unet", "transformer"]


class NoisyPrior(nn.Module):
    """A network from noisy codes of a whole window, their time and the condition to a prediction for each code.

    Known codes (those of the current state, for example) are left without noise and out of the loss (Diffuser, arXiv
    2205.09991, section 3.3), so that the sampler can inpaint them. The embedded condition modulates every layer
    together with the time, and can be dropped for classifier-free guidance (arXiv 2207.12598).

    Args:
        schedule: a single scale of L tokens.
        code_dim: C.
        vocabulary: None: codes are continuous.
        conditioner: module from `Cond` to embeddings (B, 1, E).
        tokenizer: whose `known_codes` are left without noise.
        times: the number of levels by which times are told, or 1 for times from 0 to 1.
        network: convolutions along time at one resolution, Diffuser's U-Net, or a transformer.
        width: features of each token within the network.
        heads: attention heads of the transformer; ``sizes`` are the network's other sizes.

    Raises:
        ConfigError: for discrete codes, several scales, or heads that do not divide the width.
    """

    goes_with = ("tokenizer=identity", "schedule=single")
    """The parts that a recipe needs beside it."""
    name: ClassVar[str]
    sampler: ClassVar[str]
    """That draws from it; both names are for messages."""

    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: Any,
        tokenizer: Any,
        *,
        times: int,
        network: Network,
        width: int,
        heads: int,
        **sizes: Any,
    ) -> None:
        super().__init__()
        self._check_codes(schedule, vocabulary)
        check_heads(width, heads)
        self.schedule, self.vocabulary, self.conditioner = schedule, vocabulary, conditioner
        self._known_codes = tokenizer.known_codes  # the method alone, since the tokenizer is no part of the prior
        self.time = TimeEmbedding(times, conditioner.width)
        sizes |= {"width": width, "heads": heads}
        self.network = noisy_network(network, schedule.tokens, code_dim, code_dim, conditioner.width, **sizes)

    def _check_codes(self, schedule: ScaleSchedule, vocabulary: int | None) -> None:
        if vocabulary is not None:
            raise ConfigError(
                f"prior={self.name} models continuous codes.",
                got=f"prior={self.name} with a vocabulary of {vocabulary}",
                fix=f"tokenizer=identity schedule=single sampler={self.sampler}, or prior=transformer "
                "sampler=temperature",
            )
        if schedule.scales != 1:
            raise ConfigError(
                f"prior={self.name} has all tokens of a window drawn together, so the schedule is a single scale.",
                got=f"prior={self.name} with the schedule {schedule}",
                fix="schedule=single, or prior=transformer sampler=greedy",
            )

    def known_codes(self, clean: Tensor, cond: Cond) -> KnownCodes:
        """Which of the codes (B, L, C) are known."""
        known_codes = self._known_codes(cond)
        mask = torch.zeros_like(clean, dtype=torch.bool) if known_codes is None else known_codes.mask.expand_as(clean)
        return KnownCodes(clean, mask)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """What the network says (B, L, C) of noisy codes x (B, L, C) at times t (B,)."""
        prediction: Tensor = self.network(x, self.conditioner(cond) + self.time(t)).float()
        return prediction


def noisy_network(
    network: Network, tokens: int, in_features: int, out_features: int, cond_width: int, **sizes: Any
) -> nn.Module:
    """A network over noisy tokens; others have no use for some of a transformer's sizes."""
    if network == "transformer":
        return NoisyTransformer(tokens, in_features, out_features, cond_width, **sizes)
    if network == "unet":
        if sizes["dropout"]:
            got, fix = f"prior.dropout={sizes['dropout']}", "prior.dropout=0, or prior.network=convolution"
            raise ConfigError("A U-Net has no dropout.", got=got, fix=fix)
        return NoisyUNet(in_features, out_features, cond_width, width=sizes["width"], depth=sizes["depth"])
    sizes = {name: size for name, size in sizes.items() if name not in ("heads", "expansion")}
    return NoisyConvolutions(tokens, in_features, out_features, cond_width, **sizes)


def unknown_mean(errors: Tensor, known_codes: KnownCodes) -> Tensor:
    """The mean of errors (B, L, C) over codes that are not known."""
    return errors.masked_fill(known_codes.mask, 0.0).sum() / (~known_codes.mask).sum().clamp(min=1)
