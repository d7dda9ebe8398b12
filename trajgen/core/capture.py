"""Capturing CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def captured(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, **options: Any) -> Iterator[None]:
    """Captures what is done within it as a CUDA graph; the first error is raised, although the capture's end fails too.

    Args:
        graph: to replay it.
        stream: of the device that works. Without one torch takes a stream of the device of the process's first capture.
            Graphs that share memory are captured on one stream.
        options: of `torch.cuda.graph`.
    """
    first: RuntimeError | None = None
    try:
        with torch.cuda.graph(graph, stream=stream, **options):
            try:
                yield
            except RuntimeError as error:
                first = error
                raise
    except RuntimeError as error:
        raise (first or error) from None
