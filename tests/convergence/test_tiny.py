"""A small MAGE learns a task that must be learnt; each of its losses ends low."""

from __future__ import annotations

from pathlib import Path

import pytest
from glides import LIMITS, STEPS, Learnt, broken_promises, learn


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    return learn(tmp_path_factory.mktemp("tiny"))


def test_plans_start_where_they_were_asked_to(learnt: Learnt) -> None:
    assert learnt.after.start < 0.3
    assert learnt.after.start < 0.3 * learnt.before.start


def test_only_the_plans_own_latent_starts_where_it_was_asked_to(learnt: Learnt) -> None:
    """A decoder that copies the condition would start there with any latent, and L_cond would train nothing."""
    assert learnt.after.start_of_other_latent > 3 * learnt.after.start
    assert learnt.after.start_of_zero_latent > 3 * learnt.after.start


def test_plans_end_at_the_goal(learnt: Learnt) -> None:
    assert learnt.after.end < 0.4
    assert learnt.after.end < 0.5 * learnt.before.end


def test_actions_lead_there(learnt: Learnt) -> None:
    assert learnt.after.action < 0.35
    assert learnt.after.action < 0.4 * learnt.before.action


def test_each_loss_ends_low(learnt: Learnt) -> None:
    """A change of sign in any of them is noticed: `test_signs.py` changes each, nightly."""
    assert broken_promises(learnt, LIMITS) == []


def test_the_losses_of_the_guided_decoder_are_trained_on(tmp_path: Path) -> None:
    """With the usual weight L_CE alone lowers both as far in so easy a task; with a large one, they alone do.

    Without L_cond in the total it ends at 0.53; without the reconstruction, that ends at 0.077.
    """
    steps = STEPS | {"return_target": 10, "prior": 100, "action": 10}
    learnt = learn(tmp_path, steps=steps, condition_weight=10.0, inverse_weight=0.0)
    limits = {("prior", "condition"): 0.25, ("prior", "reconstruction"): 0.035}
    assert broken_promises(learnt, limits) == []
    assert learnt.after.start < 0.6
