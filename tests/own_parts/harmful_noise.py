"""Priors over noisy codes, and a sampler of them, that learn or draw other plans: added to the mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from mistakes import mistake
from promises import ALONE, NOISY, OWN_ROWS, REACHES, TOWARDS, WITHHELD, of_first
from torch import Tensor

from trajgen.core.types import Cond, Plan
from trajgen.priors.diffusion import DiffusionPrior
from trajgen.priors.flow import FlowPrior
from trajgen.priors.noisy import unknown_mean
from trajgen.samplers.diffusion import DiffusionSampler


class DenoiserOfErrors(DiffusionPrior):
    """Leaves its errors (B, L, C), and what predicts the codes, to subclasses."""

    method = "denoise"

    def errors(self, prediction: Tensor, codes: Tensor) -> Tensor:
        return (prediction - codes).square()

    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        known_codes, t = self.known_codes(codes, cond), torch.randint(self.timesteps, (len(codes),))
        x = known_codes.into(self._noise_levels.add_noise(codes, torch.randn_like(codes), t))
        prediction = getattr(self, self.method)(x, t, cond)
        return unknown_mean(self.errors(prediction, codes), known_codes), known_codes.into(prediction)


@mistake("prior", NOISY, "denoise() predicts to the codes of tokens 2, 3", "of the same token and window")
class DenoiserOfTheTokenBefore(DenoiserOfErrors):
    def errors(self, prediction: Tensor, codes: Tensor) -> Tensor:
        return super().errors(prediction, codes.roll(1, 1))


@mistake("prior", NOISY, "denoise() predicts to the codes of tokens", "of the same token and window")
class DenoiserOfAnotherWindow(DenoiserOfErrors):
    def errors(self, prediction: Tensor, codes: Tensor) -> Tensor:
        return super().errors(prediction, codes.roll(1, 0))


@mistake("prior", NOISY, "to the codes of tokens 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16", "of all tokens")
class DenoiserWithoutTheLastTokens(DenoiserOfErrors):
    def errors(self, prediction: Tensor, codes: Tensor) -> Tensor:
        return super().errors(prediction, codes) * (torch.arange(codes.shape[1]) < 4).unsqueeze(-1)


@mistake("prior", NOISY, "not a mean over windows and codes", "sums where there should be means")
class DenoiserThatSumsOverTokens(DenoiserOfErrors):
    def errors(self, prediction: Tensor, codes: Tensor) -> Tensor:
        return super().errors(prediction, codes) * codes.shape[1]


@mistake("prior", TOWARDS, "denoise() leads to the codes of another token")
class DenoiserOfTheTokenBeforeByAnotherMethod(DenoiserOfTheTokenBefore):
    method = "predict"


@mistake("prior", TOWARDS, "denoise() leads to the codes of another window")
class DenoiserOfAnotherWindowByAnotherMethod(DenoiserOfAnotherWindow):
    method = "predict"


@mistake("prior", ALONE, "the prediction of the third window differs")
class DenoiserOfTheFirstCondition(DiffusionPrior):
    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().denoise(x, t, cond.map(of_first))


@mistake("prior", WITHHELD, "A return or goal that is withheld still changes the predictions")
class DenoiserThatAlwaysTells(DiffusionPrior):
    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().denoise(x, t, replace(cond, cond_mask=None))


@mistake("prior", REACHES, "The condition does not change the predictions")
class DenoiserThatIsDeaf(DiffusionPrior):
    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().denoise(x, t, cond.map(torch.zeros_like))


@mistake("prior", ALONE, "the prediction of the third window differs")
class FlowOfTheFirstCondition(FlowPrior):
    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().velocity(x, t, cond.map(of_first))


@mistake("prior", NOISY, "velocity() predicts to the codes of tokens 2, 3", "of the same token and window")
class FlowToTheTokenBefore(FlowPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        known_codes, t, noise = self.known_codes(codes, cond), torch.rand(len(codes)), torch.randn_like(codes)
        remaining = (1 - t)[:, None, None]
        x = known_codes.into(codes + remaining * (noise - codes))
        velocity = self.velocity(x, t, cond)
        loss = unknown_mean((velocity - (codes - noise).roll(1, 1)).square(), known_codes)
        return loss, known_codes.into(x + remaining * velocity)


@mistake("prior", TOWARDS, "velocity() takes codes for noise", "the direction of t")
class FlowDrawnBackwards(FlowPrior):
    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().velocity(x, t if self.training else 1 - t, cond)


@mistake("prior", TOWARDS, "denoise() leads away from the codes, once it is trained")
class DenoiserDrawnBackwards(DiffusionPrior):
    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().denoise(x, t if self.training else self.timesteps - 1 - t, cond)


@mistake("sampler", OWN_ROWS, "the codes of the third window differs", "in training")
class DenoisingOfTheFirstCondition(DiffusionSampler):
    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, *args: Any, **kwargs: Any) -> Plan:
        return super().__call__(prior, tokenizer, cond.map(of_first), *args, **kwargs)
