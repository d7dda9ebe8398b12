"""What the tests of studies share."""

from made_up import made as made
