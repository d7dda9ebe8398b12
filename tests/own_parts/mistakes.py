"""Components with a mistake, the contract that must report it, and words of the report."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.actions.inverse_dynamics import LatentInverseDynamics
from trajgen.conditioners import FieldConditioner
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan
from trajgen.decoders.convolutional import AdapterDecoder, PlainDecoder
from trajgen.encoders.convolutional import ConvEncoder
from trajgen.planners.latent import LatentPlanner
from trajgen.priors.diffusion import DiffusionPrior
from trajgen.priors.transformer import TransformerPrior
from trajgen.return_targets import QuantileTarget
from trajgen.samplers.autoregressive import AutoregressiveSampler
from trajgen.tokenizers.layouts import Quantize, ResidualPyramid
from trajgen.tokenizers.multiscale import MultiscaleTokenizer
from trajgen.views import FieldView

MISTAKES: list[tuple[str, Callable[..., Any], str, tuple[str, ...]]] = []
"""Kind, component, the contract that must report it, and words of the report."""


def mistake(kind: str, contract: str, *words: str) -> Callable[[Any], Any]:
    def add(component: Any) -> Any:
        MISTAKES.append((kind, component, contract, words))
        return component

    return add


@mistake("encoder", "training does not make all features alike", "become alike", "only compare features")
class EncoderThatPredictsItself(ConvEncoder):
    """Predicts the features of the second image from those of the first: best if all are the same."""

    def loss(self, batch: Batch) -> Losses:
        first, second = (self(batch.image_pairs[:, i]) for i in range(2))
        return {"prediction": (first - second).square().mean()}


@mistake("encoder", "features of each image, in uint8", "Other images have the same features")
class EncoderOfOneValue(ConvEncoder):
    """Takes uint8 for numbers from 0 to 1."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.clamp(max=0))


@mistake("view", "read() finds the fields again", "does not give the return", "slices")
class ViewThatReadsElsewhere(FieldView):
    def read(self, x: Tensor, field: str) -> Tensor | None:
        return x.roll(-1, -1)[..., self.slices[field]] if field in self.slices else None


