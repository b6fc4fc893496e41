"""Tables of what images show: yes and no, words, groups, and everything that cannot be taken for one of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collafuse.config import DataSettings
from collafuse.config.data import TableSettings
from collafuse.core.errors import DataError, RuntimeMissingError
from collafuse.data.datasets import load
from collafuse.data.imageset import ImageSet
from collafuse.data.table import Table, read_table
from tests.data.hearing import Heard


def table(folder: Path, text: str, name: str = "t.csv", **settings: Any) -> Table:
    (folder / name).write_text(text, encoding="utf-8")
    return read_table(folder / name, TableSettings(path=Path(name), **settings))


def columns(found: Table) -> dict[str, list[int]]:
    return {name: found.labels[:, i].tolist() for i, name in enumerate(found.label_names)}


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1", "-1"), ("True", "false"), ("yes", "No"), ("1.0", "0.0")])
def test_a_column_of_yes_and_no_is_one_label(tmp_path, yes, no):
    found = table(tmp_path, f"file,Smiling\na.png,{yes}\nb.png,{no}\n")
    assert found.files == ("a.png", "b.png") and columns(found) == {"Smiling": [1, 0]}


def test_a_column_of_words_is_a_label_per_word(tmp_path):
    found = table(tmp_path, "file,kind,old\na,naevus,1\nb,melanoma,0\nc,naevus,1\n")
    assert columns(found) == {"melanoma": [0, 1, 0], "naevus": [1, 0, 1], "old": [1, 0, 1]}


def test_columns_are_chosen_and_ordered_by_name_and_a_group_is_no_label(tmp_path):
    text = "patient,image,B,A,age\np1,a,1,0,71\np2,b,0,1,34\n"
    found = table(tmp_path, text, file="image", columns=["A", "B"], group="patient")
    assert columns(found) == {"A": [0, 1], "B": [1, 0]} and found.groups.tolist() == ["p1", "p2"]


def test_tabs_and_a_byte_order_mark_are_read(tmp_path):
    found = table(tmp_path, "\ufefffile\tA\na b.png\t1\n\n", "t.tsv")
    assert found.files == ("a b.png",) and columns(found) == {"A": [1]}


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "holds no rows"),
        ("file,A\n", {}, "holds no rows"),
        ("file,A\na,1\na,0\n", {}, "'a' stands in column 'file' twice"),
        ("file,A,A\na,1,0\n", {}, "two columns named 'A'"),
        ("file,A\na,1,0\n", {}, "row 1 has 3 cells, its first line names 2"),
        ("file,A\na,1\nb,\n", {}, "column 'A' is empty in row 2"),
        ("file,A\na,1\nb,0\nc,-1\n", {}, "column 'A' holds both -1 and 0"),
        ("file,age\na,71\n", {}, "column 'age' holds '71', which is neither yes or no nor a word"),
        ("file,A\na,1\n", {"columns": ["B"]}, "column 'B' is not known; known are file, A"),
        ("file,A\na,1\n", {"file": "image"}, "column 'image' is not known"),
        ("file,Smiling\na,1\n", {"columns": ["Smilng"]}, "Did you mean 'Smiling'"),
        ("file,A,p\na,1,\n", {"group": "p"}, "column 'p' is empty in row 1, so nobody knows"),
        ("file,A,B\na,x,y\nb,y,z\n", {}, "two columns both make a label 'y'"),
        ("file,A\na,\u202e\n", {}, "cannot be the name of a label"),
        ('file,A\n"a,1\n', {}, "cannot be read as a table"),
        ("file,A\n" + "".join(f"{i},word{i}\n" for i in range(101)), {}, "holds 101 different words"),
    ],
)
def test_a_table_that_cannot_be_taken_at_its_word_is_refused(tmp_path, text, settings, message):
    with pytest.raises(DataError, match=message):
        table(tmp_path, text, **settings)


def test_many_words_are_taken_where_they_are_asked_for(tmp_path):
    text = "file,A\n" + "".join(f"{i},word{i}\n" for i in range(101))
    assert len(table(tmp_path, text, columns=["A"]).label_names) == 101


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"file,A\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="save it as CSV in UTF-8"):
        read_table(tmp_path / "t.csv", TableSettings(path=Path("t.csv")))


def test_parquet_says_the_same_as_csv(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    values = {"file": ["a", "b"], "A": [1, 0], "B": [True, False], "C": [1.0, -1.0], "kind": ["x", "y"]}
    parquet.write_table(sys.modules["pyarrow"].table(values), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", TableSettings(path=Path("t.parquet")))
    assert columns(found) == {"A": [1, 0], "B": [1, 0], "C": [1, 0], "x": [1, 0], "y": [0, 1]}


def test_a_column_with_captions_makes_no_label_and_of_several_the_first_counts(tmp_path):
    (tmp_path / "t.csv").write_text(
        '\ufefffile,said,A\r\na,"a ""big"" cat,\r\n smiling",1\r\nb,,0\r\n', encoding="utf-8", newline=""
    )
    found = read_table(tmp_path / "t.csv", TableSettings(path=Path("t.csv")), "said")
    assert found.captions.tolist() == ['a "big" cat, smiling', ""] and columns(found) == {"A": [1, 0]}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    values = {"file": ["a", "b", "c"], "said": [["a cat", "one"], [], None]}
    parquet.write_table(sys.modules["pyarrow"].table(values), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", TableSettings(path=Path("t.parquet")), "said")
    assert found.captions.tolist() == ["a cat", "", ""] and found.label_names == ()


def test_a_column_without_any_caption_and_a_comma_outside_quotes_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,said\na,\nb,\n")
    with pytest.raises(DataError, match="column 'said' is empty in every row, so nothing would be learned of text"):
        read_table(tmp_path / "t.csv", TableSettings(path=Path("t.csv")), "said")
    (tmp_path / "t.csv").write_text("file,said\na,a man, smiling\n")
    with pytest.raises(DataError, match='put what holds a separator into quotes, such as "a man, smiling"'):
        read_table(tmp_path / "t.csv", TableSettings(path=Path("t.csv")), "said")


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(RuntimeMissingError, match=r"pip install 'collafuse\[tables\]', or save the table as CSV"):
        read_table(tmp_path / "t.parquet", TableSettings(path=Path("t.parquet")))


# --- tables beside images -----------------------------------------------------------------------------------


def images(root: Path, names: dict[str, int], text: str, heard: Heard | None = None, **settings: Any) -> ImageSet:
    for name, level in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), level).save(root / name)
    (root / "t.csv").write_text(text, encoding="utf-8")
    values = {"dataset": "folder", "path": root, "image_size": 4, "channels": 1, "table": {"path": "t.csv", **settings}}
    return load(DataSettings(**values), listener=heard or Heard())


def test_rows_find_their_images_by_path_by_name_or_without_suffix(tmp_path):
    names = {"deep/one.png": 1, "other/two.png": 2, "three.png": 3}
    found = images(tmp_path, names, "file,A,B\ndeep/one.png,1,0\ntwo.png,0,1\nthree,1,1\n")
    assert found.label_names == ("A", "B")
    shown = dict(zip(found.pixels[:, 0, 0, 0].tolist(), found.labels.tolist(), strict=True))
    assert shown == {1: [1, 0], 2: [0, 1], 3: [1, 1]}


def test_rows_without_an_image_and_images_without_a_row_are_left_out_and_named(tmp_path):
    heard = Heard()
    found = images(tmp_path, {"a.png": 1, "b.png": 2}, "file,A\na.png,1\ngone.png,0\n", heard)
    assert found.sources.tolist() == ["a.png"] and len(found.problems) == 2
    assert "no image is named 'gone.png'" in heard.said[0] and "b.png has no row in" in heard.said[0]


def test_a_name_that_fits_two_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"'x\.png' could be a/x\.png or b/x\.png; write its path"):
        images(tmp_path, {"a/x.png": 1, "b/x.png": 2}, "file,A\nx.png,1\n")


def test_a_table_whose_first_column_names_no_image_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none of the 1 rows .* such as '17' where the folder holds 'a\.png'"):
        images(tmp_path, {"a.png": 1}, "row,file,A\n17,a.png,1\n")


def test_a_name_that_leaves_the_folder_finds_nothing(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    with pytest.raises(DataError, match="none of the 1 rows"):
        images(tmp_path / "in", {"a.png": 1}, "file,A\n../secret.png,1\n")


def test_a_table_that_is_not_there_is_refused_with_where_it_is_looked_for(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    values = {"dataset": "folder", "path": tmp_path, "image_size": 4, "channels": 1, "table": {"path": "no.csv"}}
    with pytest.raises(DataError, match=r"cannot read the table .*no\.csv.*relative to the folder of images"):
        load(DataSettings(**values))


def test_an_image_left_out_takes_its_row_along(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    found = images(tmp_path, {"a.png": 1, "c.png": 3}, "file,A,p\na,1,x\nbad,0,y\nc,0,z\n", group="p")
    assert np.array_equal(found.labels, [[1], [0]]) and found.groups.tolist() == ["x", "z"]
