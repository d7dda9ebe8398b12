"""A small MAGE learns a task that must be learnt; each of its losses ends low."""

from __future__ import annotations

import pytest
from glides import LIMITS, Learnt, broken_promises, learn


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
