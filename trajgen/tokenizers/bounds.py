"""What the options of tokenizers may be, in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trajgen.core.errors import ConfigError

LARGEST_VOCABULARY = 2**16
"""More codes than this are refused where they follow from other options: a prior has an output for each."""

BOUNDS: dict[str, tuple[float, float, float]] = {
    "latent_length": (1, math.inf, 8),
    "code_dim": (1, math.inf, 8),
    "codebook_size": (2, math.inf, 128),
    "width": (1, math.inf, 64),
    "depth": (1, math.inf, 1),
    "commitment": (0, math.inf, 0.25),
    "decay": (0, 1, 0.9),
    "dead_code_threshold": (0, math.inf, 1),
    "entropy": (0, math.inf, 0.1),
    "diversity": (0, math.inf, 1),
    "convolutions": (0, math.inf, 1),
    "smoothing": (0, 1, 0.5),
    "num_bins": (2, LARGEST_VOCABULARY, 100),
    "bin_limit": (1e-3, 1e6, 3),
}
"""For each option, the lowest and the highest value, and a usual one."""

FEWEST_LEVELS = 3
"""Of a finite scalar quantizer: with two, the bound of arXiv 2309.15505 is all but flat around zero."""


def check_options(**options: float) -> None:
    """Refuses an option out of its bounds.

    Raises:
        ConfigError: for the first one that is; or a width that the encoder cannot normalize in groups.
    """
    for name, value in options.items():
        lowest, highest, usual = BOUNDS[name]
        if not lowest <= value <= highest:
            upper = f"at most {highest:g}" if highest < math.inf else "without an upper bound"
            raise ConfigError(
                f"Option '{name}' of a tokenizer is at least {lowest:g}, {upper}.",
                expected=f"for example tokenizer.{name}={usual:g}",
                got=f"tokenizer.{name}={value}",
                fix=f"tokenizer.{name}={usual:g}",
            )
    width = int(options.get("width", 8))
    if width > 8 and width % 8:
        raise ConfigError(
            "The encoder normalizes its channels in eight groups.",
            expected="a multiple of 8, or less than 8",
            got=f"tokenizer.width={width}",
            fix=f"tokenizer.width={8 * round(width / 8)}",
        )


def halvings(horizon: int, latent_length: int) -> int:
    """How often T is halved to make N.

    Raises:
        ConfigError: if T is not N times a power of two.
    """
    lengths = [horizon >> i for i in range(12) if (horizon >> i) << i == horizon and horizon >> i]
    if latent_length not in lengths:
        raise ConfigError(
            "The horizon is the latent length times a power of two.",
            expected=f"tokenizer.latent_length one of {lengths}",
            got=f"data.horizon={horizon}, tokenizer.latent_length={latent_length}",
            fix=f"tokenizer.latent_length={lengths[min(2, len(lengths) - 1)]} "
            f"or data.horizon={max(latent_length, 1) * 4}",
        )
    return lengths.index(latent_length)


def check_levels(levels: Sequence[int]) -> int:
    """The vocabulary of a finite scalar quantizer with these levels.

    Raises:
        ConfigError: if there are none, one is too small, or their product is too large.
    """
    if not levels or min(levels) < FEWEST_LEVELS or math.prod(levels) > LARGEST_VOCABULARY:
        raise ConfigError(
            "The levels of a finite scalar quantizer are its codes per channel; their product is the vocabulary.",
            expected=f"at least one channel, each of {FEWEST_LEVELS} or more, with a product of at most "
            f"{LARGEST_VOCABULARY}",
            got=f"tokenizer.levels={list(levels)}, a product of {math.prod(levels)}",
            fix="tokenizer.levels=[8,6,5]",
        )
    return math.prod(levels)


def check_bits(code_dim: int) -> int:
    """The vocabulary 2^C of a lookup-free quantizer.

    Raises:
        ConfigError: if it is too large.
    """
    most = LARGEST_VOCABULARY.bit_length() - 1
    if code_dim > most:
        raise ConfigError(
            "The codes of a lookup-free quantizer are all the signs that C channels can have: 2^C codes.",
            expected=f"at most {most} channels",
            got=f"tokenizer.code_dim={code_dim}, 2^{code_dim} codes",
            fix="tokenizer.code_dim=8",
        )
    return 2**code_dim
