"""The command line: ``trajgen COMMAND key=value …``."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

COMMANDS = ("train", "evaluate", "study", "plot", "video", "report", "export", "hub", "bench", "data", "components")
"""Modules of commands, in the order of the help; importing one adds its commands, which import what they need."""

try:
    from trajgen.cli.app import app, refuse_dashes
    from trajgen.core.errors import TrajgenError, printable
    from trajgen.security import limit_memory

    for module in COMMANDS:
        import_module(f"{__name__}.{module}")
except KeyboardInterrupt:  # before `main` could catch it
    print("Interrupted.", file=sys.stderr)
    raise SystemExit(130) from None


NO_MEMORY = (
    *("failed to map segment", "cannot allocate memory", "can't allocate memory", "bad_alloc", "new thread"),
    "without exception set",  # of the interpreter itself
)
"""What errors say that come of too little memory."""


REFUSED = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
)
"""Errors of a disk that is full, of a folder that may not be written or read, of a path that names something else."""


def _out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error of too little memory from which an error came, if it did."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
            return error
        error = error.__cause__ or error.__context__
    return None


def _refusal(error: Exception) -> TrajgenError | None:
    """What a person can mend about an error of the system: a disk that refuses, or too little memory."""
    if isinstance(error, FileNotFoundError) and error.filename is None:  # os.getcwd alone names no file
        return TrajgenError("The current folder is not there any more.", fix="cd to a folder that is")
    if isinstance(error, OSError) and error.errno in REFUSED:
        return TrajgenError(
            "A file cannot be read or written.",
            got=": ".join(str(part) for part in (error.filename, error.strerror) if part is not None),
            fix="free space, other permissions, or another path",
        )
    if (cause := _out_of_memory(error)) is not None:
        return TrajgenError(
            "The memory that this process may use is full.",
            got=str(cause) or type(cause).__name__,
            fix="a higher limit (ulimit -v), a smaller batch_size, or data.memory_map=true",
        )
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command.

    Raises:
        SystemExit: with code 1 for a `TrajgenError`, 2 where Typer cannot parse the line, 130 for an interruption.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal has not is no error
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {printable(str(message))}\n"
    limit_memory()
    debug = "--debug" in words or os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        refuse_dashes(words)
        app([word for word in words if word != "--debug"] or ["--help"], prog_name="trajgen")
    except TrajgenError as error:
        if debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:
        refusal = _refusal(error)
        if debug or refusal is None:
            raise
        print(f"Error: {refusal}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as ended:
        if ended.code == 130 and isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            print("Interrupted.", file=sys.stderr)
        if ended.code:
            raise
