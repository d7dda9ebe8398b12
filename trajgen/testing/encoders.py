"""What encoders promise: features of each image, and losses that keep images apart."""

from __future__ import annotations

import torch

from trajgen.testing.contract import NotApplicableError, contract, require, require_losses, require_shape
from trajgen.testing.fixture import Fixture, select

STEPS, LEARNING_RATE = 40, 3e-3
"""Of the training after which features must still differ."""
LEAST_SPREAD = 0.1
"""Of features after it, as a share of that before it."""


@contract("features of each image, in uint8", "encoder")
@torch.no_grad()
def features(fixture: Fixture) -> None:
    encoder, images = fixture.component, fixture.images()
    vectors = encoder(images[:, 0])
    require_shape("the features", vectors, (len(images), encoder.features), "(B, features)")
    others = encoder(255 - images[:, 0])
    require(not torch.allclose(vectors, others), "Other images have the same features.", look="the scale of pixels")


@contract("losses for what is trained, and none for what is not", "encoder")
def losses(fixture: Fixture) -> None:
    encoder, batch = fixture.part(fixture.build_ready()), fixture.batch(16, padded=False)
    values, trained = encoder.loss(batch), list(encoder.trained_parameters())
    require_losses(values, total=False)
    require(bool(values) == bool(trained), "An encoder that is trained has a loss.", look="loss()")
    for name, twice in encoder.loss(select(batch, list(range(16)) * 2)).items():
        require(
            abs(float(twice.detach())) <= 1.6 * abs(float(values[name].detach())),
            f"The loss '{name}' grows with the windows of its batch.",
            expected="a mean",
            look="loss(): sums over the batch",
        )
    weights = {id(p) for p in encoder.parameters()}
    require(all(id(p) in weights for p in trained), "Trained parameters are its own.", look="trained_parameters()")


@contract("training does not make all features alike", "encoder")
def no_collapse(fixture: Fixture) -> None:
    planner = fixture.build(perturbed=False)
    encoder, batch, images = fixture.part(planner), fixture.batch(16, padded=False), fixture.images(16)
    if not encoder.trained_parameters():
        raise NotApplicableError("it is not trained")

    def spread() -> float:
        with torch.no_grad():
            return float(encoder.eval()(images.flatten(0, 1)).std(0).mean())

    before = spread()
    optimizer = torch.optim.Adam(encoder.trained_parameters(), LEARNING_RATE)
    for _ in range(STEPS):
        encoder.train()
        optimizer.zero_grad()
        sum(encoder.loss(batch).values()).backward()
        optimizer.step()
    after = spread()
    require(
        after > LEAST_SPREAD * before,
        "Features of different images become alike as it is trained: its losses are met best without images.",
        expected=f"a deviation over images above {LEAST_SPREAD * before:.2g}",
        got=f"{after:.2g} after {STEPS} steps, {before:.2g} before",
        look="losses that only compare features with each other",
    )
