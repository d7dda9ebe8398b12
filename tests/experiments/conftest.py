"""What the tests of studies share."""

from fake_runs import fake_runs as fake_runs
