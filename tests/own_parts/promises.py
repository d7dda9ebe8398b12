"""Contracts by short names, for the components that break them."""

from __future__ import annotations

from torch import Tensor

UNCHANGED = "leaves its inputs as they are"
OWN_ROWS = "each window follows from its own inputs, in training too"
ALONE = "one window does not depend on the others of its batch"
UNSHARED = "two of them share no state"
NO_HIDDEN = "no hidden tensors: it moves to another device as a whole"
OWN_PLANS = "each condition has a plan of its own"
ROWS = "the rows of its state can be selected"
PULL = "the loss pulls every prediction to its code"
STEP = "one step of training: a loss and a prediction"
TRAINED = "training reaches all of its weights"
NO_TRACE = "acting changes nothing that stays: modes, saved state, the global seed"
AGAIN = "what it was given before changes nothing"
FORCED = "teacher-forced predictions equal the stepwise ones"
REACHES = "the condition reaches every scale"
WITHHELD = "what is withheld changes no prediction"
NOISY = "the loss pulls what it predicts from noise to the codes"
TOWARDS = "it is drawn towards the codes that it learns"


def of_first(values: Tensor) -> Tensor:
    """Every row replaced by the first one."""
    return values[:1].expand_as(values)
