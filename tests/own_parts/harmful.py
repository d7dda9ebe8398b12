"""Components with a fault that does harm silently, and the contract that must report it: added to the mistakes."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mistakes import MultiscaleVQ, mistake, plain_decoder
from promises import ALONE, OWN_PLANS, PULL, ROWS, STEP, TRAINED, UNCHANGED, WITHHELD, of_first
from torch import Generator, Tensor, nn

from trajgen.actions.inverse_dynamics import LatentInverseDynamics
from trajgen.conditioners import FieldConditioner
from trajgen.core.types import Batch, Cond, KnownCodes, Losses, Plan
from trajgen.critics.plans import HorizonCritic
from trajgen.decoders.convolutional import AdapterDecoder
from trajgen.planners.latent import LatentPlanner
from trajgen.priors.transformer import TransformerPrior
from trajgen.return_targets import QuantileTarget
from trajgen.samplers.autoregressive import AutoregressiveSampler, draw

# The state of a prior


class Unselected:
    """A state whose rows() selects nothing, or a part."""

    def __init__(self, state: Any, part: str | None) -> None:
        self.state, self.part = state, part

    def rows(self, index: Tensor) -> Unselected:
        state = copy(self.state)
        if self.part:
            setattr(state, self.part, self.state.rows(index).__dict__[self.part])
        return Unselected(state, self.part)


class PriorOfState(TransformerPrior):
    part: ClassVar[str | None] = None

    def start(self, cond: Cond) -> Any:
        return Unselected(super().start(cond), self.part)

    def step(self, x: Tensor | None, k: int, state: Any) -> Tensor:
        return super().step(x, k, state.state)


@mistake("prior", ROWS, "Once rows are selected before scale 1")
class PriorWhoseRowsDoNothing(PriorOfState):
    pass


@mistake("prior", ROWS)
class PriorWhoseRowsLeaveTheCondition(PriorOfState):
    part = "cache"


@mistake("prior", ROWS)
class PriorWhoseRowsLeaveTheCache(PriorOfState):
    part = "start"


# The loss of a prior


@mistake("prior", PULL, "does not pull the predictions of scale")
class PriorOfShiftedCodes(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return super().loss(logits[:, 1:], codes[:, :-1])


@mistake("prior", PULL, "forward() does not pull the predictions of scale")
class PriorOfShiftedCodesInForward(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes.roll(1, 1)), logits


@mistake("prior", PULL, "does not pull the predictions of scale 3")
class PriorWithoutTheFinestScale(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        coarse = self.schedule.tokens - self.schedule.lengths[-1]
        return super().loss(logits[:, :coarse], codes[:, :coarse])


@mistake("prior", PULL, "does not pull the predictions of scale 1")
class PriorWithoutTheCoarsestScale(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return super().loss(logits[:, 1:], codes[:, 1:])


@mistake("prior", PULL, "not a mean over windows and codes")
class PriorThatSums(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum")


@mistake("prior", PULL, "not a mean over windows and codes")
class PriorThatSumsTokens(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return super().loss(logits, codes) * codes.shape[1]


@mistake("prior", STEP, "The loss of a batch grows with its windows")
class PriorThatSumsInForward(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        loss, logits = super().forward(codes, inputs, cond)
        return loss * len(codes), logits


@mistake("prior", PULL)
class PriorOfAnotherWindow(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return super().loss(logits, codes.roll(1, 0))


# What a prediction leads back to


@mistake("prior", STEP, "L_cond could not reach the prior")
class PriorOfDetachedPredictions(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        loss, logits = super().forward(codes, inputs, cond)
        return loss, logits.detach()


@mistake("prior", STEP, "L_cond could not reach the prior", "products with 0")
class PriorOfZeroGradients(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        loss, logits = super().forward(codes, inputs, cond)
        return loss, logits.detach() + 0 * logits


@mistake("prior", TRAINED, "input_proj.weight", "gradient absent or 0")
class PriorWithALayerOfZeroGradients(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        weight = self.input_proj.weight
        detached = F.linear(inputs, weight.detach() + 0 * weight, self.input_proj.bias)
        return super().logits(inputs, cond) if not self.training else self._logits(detached, inputs, cond)

    def _logits(self, projected: Tensor, inputs: Tensor, cond: Cond) -> Tensor:
        layer, self.input_proj = self.input_proj, nn.Identity()
        try:
            return super().logits(projected, cond)
        finally:
            self.input_proj = layer


@mistake("tokenizer", "one-hot codes have the vectors of their ids", "L_cond cannot reach the prior")
class TokenizerThatDetachesRelaxedCodes(MultiscaleVQ):
    def vectors(self, codes: Tensor) -> Tensor:
        return super().vectors(codes.detach())


@mistake("tokenizer", "one-hot codes have the vectors of their ids", "L_cond cannot reach the prior")
class TokenizerOfZeroGradients(MultiscaleVQ):
    def vectors(self, codes: Tensor) -> Tensor:
        vectors = super().vectors(codes)
        return vectors.detach() + 0 * vectors


@mistake("planner", "L_cond reaches the prior", "it trains nothing")
class PlannerOfDetachedCodes(LatentPlanner):
    def _relaxed_codes(self, prediction: Tensor) -> Tensor:
        return super()._relaxed_codes(prediction).detach()


@mistake("planner", "L_cond reaches the prior", "it trains nothing")
class PlannerOfHardCodes(LatentPlanner):
    def _relaxed_codes(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(-1)


mistake("decoder", "gradients flow through it to the latent", "No gradient reaches the latent, or some of it")(
    plain_decoder(torch.clone, before=lambda latent: torch.cat([latent[:, :1], latent[:, 1:].detach()], 1))
)
mistake("decoder", "gradients flow through it to the latent", "products with 0")(
    plain_decoder(torch.clone, before=lambda latent: latent.detach() + 0 * latent)
)


@mistake("action", "actions are read off the plan, and can be learnt", "L_inv could not train the prior")
class ActionOfDetachedPlans(LatentInverseDynamics):
    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        return super().forward(replace(plan, latent=plan.latent.detach()), states, offsets)


@mistake("return_target", TRAINED, "network.")
class TargetOfZeroGradients(QuantileTarget):
    def loss(self, batch: Batch) -> Losses:
        return {name: value * 0 for name, value in super().loss(batch).items()}


# What is withheld


@mistake("conditioner", "what is withheld is not looked at", "A goal that is withheld still changes the embedding")
class ConditionerThatKeepsTheGoal(FieldConditioner):
    def forward(self, cond: Cond) -> Tensor:
        self.optional = frozenset(("return",))
        embedded = super().forward(cond)
        self.optional = frozenset(("return", "goal"))
        return embedded


@mistake("prior", WITHHELD, "still changes the predictions")
class PriorThatIgnoresTheMask(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        return super().logits(inputs, replace(cond, cond_mask=None))


@mistake("prior", WITHHELD, "still changes the predictions")
class PriorThatReadsTheReturnItself(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        return super().logits(inputs, cond) + cond.returns[:, None, None] * self.pos_embed[0, 0]


# Rows that follow the first one


@mistake("prior", ALONE)
class PriorOfTheFirstCondition(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        return super().logits(inputs, cond.map(of_first))


@mistake("conditioner", ALONE)
class ConditionerOfTheFirstState(FieldConditioner):
    def forward(self, cond: Cond) -> Tensor:
        return super().forward(replace(cond, state=of_first(cond.state)))


@mistake("sampler", OWN_PLANS, "do not change their plans")
class SamplerOfTheFirstCondition:
    """Draws every row for the first condition."""

    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        return AutoregressiveSampler(draw)(prior, tokenizer, cond.map(of_first), rng, known_codes)


@mistake("planner", OWN_PLANS, "do not change their plans")
class PlannerOfTheFirstCondition(LatentPlanner):
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        return super().plan(cond.map(of_first), rng, decode=decode)


@mistake("decoder", ALONE)
class DecoderOfTheFirstCondition(AdapterDecoder):
    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        return super().forward(latent, None if cond is None else cond.map(of_first))


@mistake("return_target", ALONE)
class TargetOfTheFirstState(QuantileTarget):
    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        return super().forward(of_first(state), goal, remaining)


# Known codes


@mistake("sampler", "what is drawn follows from known codes", "put in once all is drawn")
class SamplerThatPutsKnownCodesInLast:
    """Draws as if nothing were known, and then puts known codes in."""

    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        codes = AutoregressiveSampler(draw)(prior, tokenizer, cond, rng).codes
        codes = codes if known_codes is None else known_codes.into(codes)
        return Plan(codes, tokenizer.layout.latent(tokenizer.vectors(codes)))


@mistake("sampler", UNCHANGED, "known_codes.codes")
class SamplerThatChangesKnownCodes:
    """Clips known codes where they lie."""

    def __call__(
        self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: KnownCodes | None = None
    ) -> Plan:
        if known_codes is not None:
            known_codes.codes.clamp_(max=3)
        return AutoregressiveSampler(draw)(prior, tokenizer, cond, rng, known_codes)


@mistake("planner", "plans take the codes that follow from their condition", "tokenizer.known_codes(cond)")
class PlannerWithoutKnownCodes(LatentPlanner):
    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        return self._completed(self.sampler(self.prior, self.tokenizer, cond, rng), cond, rng, decode)


# Losses of a share of a batch


@mistake("tokenizer", "padding does not count in the loss", "shared out to several devices or micro-batches")
class TokenizerOfItsShare(MultiscaleVQ):
    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        return super().loss(replace(batch, full_batch=None), x, decode)


@mistake("critic", "losses that can be trained, and target networks that follow", "shared out to several devices")
class CriticOfItsShare(HorizonCritic):
    def loss(self, batch: Batch) -> Losses:
        scores = self({"state": batch.states}, batch.condition())
        return {"value": ((scores.unsqueeze(1) - batch.returns).square() * batch.mask).sum() / batch.mask.sum()}
