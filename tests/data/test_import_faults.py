"""Faults of imported data: each is named, with its episode and field, before anything is written."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import formats
import h5py
import numpy as np
import pytest

from trajgen.core.errors import ConfigError, DataError, TrajgenError
from trajgen.importing import ImportOptions, detect, from_arrays, from_path

ID = "mine/points-v0"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """At the end of each test there is no data set, and nothing of one."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    yield tmp_path / "sets"
    assert list((tmp_path / "sets").rglob("*.hdf5")) == []


def check_refused(path: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(TrajgenError) as caught:
        from_path(path, ImportOptions(id=ID, **options))
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


def changed(name: str, row: int, value: float) -> np.ndarray:
    values = np.array(formats.table(final=True)[name], dtype=float)
    values[row] = value
    return values


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"observations": changed("observations", 7, np.nan)}, ["episode 1 (rows 5 to 8)", "'observations'", "row 2"]),
        ({"actions": changed("actions", 14, np.inf)}, ["episode 2 (rows 9 to 14)", "'actions'", "row 5"]),
        ({"rewards": changed("rewards", 0, 1e300)}, ["episode 0", "'rewards'", "row 0"]),
        ({"rewards": np.zeros(14)}, ["15 rows", "'rewards'", "(14,)"]),
        ({"rewards": np.zeros((15, 2))}, ["episode 0", "'rewards'", "shape (5, 2)"]),
        ({"observations": np.zeros((15, 2, 2)), "final": False}, ["'observations'", "(5, 2, 2)"]),
        ({"observations": np.zeros((15, 2))}, ["(15, 2)", "(15, 3)"]),
        ({"observations": np.full((15, 3), b"a")}, ["'observations' holds |S1"]),
        ({"timeouts": changed("timeouts", 3, np.nan)}, ["'timeouts'", "row 3"]),
        ({"actions": None}, ["no 'actions'", "observations, "]),
        ({"rewards": None}, ["rewards=last", "rewards=zero", "episode 0"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_fault_of_a_table_is_named(changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    check_refused(formats.d4rl(tmp_path, **changes), *parts)


def test_options_that_do_not_fit_the_source(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path)
    check_refused(path, "no 'infos/gaol'", "infos/goal", goal="infos/gaol")
    check_refused(path, "from 0 to 2", goal="infos/goal", achieved=(0, 3))
    check_refused(path, "numbers from 0 to 2", skip=(3,))
    check_refused(path, "not all of them", skip=(0, 1, 2))
    check_refused(formats.robomimic(tmp_path), "obs/camera'", "shape (5, 4, 4, 3)", state=("a_place", "camera"))
    with pytest.raises(ConfigError, match="leave episode_steps out"):
        from_path(formats.robomimic(tmp_path), ImportOptions(id=ID, episode_steps=5))


def test_all_episodes_that_are_wrong_are_named(tmp_path: Path) -> None:
    states = changed("observations", 1, np.nan)
    states[12] = np.inf
    path = formats.d4rl(tmp_path, observations=states)
    check_refused(path, "episode 0", "row 1", "1 more are wrong: episodes 2", "skip=[0,2]")
    check_refused(path, "episode 2", skip=(0,))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"actions": np.zeros((3, 2)), "terminals": None}, ["episode 1 (001.npz)", "(4,)", "'actions': shape (3, 2)"]),
        ({"terminals": np.zeros(3)}, ["001.npz", "'terminals': 3 marks", "each of 4 steps"]),
        ({"terminals": np.array([0, 1, 0, 1])}, ["001.npz", "'terminals'", "set at [1, 3]"]),
        ({"actions": np.full((4, 1), 0.5)}, ["episode 1 (001.npz)", "'actions'", "(4, 1)", "(4, 2)"]),
        ({"rewards": np.zeros(3)}, ["episode 1", "'rewards'", "(3,)", "4 rewards", "skip=[1]"]),
        ({"actions": None}, ["no 'actions'", "001.npz"]),
        ({"actions": np.array([None] * 4)}, ["001.npz", "'actions' holds object, not numbers"]),
        ({"observations": np.full((5, 3), "x")}, ["001.npz", "'observations' holds <U1"]),
        (
            {"observations": np.zeros((1, 3)), "actions": np.zeros((0, 2)), "rewards": np.zeros(0), "terminals": None},
            ["at least one step"],
        ),
    ],
)
def test_a_fault_of_one_file_is_named(changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    check_refused(formats.npz_folder(tmp_path, **changes), *parts)


def edit(path: Path, change: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(file: h5py.File, name: str, values: Any = None) -> None:
    del file[name]
    if values is not None:
        file[name] = values


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda file: replace(file, "data/demo_1/obs/object"), ["no 'obs/object'", "demo_1", "obs/a_place"]),
        (lambda file: replace(file, "data/demo_1/obs"), ["demo_1", "dataset_states_to_obs"]),
        (lambda file: replace(file, "data/demo_1/obs/object", np.zeros(3)), ["demo_1", "'obs/object'", "(3, 1)"]),
        (lambda file: file["data/demo_1"].attrs.update(num_samples=9), ["9 steps", "demo_1", "num_samples"]),
    ],
)
def test_a_fault_of_a_demonstration_is_named(change: Any, parts: list[str], tmp_path: Path) -> None:
    check_refused(edit(formats.robomimic(tmp_path), change), *parts)


