"""The command line: ``trajgen COMMAND key=value …``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from trajgen import __version__
from trajgen.core.errors import ConfigError, TrajgenError, nearest

USAGE = f"""trajgen {__version__}: generative trajectory models for offline reinforcement learning

  trajgen train recipe=mage                     make data, train, evaluate, draw
  trajgen train recipe=mage data=pointmaze/medium-dwell seed=1 tokenizer.codebook_size=256
  trajgen train -m seed=0,1,2                   several runs, and one table of them
  trajgen evaluate run=DIR                      play in the world, score, draw
  trajgen study study=num_scales                a grid of variants over seeds, and one table of them
  trajgen search search=mage                    options that Optuna proposes, and one table of them
  trajgen sample run=DIR                        plans for one state, and their condition error
  trajgen plot run=DIR                          learning curves, codebook, plans, asked and achieved return, attention
  trajgen video run=DIR                         an episode as a film, with the plan drawn in
  trajgen report DIR…                           one HTML page that compares runs
  trajgen export run=DIR format=onnx            a policy that runs without trajgen
  trajgen bench decision --against dt           how fast decisions are here (also: train, data)
  trajgen data make pointmaze/umaze-dwell       record a data set (also: list, info ID, get ID)
  trajgen list [KIND[/NAME]]                    components, their options and defaults; recipes; studies; data
  trajgen new KIND NAME                         a skeleton of a component of your own
  trajgen check KIND/NAME imports=[my_parts]    whether a component keeps what its kind promises
  trajgen completion bash                       what the Tab key offers (also: zsh, fish)

A component is swapped by name (sampler=greedy), its options follow a dot (sampler.guidance=1).
'trajgen COMMAND --help' says more. --debug shows the traceback of an error."""


COMMANDS = {
    "train": ("train", "train"),
    "evaluate": ("acting", "evaluate"),
    "sample": ("acting", "sample"),
    "study": ("study", "study"),
    "search": ("search", "search"),
    "plot": ("plot", "plot"),
    "video": ("video", "video"),
    "report": ("report", "report"),
    "export": ("export", "export"),
    "bench": ("bench", "bench"),
    "data": ("data", "data"),
    "list": ("listing", "listing"),
    "new": ("new", "new"),
    "check": ("check", "check"),
    "completion": ("completion", "completion"),
}
"""For each command, the module that is imported when it is given, and its function."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command, and ends with exit code 0, 1 for an error of the person's, or 130 for an interruption."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("HYDRA_FULL_ERROR") == "1"
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if words[0] in ("--version", "version"):
        print(__version__)
        return
    try:
        if words[0] not in COMMANDS:
            raise ConfigError(
                f"There is no command '{words[0]}'.",
                expected=", ".join(COMMANDS),
                got=f"trajgen {words[0]}",
                fix=nearest(words[0], COMMANDS),
            )
        room, name = COMMANDS[words[0]]
        getattr(import_module(f"trajgen.cli.{room}"), name)(words[1:])
    except TrajgenError as error:
        if debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
