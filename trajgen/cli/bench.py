"""``trajgen bench``: how fast decisions, training and data are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajgen.bench.request import BenchRequest

HELP = """trajgen bench decision|train|data [key=value …]

  trajgen bench decision recipe=mage --against dt    one plan and its action, by each way of running it
  trajgen bench train recipe=mage                    where the time of a training step goes, stage by stage
  trajgen bench data data=pointmaze/umaze-dwell      reading a data set, and making batches of it

  run=DIR                  decision: a trained run instead of recipe=…
  --against dt             decision: transformers' DecisionTransformerModel of the same width, layers and heads
  batch=[1,64]             decision and data: sizes that are timed
  backends=[eager,onnx]    decision: all that this machine has if not given; also cuda_graph
  repeats=200              steps or calls that are timed
  threads=2                of the CPU; as many as torch takes if not given
  out=FILE.json            the figures, with the machine and the date
  key=value                any option of 'trajgen train'

Times are in milliseconds: median, 95th percentile, and the distance between the quartiles (spread)."""


def bench(words: list[str]) -> None:
    if not words or "--help" in words or "-h" in words:
        print(HELP)
        return
    from rich.console import Console

    from trajgen.bench.request import bench

    bench(words[0], read(words[1:], "trajgen bench " + " ".join(words)), Console())


def read(words: list[str], command: str = "") -> BenchRequest:
    """The request that the words make; those that are no option of a bench are options of the recipe.

    Raises:
        ConfigError: for a value that does not fit.
    """
    from trajgen.bench.request import BenchRequest
    from trajgen.cli.words import key_values
    from trajgen.core.options import convert
    from trajgen.export.backends import Backend

    words, values = list(words), dict[str, Any](command=command)
    if "--against" in words:
        index = words.index("--against")
        values["against"] = words[index + 1] if index + 1 < len(words) else ""
        del words[index : index + 2]
    types: dict[str, Any] = {"run": str, "batch": tuple[int, ...], "backends": tuple[Backend, ...], "repeats": int}
    types |= {"threads": int, "out": str}
    options = {key: word for word in words if (key := word.partition("=")[0]) in types}
    for key, word in options.items():
        values[key] = convert(key_values([word])[key], types[key], key)
    if "out" in values:
        values["out"] = Path(values["out"])
    return BenchRequest(overrides=[word for word in words if word not in options.values()], **values)
