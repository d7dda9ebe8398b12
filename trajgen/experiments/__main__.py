"""``python -m trajgen.experiments``: the Hydra application behind ``trajgen train -m``."""

from trajgen.experiments.multirun import main

main()
