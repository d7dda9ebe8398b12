"""The stages of a planner's training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from trajgen.core.types import Batch, GoalSampling, Losses


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own: ``lr_scale`` times that of the stage."""

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0


@dataclass
class Stage:
    """One stage of training: a loss, and the weights that it trains; without weights it is passed over.

    Args:
        name: of the stage, unique within its planner.
        loss: from a batch to named scalars, of which the engine minimizes ``total``.
        parameters: the weights that are trained, or groups of them; others need no gradients meanwhile.
        frozen: modules that stay in evaluation mode.
        after_step: called once after each optimizer step, outside of the graph: updates of a codebook by moving
            averages, target networks.
        report: figures for the log that are too expensive to compute at every step, as the usage of codes.
        options_of: the stage whose options it takes where it has none: both levels of a hierarchy train alike.
        transitions: the goals for which its batches carry `Batch.transitions`; None leaves them out.
        images: whether its batches carry `Batch.images`.
        past_steps: environment steps of its windows before the point whose goals they have: a history.
        prepare: what frozen modules add to a batch, without points that ``loss`` then does not need. The engine calls
            it before the stage, for ``prepared_windows`` windows, from which it draws the batches; where there are
            none, and in validation, ``loss`` gets batches as they are.
    """

    name: str
    loss: Callable[[Batch], Losses]
    parameters: Sequence[nn.Parameter | ParameterGroup]
    frozen: Sequence[nn.Module] = ()
    after_step: Callable[[], None] | None = None
    report: Callable[[], dict[str, float]] = dict
    options_of: str | None = None
    transitions: GoalSampling | None = None
    images: bool = False
    past_steps: int = 0
    prepare: Callable[[Batch], Batch] | None = None

    @property
    def groups(self) -> list[ParameterGroup]:
        """The groups, the first of them that of the parameters which are in no other."""
        single = [p for p in self.parameters if isinstance(p, nn.Parameter)]
        groups = [group for group in self.parameters if isinstance(group, ParameterGroup)]
        return [ParameterGroup(single), *groups] if single else groups

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters of all groups."""
        return [p for group in self.groups for p in group.parameters]

    def begin(self, model: nn.Module) -> None:
        """Puts the model into training mode, with gradients for the stage's parameters alone."""
        trained = {id(p) for p in self.trained}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        model.train()
        for module in self.frozen:
            module.eval()


def with_total(loss: Callable[[Batch], Losses]) -> Callable[[Batch], Losses]:
    """A loss of parts alone, with their sum as ``total``."""

    def total(batch: Batch) -> Losses:
        losses = loss(batch)
        return {"total": sum(losses.values(), start=batch.returns.new_zeros(())), **losses}

    return total
