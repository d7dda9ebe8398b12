"""With the sign of any loss changed, a small MAGE does not learn, and the test of its losses fails. Nightly."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from glides import LIMITS, broken_promises, learn

from trajgen.core.errors import TrainingError

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize(("stage", "loss"), list(LIMITS))
def test_a_change_of_sign_is_noticed(stage: str, loss: str, tmp_path: Path) -> None:
    with suppress(TrainingError):  # a loss that is not finite ends the training by itself
        assert broken_promises(learn(tmp_path, (stage, loss)), LIMITS)
