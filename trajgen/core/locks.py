"""Locks on files, where the operating system has them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import IO, Any

_FCNTL: Any = import_module("fcntl") if find_spec("fcntl") else None  # Windows has no such locks


def lock(file: IO[str], *, wait: bool) -> bool:
    """Holds an open file for this process until it is closed, or the process dies.

    Returns:
        Whether it is held; false where the system, or the file system, has no locks.

    Raises:
        BlockingIOError: if another process holds it, and ``wait`` is false.
    """
    if _FCNTL is None:
        return False
    try:
        _FCNTL.flock(file, _FCNTL.LOCK_EX | (0 if wait else _FCNTL.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
