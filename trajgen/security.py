"""What guards against files of strangers: what may be opened, what a file may declare, how much memory it may take.

A file is measured before anything of it is read: a small file must not fill the memory, a name must not lead out of
it, and nothing in it is unpickled or called.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RATIO, SLACK = 64, 2**26
"""Bytes of memory that each byte of a file may take, and bytes beyond: packed data take a tenth of it."""
OBJECT_BYTES = 1024
"""What an object of an HDF5 file counts for: the same few may be named again and again."""
LARGEST_ELEMENT, SMALL_RESULT = 8, 2**15
"""Bytes of a number, and of a tensor so small that the operation need not be tried to know its size."""
SQUARE = ("aten::eye", "aten::diag", "aten::block_diag", "aten::linalg")
"""Operations that may return as many numbers as the square of those in their arguments."""
MAX_DEPTH = 16
MAX_EPISODES = 2**24
MAX_SHAPE = 2**24
"""Numbers in one entry of an observation."""
HDF5_CACHE = 2**20
"""Bytes of HDF5's cache of a file's objects, which takes forty times as many by default."""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
NUMBER_KINDS = "fiub"
"""Kinds of numpy types that are numbers."""


def require_regular(path: Path) -> None:
    """Raises an OSError for a FIFO, a device or a socket, also behind a link: reading one may never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{path.name} is a FIFO, a device or a socket, not a file")


def read_limited(path: Path, largest: int, errors: str = "strict") -> str:
    """The text of a regular file.

    Raises:
        OSError, ValueError: if it cannot be read, is longer than ``largest`` bytes, or is no UTF-8 and ``errors`` are
            strict.
    """
    require_regular(path)
    if path.stat().st_size > largest:
        raise ValueError(f"{path.name} is larger than {largest:,} bytes")
    return path.read_text(encoding="utf-8", errors=errors)


def memory_limit(size: int) -> int:
    """Bytes of memory that what is read of a file of ``size`` bytes may take."""
    return RATIO * size + SLACK


