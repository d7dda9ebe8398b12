"""Where the batches of a training come from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from torch import Generator

from trajgen.core.stages import Stage
from trajgen.core.types import Batch, GoalSampling


class Source(Protocol):
    """Gives the batch of a step: a pure function of seed, step and rank."""

    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        """The ``size`` windows of a step; the same ones at every call."""
        ...


@runtime_checkable
class DrawsTransitions(Protocol):
    """A source whose batches can carry `Batch.transitions`."""

    def with_transitions(self, sampling: GoalSampling) -> Source:
        """The same source, whose batches carry the transitions of the goals that ``sampling`` says."""
        ...


@runtime_checkable
class DrawsPast(Protocol):
    """A source whose windows can begin before the point at which a plan is made."""

    def with_past(self, steps: int) -> Source:
        """The same source, whose goals are those of the point ``steps`` after the start of a window."""
        ...


@runtime_checkable
class DrawsImages(Protocol):
    """A source whose batches can carry `Batch.images`."""

    def with_images(self) -> Source:
        """The same source, whose batches carry pairs of images."""
        ...

    def without_features(self) -> Source:
        """The same source with zeros for the features of images, for timing: the encoder is not trained yet."""
        ...

    def encoded(self) -> Source:
        """The source, with the features that the encoder makes of images now."""
        ...


def source_of(stage: Stage, source: Source) -> Source:
    """The source of a stage's batches: with images, a past or transitions where it needs them, and the source has any.

    A stage that needs no images comes after the one that trains their encoder, and gets features.
    """
    if isinstance(source, DrawsImages):
        source = source.with_images() if stage.images else source.encoded()
    if stage.past_steps and isinstance(source, DrawsPast):
        source = source.with_past(stage.past_steps)
    if stage.transitions is None or not isinstance(source, DrawsTransitions):
        return source
    return source.with_transitions(stage.transitions)


@runtime_checkable
class DrawsOnDevice(Protocol):
    """A source whose batch can be drawn within a CUDA graph: ``batch`` is ``seed_draw``, then ``draw``."""

    generator: Generator
    on_device: bool
    """Whether ``draw`` works on the device alone, without the host."""

    def seed_draw(self, step: int, rank: int = 0) -> None:
        """Seeds ``generator`` for the batch of a step."""
        ...

    def draw(self, size: int) -> Batch:
        """``size`` windows by the generator's random numbers alone."""
        ...


def drawn_on_device(source: Source) -> DrawsOnDevice | None:
    """The source, if its batches can be drawn within a CUDA graph."""
    return source if isinstance(source, DrawsOnDevice) and source.on_device else None


def draw_seed(seed: int, step: int, rank: int = 0) -> int:
    """What seeds the draw of a step's batch."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
