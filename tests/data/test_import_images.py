"""Images of other formats are kept as they are, and read with the preset that an import prints."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import formats
import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from trajgen.core.errors import DataError
from trajgen.core.options import structure
from trajgen.data import minari
from trajgen.data.options import DataOptions
from trajgen.importing import ImportOptions, from_arrays, from_path

ID = "mine/images-v0"
SIDE = 6


def images(number: int, rows: int) -> np.ndarray:
    """Images (rows, 6, 6, 3) of an episode."""
    return np.random.default_rng(number).integers(256, size=(rows, SIDE, SIDE, 3), dtype=np.uint8)


def loaded(preset: str) -> Any:
    """The episodes that the printed preset reads."""
    return minari.load(ID, structure(DataOptions, yaml.safe_load(preset)["data"], "data"))


def check(preset: str, rows: list[int]) -> None:
    """All images of all episodes are those that were written, as many as the episode has observations."""
    episodes = loaded(preset)
    assert (episodes.lengths + 1).tolist() == rows
    for number, (first, count) in enumerate(zip(episodes.starts, rows, strict=True)):
        np.testing.assert_array_equal(episodes.images[first : first + count], images(number, count + 2)[:count])


@pytest.mark.parametrize("final", [False, True])
def test_images_of_robomimic(tmp_path: Path, final: bool) -> None:
    path = formats.robomimic(tmp_path, final=final)
    with h5py.File(path, "r+") as file:
        for number, steps in enumerate(formats.LENGTHS):
            demo = file[f"data/demo_{number}"]
            for group, rows in {"obs": slice(0, steps), "next_obs": slice(1, steps + 1)}.items():
                if group in demo:
                    del demo[f"{group}/camera"]
                    demo.create_dataset(f"{group}/camera", data=images(number, steps + 3)[rows], compression="gzip")
                    demo[f"{group}/depth"] = np.zeros((steps, SIDE, SIDE, 1), np.float32)  # which is no image
    imported = from_path(path, ImportOptions(id=ID))
    assert imported.about == "state: a_place, object; images: camera"
    # Without next_obs the last step is dropped, but after a terminal, whose observation is repeated.
    rows = [steps + 1 for steps in formats.LENGTHS]
    if final:
        check(imported.preset, rows)
    else:
        episodes = loaded(imported.preset)
        assert episodes.lengths.tolist() == [4, 4, 5]
        np.testing.assert_array_equal(episodes.images[:5], images(0, 8)[:5])
        np.testing.assert_array_equal(episodes.images[9], episodes.images[8])
    assert loaded(imported.preset).space.state_dim == 3


def test_images_of_robomimic_can_be_left_out(tmp_path: Path) -> None:
    imported = from_path(formats.robomimic(tmp_path), ImportOptions(id=ID, images=()))
    assert "image_key" not in imported.preset and loaded(imported.preset).images is None


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def test_images_of_lerobot(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet is read by pyarrow: pip install 'trajgen[lerobot]'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    root, name = formats.lerobot(tmp_path, 2), "observation.images.top"
    for number, steps in enumerate(formats.LENGTHS):
        path = root / "data" / "chunk-000" / f"episode_{number:06d}.parquet"
        column = pa.array([{"bytes": png(image), "path": ""} for image in images(number, steps + 3)[:steps]])
        pq.write_table(pq.read_table(path).append_column(name, column), path)
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"] = {name: {"dtype": "image"}, "observation.images.side": {"dtype": "video"}}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    imported = from_path(root, ImportOptions(id=ID, final="repeat"))
    assert f"images: {name}; videos are left out: observation.images.side" in imported.about
    episodes = loaded(imported.preset)
    for number, (first, steps) in enumerate(zip(episodes.starts, formats.LENGTHS, strict=True)):
        np.testing.assert_array_equal(episodes.images[first : first + steps], images(number, steps + 3)[:steps])


def test_an_image_that_rows_repeat_for_nothing_does_not_fill_the_memory(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet is read by pyarrow: pip install 'trajgen[lerobot]'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    root, rows = formats.lerobot(tmp_path, 2), 400
    shutil.rmtree(root / "data")
    (root / "data" / "chunk-000").mkdir(parents=True)
    image = png(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8))
    files = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([image], pa.binary()))
    vectors = np.zeros((rows, 1), "f").tolist()
    table = {"observation.state": vectors, "action": vectors, "episode_index": np.zeros(rows, int)}
    table |= {"next.reward": np.zeros(rows), "top": pa.StructArray.from_arrays([files], ["bytes"])}
    pq.write_table(pa.table(table), root / "data" / "chunk-000" / "file-000.parquet", store_schema=False)
    (root / "meta" / "info.json").write_text("{}")
    with pytest.raises(DataError, match=r"field 'top' would take more than"):
        from_path(root, ImportOptions(id=ID, images=("top",)))


def recorded(dtype: Any = np.uint8) -> list[dict[str, Any]]:
    return [
        {"actions": each["actions"], "rewards": each["rewards"], "timeouts": np.array([True]),
         "observations": each["observations"],
         "pixels": images(number, len(each["actions"]) + 3)[: len(each["actions"]) + 1].astype(dtype)}
        for number, each in enumerate(formats.episodes())
    ]  # fmt: skip


@pytest.mark.parametrize("state", [None, ()])
def test_images_of_arrays_and_npz(tmp_path: Path, state: tuple[str, ...] | None) -> None:
    rows = [steps + 1 for steps in formats.LENGTHS]
    imported = from_arrays(ID, recorded(), images=["pixels"], state=state)
    check(imported.preset, rows)
    assert loaded(imported.preset).space.state_dim == (3 if state is None else 0)
    (tmp_path / "episodes").mkdir()
    for number, episode in enumerate(recorded()):
        np.savez(tmp_path / "episodes" / f"{number}.npz", **episode)
    options = ImportOptions(id=ID, images=("pixels",), state=state, force=True)
    check(from_path(tmp_path / "episodes", options).preset, rows)


def test_images_of_one_table(tmp_path: Path) -> None:
    pixels = np.concatenate([images(number, steps + 3)[:steps] for number, steps in enumerate(formats.LENGTHS)])
    path = formats.d4rl(tmp_path, final=False, pixels=pixels)
    imported = from_path(path, ImportOptions(id=ID, images=("pixels",), final="drop"))
    check(imported.preset, list(formats.LENGTHS))


def test_a_final_state_without_an_image_is_not_joined_with_another_image(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path, pixels=images(0, 15))
    episodes = loaded(from_path(path, ImportOptions(id=ID, images=("pixels",))).preset)
    assert episodes.lengths.tolist() == [4, 4, 5]  # next_observations have no images
    for values in (episodes.states, episodes.images):
        np.testing.assert_array_equal(values[9], values[8])  # after the terminal


def test_images_in_floats_are_refused() -> None:
    with pytest.raises(DataError, match=r"astype\(np\.uint8\)"):
        from_arrays(ID, recorded(np.float32), images=["pixels"])