def memory_limits() -> Iterator[int]:
    """Bytes of memory: the machine's, those of the process's control group, and its own limits."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            yield int(Path("/sys/fs/cgroup", name).read_text())
    with contextlib.suppress(ImportError):
        import resource

        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                yield soft


def limit_memory() -> None:
    """Has the system refuse this process more memory than there is, where it would end any process for it.

    What a driver of GPUs reserves counts as memory, so that there is no limit beside one.
    """
    if any(Path(driver).exists() for driver in GPU_DRIVERS):
        return
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (min(memory_limits()), hard))


def open_hdf5(path: Path) -> Any:
    """An HDF5 file for reading, an ``h5py.File``, with little memory beside what is read."""
    import h5py

    require_regular(path)
    file = h5py.File(path, "r")
    cache = file.id.get_mdc_config()
    cache.set_initial_size, cache.initial_size = True, HDF5_CACHE
    cache.min_size = cache.max_size = HDF5_CACHE
    file.id.set_mdc_config(cache)
    return file


def check_hdf5(path: Path) -> None:
    """Raises a ValueError if an HDF5 file leads out of itself, is too deep, or names more objects than it can hold."""
    from h5py import h5g, h5l, h5o

    most = memory_limit(path.stat().st_size) // OBJECT_BYTES

    def count(group: Any, depth: int, objects: int) -> int:
        for number in range(group.get_num_objs()):
            name = group.get_objname_by_idx(number)
            if group.links.get_info(name).type != h5l.TYPE_HARD or depth > MAX_DEPTH:
                raise ValueError(f"{name.decode(errors='replace')[:80]!r} leads elsewhere")
            item = h5o.open(group, name)
            objects = count(item, depth + 1, objects + 1) if isinstance(item, h5g.GroupID) else objects + 1
            if objects > most:
                raise ValueError(f"it names more than {most:,} objects, which would fill the memory")
        return objects

    with open_hdf5(path) as file:
        count(file.id, 0, 0)  # h5py's own objects would take four times as long


def hdf5_array(group: Any, name: str) -> Any:
    """A low-level array of numbers of a low-level group, whose size fits its file; not read yet.

    Raises:
        KeyError, TypeError, ValueError: if there is none, it holds no numbers, is too large, or lies in another file.
    """
    from h5py import h5d, h5i

    array = h5d.open(group, name.encode())
    stored = array.get_create_plist()
    if stored.get_layout() == h5d.VIRTUAL or stored.get_external_count():
        raise ValueError(f"{name!r} is kept in another file")
    if array.dtype.kind not in NUMBER_KINDS:
        raise TypeError(f"{name!r} holds {array.dtype}, not numbers")
    size, limit = (
        math.prod(array.shape or ()) * array.dtype.itemsize,
        memory_limit(h5i.get_file_id(array).get_filesize()),
    )
    if size > limit:
        raise ValueError(f"{name!r} would take more than {limit:,} bytes of memory")
    return array


def npz_arrays(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype[Any]]], dict[str, str]]:
    """Shapes and types of the arrays of numbers in an ``.npz`` file, and what all else is, by name, which is not read.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: if it is no such file, is damaged, or
            declares more than it holds.
    """
    arrays, others = {}, {}
    require_regular(path)
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                others[name] = "no array"
                continue
            with file.open(info) as member:
                shape, dtype = _npy_header(member)
                length = member.tell()
            if dtype.kind not in NUMBER_KINDS:
                others[name] = str(dtype)
                continue
            size = math.prod(shape) * dtype.itemsize
            if size + length != info.file_size or info.file_size > memory_limit(info.compress_size):
                raise ValueError(f"{name[:80]!r} declares {size:,} bytes and has {info.compress_size:,}")
            arrays[name] = shape, dtype
    return arrays, others


def _npy_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    import numpy as np

    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(member)
    except Exception as error:  # it is parsed as Python, which may raise anything
        raise ValueError("the header of an array cannot be read") from error
    return shape, dtype


def check_parquet(path: Path, file: Any) -> None:
    """Raises a ValueError if a ``pyarrow.parquet.ParquetFile`` declares more numbers or bytes than it can hold."""
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    values = sum(group.column(n).num_values for group in groups for n in range(group.num_columns))
    size, limit = sum(group.total_byte_size for group in groups), memory_limit(path.stat().st_size)
    if max(8 * values, 8 * file.metadata.num_rows, size) > limit:
        raise ValueError(f"{path.name} declares {values:,} numbers, {size:,} bytes, in {path.stat().st_size:,} bytes")


def check_minari_metadata(content: Mapping[str, Any]) -> None:
    """Raises a ValueError, TypeError, KeyError or RecursionError for metadata that Minari never wrote."""
    for key, largest in (("total_episodes", MAX_EPISODES), ("total_steps", 2**53)):
        if type(content[key]) is not int or not 0 <= content[key] <= largest:
            raise ValueError(f"{key} is {str(content[key])[:80]}")
    for key in ("dataset_id", "env_spec", "eval_env_spec", "minari_version"):
        if not isinstance(content.get(key), str | None):
            raise TypeError(f"{key} is {str(content[key])[:80]}")
    for key in ("observation_space", "action_space"):
        _check_space(json.loads(content[key]) if key in content else None)
    for key in ("env_spec", "eval_env_spec"):
        json.loads(content.get(key) or "null")


def _check_space(space: Any) -> None:
    if isinstance(space, Mapping):
        shape = space.get("shape", space.get("n", 0) if space.get("type") == "MultiBinary" else 0)
        if math.prod(shape if isinstance(shape, list) else [shape]) > MAX_SHAPE:
            raise ValueError(f"a space of shape {str(shape)[:80]}")
    for each in space.values() if isinstance(space, Mapping) else space if isinstance(space, list) else ():
        if isinstance(each, Mapping | list):
            _check_space(each)


@contextmanager
def allocating_at_most(size: int, count: int) -> Iterator[None]:
    """Raises a ValueError within it before torch allocates more than ``size`` bytes, or after ``count`` operations.

    For building a model whose sizes a stranger chose: each operation is tried on the meta device first, if what it
    returns may be large by its arguments.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_only

    def meta(value: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(value, device="meta")

    def result_bytes(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
        """Bytes of what an operation will return, or more; 0 where that depends on values, which are small then."""
        values = tree_leaves((args, kwargs))
        tensors = [value for value in values if torch.is_tensor(value)]
        element = (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
        if func._schema.arguments[0].name == "size":
            return element * math.prod(args[0])
        if torch.Tag.pointwise in func.tags:
            shapes = (reversed(tensor.shape) for tensor in tensors)
            element = max(element, *(tensor.element_size() for tensor in tensors))
            return element * math.prod(map(max, zip_longest(*shapes, fillvalue=1)))
        bound: float = LARGEST_ELEMENT * math.prod(max(1, tensor.numel()) for tensor in tensors)
        for number in (value for value in values if isinstance(value, int | float) and value):
            bound *= max(abs(number), 1 / abs(number))
        if func._schema.name.startswith(SQUARE):
            bound *= bound
        if bound <= SMALL_RESULT:
            return int(bound)
        kwargs = {**kwargs, "device": torch.device("meta")} if "device" in kwargs else kwargs
        try:
            result = func(*tree_map_only(torch.Tensor, meta, args), **tree_map_only(torch.Tensor, meta, kwargs))
        except RuntimeError:  # meta tensors have no values to look at
            return 0
        return sum(value.numel() * value.element_size() for value in tree_leaves(result) if torch.is_tensor(value))

    class Counter:
        bytes_left, operations_left = size, count

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            self.operations_left -= 1
            if not func.is_view and not func._schema.is_mutable:
                self.bytes_left -= result_bytes(func, args, kwargs)
            if self.bytes_left < 0 or self.operations_left < 0:
                raise ValueError("the model is far larger than its weights")
            return func(*args, **kwargs)

    class Limit(Counter, TorchDispatchMode):
        """The method is inherited, as torch imports its compiler, for seconds, for one that the class itself has."""

    with Limit():
        yield


def check_entries(folder: Path) -> None:
    """Raises a ValueError for what is no file or folder within a folder.

    A link out of it might be written to, a link to itself leads nowhere, and reading a FIFO or a device may never end.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            try:
                if path.is_symlink() and not path.resolve().is_relative_to(inside):
                    raise ValueError(f"{path} is a link out of the folder, to {path.resolve()}")
                if path.exists():
                    require_regular(path)
            except (OSError, RuntimeError) as error:
                raise ValueError(f"{path}: {error}") from error


def check_numbers(values: Any, largest: int, kinds: Any = (int, float), where: str = "") -> None:
    """Raises a ValueError for a number among plain values that is not finite or exceeds ``largest``.

    Args:
        values: numbers, lists and dictionaries of them; all else is skipped.
        largest: absolute value.
        kinds: types of the numbers that are checked.
        where: name of the values, for the message.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            check_numbers(value, largest, kinds, f"{where}.{key}" if where else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            check_numbers(value, largest, kinds, where)
    elif isinstance(values, kinds) and not abs(values) <= largest:  # neither is one that is no number
        raise ValueError(f"{where} is out of range: at most {largest:,}")