class TestLeRobot:
    @pytest.fixture(autouse=True)
    def _pyarrow(self) -> None:
        pytest.importorskip("pyarrow", reason="parquet is read by pyarrow: pip install 'trajgen[lerobot]'")

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"action": [[0.0, 1.0], [0.0], [0.0, 1.0], [0.0, 1.0]]}, ["'action', row 1: 1", "episode_000001"]),
            ({"action": [[0.0, 1.0], None, [0.0, 1.0], [0.0, 1.0]]}, ["'action'", "with gaps"]),
            ({"action": [["a", "b"]] * 4}, ["'action'", "string"]),
            ({"next.reward": [0.0, float("nan"), 0.0, 0.0]}, ["episode 1", "'next.reward'", "row 1"]),
            ({"next.reward": [[0.0, 1.0]] * 4}, ["episode 1", "'next.reward'", "shape (4, 2)"]),
            ({"next.done": [False, True, False, True]}, ["episode_index 1", "'next.done'", "set in row 1"]),
            ({"frame_index": [0, 1, 3, 2]}, ["episode_index 1", "row 2: frame_index 3"]),
            ({"observation.state": None}, ["no 'observation.state'", "episode_000001.parquet"]),
            ({"episode_index": [0, 0, 0, 0]}, ["episode_index 0 again"]),
        ],
    )
    def test_a_fault_of_a_column_is_named(self, changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
        check_refused(formats.lerobot(tmp_path, 2, **changes), *parts)

    def test_a_missing_file_is_noticed(self, tmp_path: Path) -> None:
        path = formats.lerobot(tmp_path, 2)
        (path / "data" / "chunk-000" / "episode_000001.parquet").unlink()
        check_refused(path, "total_episodes: 3", "there are 2 in")

    @pytest.mark.parametrize(
        "content", [b"", b"version https://git-lfs", b"PAR1" + bytes(99) + b"\xff\xff\xff\x7fPAR1"]
    )
    def test_a_file_that_is_no_parquet_is_named(self, content: bytes, tmp_path: Path) -> None:
        path = formats.lerobot(tmp_path, 3)
        (path / "data" / "chunk-000" / "file-001.parquet").write_bytes(content)
        check_refused(path, "must be readable", "file-001.parquet")

    def test_a_small_file_of_many_rows_is_refused(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = formats.lerobot(tmp_path, 3)
        many = pa.table({"episode_index": pa.array(np.full(30_000_000, 7))})
        pq.write_table(many, path / "data" / "chunk-000" / "file-001.parquet")
        check_refused(path, "declares 30,000,000 numbers")

    @pytest.mark.parametrize("info", ["[1]", "{", "null", '{"total_episodes": "many"}'])
    def test_a_damaged_description_is_refused(self, info: str, tmp_path: Path) -> None:
        path = formats.lerobot(tmp_path, 2)
        (path / "meta" / "info.json").write_text(info)
        check_refused(path)

    def test_without_pyarrow_the_error_says_how_to_install_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = formats.lerobot(tmp_path, 2)
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(ConfigError, match=r"trajgen\[lerobot\]"):
            from_path(path, ImportOptions(id=ID))


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals", "next_observations"])
@pytest.mark.parametrize("value", [3, "text", [], [[1], [1, 2]], {"a": 1}, np.zeros((2, 2, 2, 2))], ids=str)
def test_a_value_that_is_no_array_is_refused_with_its_episode(name: str, value: Any) -> None:
    episode = {"observations": np.zeros((3, 1)), "actions": np.full((3, 1), 0.5), "rewards": np.zeros(3)}
    with pytest.raises(DataError, match="episode 1"):
        from_arrays(ID, [episode, episode | {name: value}])


# --- files of strangers ---------------------------------------------------------------------------------------------


class Trap:
    """An object that fails the test when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "trap.npz"
    np.savez(path, observations=np.array([Trap()]), actions=np.zeros((1, 1)), terminals=np.ones(1))
    check_refused(path, "'observations' holds object")
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / "0.npz")
    check_refused(folder, "0.npz", "'observations' holds object")


def npy(shape: str, content: bytes = b"", kind: str = "<f4") -> bytes:
    """The bytes of an array that declares this shape."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "member",
    [npy("(1000000000000, 3)"), npy("(2, 3)", bytes(20)), npy("(-1,)"), npy("(2, 'x')"), npy("(" * 5000 + "1,"),
     npy("(2,)", bytes(16), kind="|O"), b"\x93NUMPY\x09\x00", b"nothing", b""],
    ids=range(9),
)  # fmt: skip
def test_arrays_that_declare_what_they_do_not_hold_are_refused(member: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("observations.npy", member)
    check_refused(path, "must be readable", "hostile.npz")


def test_a_small_archive_of_endless_zeros_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zeros.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("observations.npy", "w") as member:
        member.write(npy("(100, 1048576)", kind="|u1"))
        for _ in range(100):
            member.write(bytes(2**20))
    check_refused(path, "declares 104,857,600 bytes")


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    path = formats.ogbench(tmp_path)
    content = path.read_bytes()
    for broken in (content[:-30], content[: len(content) // 2], content[:100] + bytes(50) + content[150:], b"PK"):
        path.write_bytes(broken)
        check_refused(path, "must be readable", rewards="zero")
    with zipfile.ZipFile(io.BytesIO(content)) as original, zipfile.ZipFile(path, "w") as file:
        file.writestr("../observations.npy", original.read("observations.npy"))
    check_refused(path, "no 'observations'")


def declare_much(file: h5py.File) -> None:
    for name in [*file]:
        del file[name]
    for name in ("observations", "actions", "rewards", "terminals"):
        file.create_dataset(name, (10**12, 3), "f4", chunks=(1024, 3), compression="gzip")


def map_outside(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((15, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (15, 3))
    file.create_virtual_dataset("observations", layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(observations=h5py.ExternalLink("/etc/other.h5", "/x")), "leads elsewhere"),
        (
            lambda file: file.create_dataset("observations", (15, 3), "f4", external=[("/etc/hostname", 0, 180)]),
            "kept in another file",
        ),
        (map_outside, "kept in another file"),
        (declare_much, "bytes of memory"),
        (lambda file: file.create_dataset("observations", (15, 3), h5py.ref_dtype), "not numbers"),
        (lambda file: file.create_dataset("observations", (15,), h5py.vlen_dtype(np.float32)), "not numbers"),
    ],
)
@pytest.mark.parametrize("form", ["auto", "d4rl"])
def test_hdf5_that_leads_out_of_itself_or_declares_too_much_is_refused(
    change: Any, message: str, form: str, tmp_path: Path
) -> None:
    path = edit(formats.d4rl(tmp_path, observations=None, final=False), change)
    check_refused(path, message, format=form)


def test_hdf5_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    for make in (formats.d4rl, formats.robomimic):
        path = make(tmp_path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        check_refused(path, "must be readable")


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = formats.npz_folder(tmp_path)
    os.mkfifo(tmp_path / "pipe.hdf5")
    (tmp_path / "endless.npz").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.hdf5", tmp_path / "endless.npz"):
        for form in ("auto", "d4rl", "npz"):
            check_refused(path, "must be there", format=form)
    (folder / "000.npz").unlink()
    os.mkfifo(folder / "000.npz")
    check_refused(folder, "000.npz is a FIFO")


def test_an_unknown_format_names_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.csv").write_text("a,b")
    odd = formats.write_hdf5(tmp_path / "odd.hdf5", {"x": np.zeros(3)})
    for path in (tmp_path / "empty", tmp_path / "text.csv", odd):
        with pytest.raises(DataError) as caught:
            detect(path)
        assert all(part in str(caught.value.expected) for part in ("data/demo_0", "meta/info.json", ".npz", "root"))
    check_refused(tmp_path / "absent", "must be there", format="npz")
    check_refused(tmp_path / "text.csv", "must be readable", format="robomimic")
    check_refused(odd, "no 'observations'", format="d4rl")
    check_refused(odd, "must be readable", format="robomimic")
    check_refused(formats.npz_folder(tmp_path), "must be readable", format="lerobot")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, observations=np.zeros((4, 2)), actions=np.zeros((4, 1)))
    content = path.read_bytes()
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = content.split(signature)
        marked = [part[: flags - 4] + bytes([part[flags - 4] | 1]) + part[flags - 3 :] for part in parts[1:]]
        content = signature.join([parts[0], *marked])
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        from_path(path, ImportOptions(id="lab/encrypted-v0", rewards="zero"))