@mistake("schedule", "a schedule or a refusal for every length and option", "raises ZeroDivisionError in dividing()")
def dividing(length: int, *, parts: int = 2) -> ScaleSchedule:
    """Scales that grow by a share of the length."""
    return ScaleSchedule((length // parts or 1, length))


class PyramidThatLooksAhead(ResidualPyramid):
    def inputs(self, vectors: Tensor) -> Tensor:
        return vectors[:, self.schedule.lengths[0] :]

    def encode(self, f: Tensor, quantize: Quantize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes: list[Tensor] = []

        def recorded(x: Tensor) -> tuple[Tensor, Tensor]:
            ids, vectors = quantize(x)
            codes.append(vectors)
            return ids, vectors

        ids, residuals, _, latent = super().encode(f, recorded)
        return ids, residuals, self.inputs(torch.cat(codes, 1)), latent


class MultiscaleVQ(MultiscaleTokenizer):
    def __init__(
        self, schedule: Callable[[int], ScaleSchedule], features: int, horizon: int, *, size: int = 12
    ) -> None:
        super().__init__(schedule, features, horizon, latent_length=4, code_dim=6, codebook_size=size, width=16)


@mistake("tokenizer", "padding does not count in the loss", "batch.mask (B, T)")
class TokenizerThatLearnsPadding(MultiscaleVQ):
    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        return super().loss(replace(batch, mask=torch.ones_like(batch.mask)), x, decode)


@mistake(
    "tokenizer",
    "the partial latent, extended step by step, agrees with inputs() and latent()",
    "What scale 2 sees of the partial latent differs from its teacher-forcing input",
)
class TokenizerThatLooksAhead(MultiscaleVQ):
    def __init__(self, schedule: Callable[[int], ScaleSchedule], features: int, horizon: int) -> None:
        super().__init__(schedule, features, horizon)
        self.layout = PyramidThatLooksAhead(self.schedule, 6, 4)


@mistake("tokenizer", "one-hot codes have the vectors of their ids", "L_cond cannot reach the prior")
class TokenizerWithoutRelaxation(MultiscaleVQ):
    def vectors(self, codes: Tensor) -> Tensor:
        return super().vectors(codes.argmin(-1) if codes.is_floating_point() else codes)


@mistake("conditioner", "what is withheld is not looked at", "A return that is withheld still changes the embedding")
class ConditionerThatAlwaysTells(FieldConditioner):
    def forward(self, cond: Cond) -> Tensor:
        return super().forward(replace(cond, cond_mask=None))


@mistake(
    "prior",
    "teacher-forced predictions equal the stepwise ones",
    "Teacher-forced logits of scale 2 differ from the stepwise ones by",
    "it must see what logits() sees",
)
class PriorThatForgets(TransformerPrior):
    def step(self, x: Tensor | None, k: int, state: Any) -> Tensor:
        fresh = copy(state)
        fresh.cache = [None] * len(self.blocks)
        return super().step(x, k, fresh)


@mistake("prior", "no scale sees the inputs of finer ones", "changes the predictions of coarser scales", "the mask")
class PriorWithoutMask(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        self.mask = None
        return super().logits(inputs, cond)


@mistake("prior", "one step of training: a loss and a prediction", "(loss, prediction)", "got:      Tensor")
class PriorOfTheOldKind(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> Any:
        return super().forward(codes, inputs, cond)[0]


@mistake("prior", "the condition reaches every scale", "The condition does not change the predictions of scale 1, 2, 3")
class PriorThatIsDeaf(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        return super().logits(inputs, cond.map(torch.zeros_like))

    def start(self, cond: Cond) -> Any:
        return super().start(cond.map(torch.zeros_like))


@mistake("prior", "it learns in a few steps", "the sign of the loss")
class PriorThatClimbs(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return -super().loss(logits, codes)


@mistake("prior", "it denoises at every noise level, in the shape of the codes", "should have the shape (B, L, C)")
class DenoiserOfTheFirstToken(DiffusionPrior):
    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return super().denoise(x, t, cond)[:, :1]


def plain_decoder(change: Callable[[Tensor], Tensor], before: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A decoder without a condition, with its output, or the latent before it, changed."""

    class ChangedDecoder(PlainDecoder):
        """Changes its output."""

        def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
            return change(super().forward(before(latent), cond))

    return ChangedDecoder


for change, contract, *words in (
    (lambda x: x.mT, "a trajectory of the right shape", "expected: (6, 16, 5)", "got:      (6, 5, 16)", "a transpose"),
    (
        lambda x: x + torch.arange(x.shape[1]).unsqueeze(-1),
        *("makes its tensors on the device of its inputs", "on a GPU this fails", "device=x.device"),
    ),
    (
        lambda x: x - x.mean(0),
        *("one window does not depend on the others of its batch", "of the third window differs"),
    ),
    (lambda x: x.double(), "finite float32 in evaluation", "is not in single precision", "torch.float64"),
    (
        lambda x: torch.nn.functional.dropout(x, 0.5),
        *("the same twice in evaluation", "differs by", "dropout in evaluation"),
    ),
):
    mistake("decoder", contract, *words)(plain_decoder(change))
mistake("decoder", "gradients flow through it to the latent", "No gradient reaches the latent")(
    plain_decoder(torch.clone, before=torch.detach)
)


@mistake("decoder", "each weight is base or adapter", "embed.0.weight", "in neither list")
class DecoderThatForgetsALayer(AdapterDecoder):
    def adapter_parameters(self) -> list[nn.Parameter]:
        return [self.level_embed, *self.adapters.parameters()]


@mistake("decoder", "adapters start without effect, and are left out of base()", "last layer starts at zero")
class DecoderThatStartsGuided(AdapterDecoder):
    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        return super().base(latent, cond)

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        decoded = super().forward(latent, cond)
        return decoded if cond is None else decoded + cond.returns[:, None, None]


@mistake("action", "an action depends on its own state and offset alone", "The action at offset 1", "computed alone")
class ActionByPlace(LatentInverseDynamics):
    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        return super().forward(plan, states, torch.arange(offsets.shape[1]).expand_as(offsets))


@mistake("sampler", "samples with rng: a seed repeats them", "The same seed samples other codes", "generator=rng")
def careless(vocabulary: int | None, *, temperature: float = 1.0) -> AutoregressiveSampler:
    """Draws without the generator."""
    return AutoregressiveSampler(
        lambda logits, rng: torch.distributions.Categorical(logits=logits / temperature).sample()
    )


@mistake("sampler", "known codes stay as they are", "known codes were changed", "known_codes.into")
class SamplerThatKnowsBetter:
    """Draws what is known anew."""

    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        return AutoregressiveSampler(lambda logits, _: logits.argmax(-1))(prior, tokenizer, cond, rng)


@mistake("return_target", "one return for each state", "should have the shape (B,)", "got:      (6, 1)", "squeeze")
class TargetWithAnAxisTooMany(QuantileTarget):
    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        return super().forward(state, goal, remaining).unsqueeze(-1)


@mistake("planner", "a stage trains its own weights alone", "Stage 'prior' changes parts", "embed")
class PlannerThatMovesItsCodes(LatentPlanner):
    def stages(self) -> list[Stage]:
        *first, prior, action = super().stages()
        return [*first, replace(prior, frozen=[], after_step=self.tokenizer.after_step), action]

    def prior_loss(self, batch: Batch) -> Losses:
        self.tokenizer_loss(batch)
        return super().prior_loss(batch)


@mistake("planner", "every weight is trained by a stage", "No stage trains these weights", "action.")
class PlannerThatForgetsItsHead(LatentPlanner):
    def stages(self) -> list[Stage]:
        *first, prior, action = super().stages()
        head = {id(p) for p in self.action.parameters()}
        return [*first, replace(prior, parameters=[p for p in prior.parameters if id(p) not in head]), action]


@mistake(
    "decoder", "no hidden tensors: it moves to another device as a whole", "The tensor in 'scale'", "register_buffer"
)
class DecoderWithAHiddenTensor(PlainDecoder):
    def __init__(self, features: int, horizon: int, latent_length: int, code_dim: int, *, width: int = 8) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width=width)
        self.scale = torch.linspace(1, 2, features)

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        return super().forward(latent, cond) * self.scale


@mistake("decoder", "its state dict is complete", "once the state is loaded into a planner that is built anew")
class DecoderOfThisProcess(PlainDecoder):
    def __init__(self, features: int, horizon: int, latent_length: int, code_dim: int, *, width: int = 8) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width=width)
        self.gain = float(torch.rand(()))

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        return super().forward(latent, cond) * self.gain


@mistake("action", "training reaches all of its weights", "network.0.weight", "no stage of training reaches it")
class ActionThatDetaches(LatentInverseDynamics):
    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        hidden = self.network[:-1](plan.latent.flatten(1)).detach()
        actions = self.network[-1](hidden).unflatten(-1, (self.chunk, -1))
        return actions.gather(1, offsets.unsqueeze(-1).expand(-1, -1, actions.shape[-1]))


@mistake(
    "return_target",
    "acting without gradients (torch.inference_mode)",
    "raises RuntimeError in forward()",
    "mistakes.py:",
)
class TargetThatClimbs(QuantileTarget):
    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        with torch.enable_grad():
            returns = super().forward(state.clone().requires_grad_(), goal, remaining)
            returns.sum().backward()
        return returns.detach()


@mistake("action", "has what its kind promises", "expected: reads_trajectory: bool")
class ActionWithoutAttribute(nn.Module):
    def __init__(self, code_dim: int, latent_length: int, action_dim: int) -> None:
        super().__init__()
        self.network = nn.Linear(code_dim * latent_length, action_dim)

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        return self.network(plan.latent.flatten(1)).unsqueeze(1).expand(-1, states.shape[1], -1)


@mistake("decoder", "it is built in a composition", "raises ValueError in __init__(): no room", "mistakes.py:")
class DecoderThatCannotBeBuilt(PlainDecoder):
    def __init__(self, features: int, *, width: int = 8) -> None:
        raise ValueError("no room")


@mistake("decoder", "it is built in a composition", "requires widht before its '*', which nothing provides")
class DecoderWithoutAStar(PlainDecoder):
    def __init__(self, features: int, horizon: int, latent_length: int, code_dim: int, widht: int = 8) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width=widht)


@mistake("return_target", "a docstring that says what it is", "no docstring")
class TargetWithoutWords(nn.Module):
    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        return state[:, 0]

    def loss(self, batch: Batch) -> Losses:
        return {}


@mistake("schedule", "options have types and literal defaults", "Option 'scales' has no type", "scales: int = 2")
def untyped(length: int, *, scales=2) -> ScaleSchedule:
    """An option without a type."""
    return ScaleSchedule((length,) * scales)


@mistake("schedule", "options have types and literal defaults", "is not of the option's own type", "a whole number")
def mistyped(length: int, *, scales: int = 0.5) -> ScaleSchedule:
    """A default of another type."""
    return ScaleSchedule((length,))
