"""Hugging Face data sets saved to disk: the files that ``datasets`` 5.2 writes, made here with pyarrow."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from collafuse.config import DataSettings
from collafuse.core.errors import DataError, RuntimeMissingError
from collafuse.data.datasets import load
from collafuse.data.imageset import ImageSet
from tests.damage import bit_flips, truncations
from tests.data.hearing import Heard
from tests.data.whole_path import run_through

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: tables)")
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["3", "cat"], "_type": "ClassLabel"},
    "smiling": {"dtype": "bool", "_type": "Value"},
    "patient": {"dtype": "string", "_type": "Value"},
    "age": {"dtype": "int64", "_type": "Value"},
    "tags": {"feature": {"names": ["hat", "tie", "bag"], "_type": "ClassLabel"}, "_type": "List"},
}


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


def columns(count: int, first: int = 0) -> dict[str, list[Any]]:
    rows = range(first, first + count)
    return {
        "image": [{"bytes": png(row), "path": None} for row in rows],
        "label": [row % 2 for row in rows],
        "smiling": [row % 3 == 0 for row in rows],
        "patient": [f"p{row // 2}" for row in rows],
        "age": list(rows),
        "tags": [[tag for tag in range(3) if row >> tag & 1] for row in rows],
    }


def save(folder: Path, values: dict[str, list[Any]], features: dict[str, Any] | None = None, shards: int = 2) -> Path:
    """As ``Dataset.save_to_disk(folder, num_shards=shards)`` does."""
    folder.mkdir(parents=True)
    whole = pa.table(values)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    share = -(-whole.num_rows // shards)
    for i, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as stream:
            stream.write_table(whole.slice(i * share, share))
    about = {"citation": "", "description": "", "features": features or FEATURES, "homepage": "", "license": ""}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def read(root: Path, heard: Heard | None = None, **changes: Any) -> ImageSet:
    values = {"dataset": "huggingface", "path": root, "image_size": 4, "channels": 1} | changes
    return load(DataSettings(**values), listener=heard or Heard())


def test_images_classes_lists_of_classes_and_yes_and_no_are_read_over_all_files(tmp_path):
    found = read(save(tmp_path / "set", columns(8)))
    assert found.pixels[:, 0, 0, 0].tolist() == list(range(8))
    assert found.label_names == ("3", "cat", "smiling", "hat", "tie", "bag")
    expected = [[1 - row % 2, row % 2, int(row % 3 == 0), row & 1, row >> 1 & 1, row >> 2 & 1] for row in range(8)]
    assert found.labels.tolist() == expected and found.sources[3] == "set 3"


def test_columns_and_groups_are_those_asked_for(tmp_path):
    values = columns(4) | {"kind": ["x", "y", "x", "y"]}
    features = FEATURES | {"kind": {"dtype": "string", "_type": "Value"}}
    found = read(save(tmp_path / "set", values, features), hub={"columns": ["kind", "label"], "group": "patient"})
    assert found.label_names == ("x", "y", "3", "cat") and found.groups.tolist() == ["p0", "p0", "p1", "p1"]


def test_captions_come_from_a_column_and_of_several_the_first_counts(tmp_path):
    values = columns(4) | {"said": [["a  cat", "one"], [], None, ["a dog"]], "none": [""] * 4}
    features = FEATURES | {"said": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}}
    folder = save(tmp_path / "set", values, features | {"none": {"dtype": "string", "_type": "Value"}})
    text = {"encoder": "t5", "captions": "column", "column": "said"}
    assert read(folder, text=text).captions.tolist() == ["a cat", "", "", "a dog"]
    with pytest.raises(DataError, match="column 'none' of .* is empty in every row, so nothing would be learned"):
        read(folder, text=text | {"column": "none"})


def test_of_a_set_with_splits_the_official_one_holds_out_what_is_not_for_training(tmp_path):
    save(tmp_path / "train", columns(6))
    save(tmp_path / "test", columns(3, first=50), shards=1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read(tmp_path).pixels[:, 0, 0, 0].tolist() == list(range(6))
    found = read(tmp_path, official_split=True)
    assert found.pixels[:, 0, 0, 0].tolist() == [*range(6), 50, 51, 52]
    assert found.test_part.tolist() == [False] * 6 + [True] * 3


@pytest.mark.parametrize("bad", [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "secret.png"}, None])
def test_an_image_that_is_not_inside_or_cannot_be_read_is_left_out_and_named(tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (6, 4), 99).save(tmp_path / "secret.png")  # a path inside the data leads nowhere
    values = columns(5)
    values["image"][3] = bad
    heard = Heard()
    found = read(save(tmp_path / "set", values), heard)
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 4] and found.labels[-1].tolist() == [1, 0, 0, 0, 0, 1]
    assert len(found.problems) == 1 and "set row 3" in found.problems[0] and found.problems[0] in heard.said[0]


def damage(folder: Path, kind: str) -> None:
    if kind == "no folder":
        (folder / "dataset_info.json").unlink()
    elif kind == "a cut file":
        path = folder / "data-00001-of-00002.arrow"
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "a gone file":
        (folder / "data-00000-of-00002.arrow").unlink()
    elif kind == "no features":
        (folder / "dataset_info.json").write_text("{}")
    elif kind == "no JSON":
        (folder / "state.json").write_text("words")
    elif kind == "a file elsewhere":
        (folder / "state.json").write_text('{"_data_files": [{"filename": "../set/data-00000-of-00002.arrow"}]}')


@pytest.mark.parametrize(
    "kind", ["no folder", "a cut file", "a gone file", "no features", "no JSON", "a file elsewhere"]
)
def test_a_damaged_set_is_refused_by_name(tmp_path, kind):
    damage(save(tmp_path / "set", columns(4)), kind)
    with pytest.raises(DataError, match=r"/set (holds no saved data set|is no saved data set that can be read)"):
        read(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"label": [0, 1, 2, 0]}, {}, "row 2 of column 'label' holds 2, which is none of its classes"),
        ({"label": [0, 1, None, 0]}, {}, "row 2 of column 'label' holds None"),
        ({}, {"columns": ["lable"]}, "column 'lable' is not known.*Did you mean 'label'"),
        ({}, {"group": "patent"}, "Did you mean 'patient'"),
        ({}, {"columns": ["age"]}, "column 'age' holds '2', which is neither yes or no nor a word"),
        ({}, {"image": "picture"}, "column 'picture' is not known; known are image"),
    ],
)
def test_columns_that_cannot_be_taken_at_their_word_are_refused(tmp_path, change, settings, message):
    with pytest.raises(DataError, match=message):
        read(save(tmp_path / "set", columns(4) | change), hub=settings)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    save(tmp_path / "set", columns(4))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeMissingError, match=r"collafuse\[tables\]"):
        read(tmp_path / "set")


def test_a_saved_set_trains_releases_delivers_and_finishes(tmp_path):
    root = save(tmp_path / "set", columns(20))
    run_through({"dataset": "huggingface", "path": str(root)}, ("cat", "smiling", "hat"), tmp_path)


def test_a_damaged_arrow_file_is_read_or_refused_and_raises_nothing_else(tmp_path):
    path = save(tmp_path / "set", columns(6), shards=1) / "data-00000-of-00001.arrow"
    data, refused = path.read_bytes(), 0
    for damaged in [*truncations(data, 20), *bit_flips(data, 80)]:
        path.unlink()  # the old one may still be mapped
        path.write_bytes(damaged)
        try:
            read(tmp_path / "set")
        except DataError as error:
            assert "set" in str(error)
            refused += 1
    assert refused >= 20
