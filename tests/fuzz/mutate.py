"""Mutations: files and plain values spoilt by a seeded draw."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import yaml

COUNTS = (1, 1, 1, 2, 3, 4)
"""Mutations of one case: mostly one, since a file that is spoilt in many places is refused for the first of them."""
NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), 0.0,
    -0.0, 0.5, 1e-320, 1e30, 1e300, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
TEXTS = [
    "", " ", "a", "0", "-1", "1e400", "nan", "null", "true", "..", "../../x", "/etc/passwd", "a/b", "x" * 3000, "\0",
    "é\u202e", "\ud800", "${oc.env:HOME}", "os.system", "transformer", "mage", "prior.depth=3", "a=b", "=", "~prior",
    "cuda:99", "Box",
]  # fmt: skip
WORDS = [
    b"\0", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 64, b"{", b"}", b"[" * 200, b"]", b'"', b",", b":", b"\n", b"\t",
    b"- ", b"&a [*a]", b"<<: *a", b"!!python/object/apply:os.system [x]", b"${oc.env:HOME}", b"1e999", b"-", b"NaN",
    b"\\u0000", b"\xed\xa0\x80", b"\xff\xfe", b"...\n---\n", b"? ", b"| ", b"%YAML 9.9\n",
    b"9" * 5000, b"TREE", b"SNOD",
    b"HEAP", b"FRHP",
]  # fmt: skip


def spoilt_bytes(content: bytes, draw: Random) -> bytes:
    """A file's bytes after a few mutations."""
    data = bytearray(content)
    for _ in range(draw.choice(COUNTS)):
        data = _spoil(data, draw)
    return bytes(data)


def _spoil(data: bytearray, draw: Random) -> bytearray:
    offset = draw.randrange(len(data) + 1)
    length = min(len(data) - offset, draw.choice([1, 1, 2, 4, 8, 16, 100, 1000]))
    piece, rest = data[offset : offset + length], data[offset + length :]
    kind = draw.randrange(9)
    if kind == 0:  # one bit
        if length:
            data[offset] ^= 1 << draw.randrange(8)
        return data
    if kind == 1:
        return data[:offset] + bytearray(draw.randbytes(length)) + rest
    if kind == 2:
        return data[:offset] + bytearray(length) + rest
    if kind == 3:
        return data[:offset] + rest
    if kind == 4:
        return data[:offset] + piece * draw.randint(2, 5) + rest
    if kind == 5:
        return data[:offset] if draw.random() < 0.5 else data[offset:]
    if kind == 6:
        return data[:offset] + bytearray(draw.choice(WORDS)) + data[offset:]
    if kind == 7:  # in place, so that whatever follows stays where it is declared to be
        word = draw.choice(WORDS)[: max(1, len(data) - offset)]
        return data[:offset] + bytearray(word) + data[offset + len(word) :]
    other = draw.randrange(len(data) + 1)
    return data[:offset] + data[other : other + length] + rest


def spoilt_value(value: Any, draw: Random) -> Any:
    """Plain values after a few mutations: keys and entries lost, renamed, exchanged, or replaced."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice(COUNTS)):
        value = _spoil_value(value, draw)
    return value


def _spoil_value(value: Any, draw: Random) -> Any:
    places = list(_places(value))
    if not places:
        return anything(draw)
    holder, key = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(key)[: draw.randrange(len(str(key)) + 1)] + draw.choice(["", "x", "_", "é"])] = holder.pop(key)
    elif kind == 2:
        other, offset = draw.choice(places)
        holder[key], other[offset] = copy.deepcopy(other[offset]), copy.deepcopy(holder[key])
    elif kind == 3:
        holder[key] = [holder[key]] * draw.randint(1, 3)
    elif kind == 4:
        holder[key] = {draw.choice(TEXTS): holder[key]}
    elif kind == 5 and isinstance(holder[key], int | float):
        holder[key] = _near(holder[key], draw)
    elif kind == 6 and isinstance(holder, dict):
        holder[draw.choice(TEXTS)] = anything(draw)
    else:
        holder[key] = anything(draw)
    return value


def _near(number: Any, draw: Random) -> Any:
    if isinstance(number, float) and number != number:
        return 0
    return draw.choice(
        [number + 1, number - 1, -number, number * 0, number * 2, float(number) if abs(number) < 1e300 else 0]
    )


def _places(value: Any) -> Any:
    """Every dictionary or list within a value, with each key or index."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def anything(draw: Random, depth: int = 0) -> Any:
    """A value out of place."""
    kind = draw.randrange(7 if depth < 3 else 5)
    if kind < 2:
        return draw.choice(NUMBERS)
    if kind < 4:
        return draw.choice(TEXTS)
    if kind == 4:
        return draw.choice([None, True, False, [], {}])
    if kind == 5:
        return [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(TEXTS): anything(draw, depth + 1) for _ in range(draw.randrange(4))}


def spoilt_json(value: Any, draw: Random) -> bytes:
    """A JSON file: values spoilt and written well, or written well and then spoilt, or nested without end."""
    kind = draw.random()
    if kind < 0.03:
        return (b'{"a":' if draw.random() < 0.5 else b"[") * draw.choice([50, 990, 100_000])
    if kind < 0.7:
        return json.dumps(spoilt_value(value, draw)).encode()
    return spoilt_bytes(json.dumps(value, indent=2).encode(), draw)


def spoilt_lines(values: list[Any], draw: Random) -> bytes:
    """A file of JSON lines."""
    if draw.random() < 0.4:
        return spoilt_bytes("".join(json.dumps(v) + "\n" for v in values).encode(), draw)
    spoilt = spoilt_value(values, draw)
    lines = spoilt if isinstance(spoilt, list) else [spoilt]
    return "".join(json.dumps(v) + "\n" for v in lines).encode()


def spoilt_yaml(text: str, draw: Random) -> bytes:
    """A YAML file: its text spoilt, or its values, which are written anew."""
    if draw.random() < 0.5:
        return spoilt_bytes(text.encode(), draw)
    return yaml.dump(spoilt_value(yaml.safe_load(text), draw)).encode("utf-8", "surrogatepass")
