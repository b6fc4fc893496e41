"""CUB-200-2011 and Animals with Attributes 2, in their true layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collafuse.config import DataSettings
from collafuse.core.errors import DataError
from collafuse.data.datasets import load
from collafuse.data.imageset import ImageSet
from collafuse.data.published import PUBLISHED
from tests.data.published import LABELS, LAYOUT_WRITERS, TEST, TRAIN


def read(name: str, root: Path, **changes: Any) -> ImageSet:
    return load(DataSettings(**({"dataset": name, "path": root, "image_size": 8, "channels": 3} | changes)))


@pytest.fixture(params=LAYOUT_WRITERS)
def written(request, tmp_path, monkeypatch) -> tuple[str, Path]:
    LAYOUT_WRITERS[request.param](tmp_path, monkeypatch)
    return request.param, tmp_path


def test_the_training_images_are_read_with_all_their_labels(written):
    name, root = written
    found = read(name, root)
    assert len(found) == TRAIN and found.label_names == LABELS[name] and found.test_part is None
    assert found.pixels.shape == (TRAIN, 3, 8, 8) and not found.problems


def test_the_official_split_marks_the_others(written):
    name, root = written
    found = read(name, root, official_split=True)
    assert len(found) == TRAIN + TEST and found.test_part.sum() == TEST
    assert np.array_equal(found.digests[~found.test_part], read(name, root).digests)


def test_what_is_missing_is_named_and_not_said_to_be_fetched(written):
    name, root = written
    with pytest.raises(DataError) as refused:
        read(name, root / "elsewhere")
    for part in (PUBLISHED[name].files[0], PUBLISHED[name].page, PUBLISHED[name].terms, "Unpack it there"):
        assert part in str(refused.value)
    assert "--download" not in str(refused.value)


@pytest.mark.parametrize(
    ("certainty", "least"), [("not visible", 1), ("guessing", 2), ("probably", 3), ("definitely", 4)]
)
def test_an_attribute_of_a_bird_counts_from_the_certainty_asked_for(tmp_path, monkeypatch, certainty, least):
    LAYOUT_WRITERS["cub"](tmp_path, monkeypatch)
    found = read("cub", tmp_path, certainty=certainty)
    expected = [[int((i + k) % 2 and (i // 2 + k) % 4 + 1 >= least) for k in range(4)] for i in range(TRAIN)]
    row = {int(name[-8:-4]): i for i, name in enumerate(found.sources.tolist())}
    assert found.labels[[row[i] for i in range(TRAIN)], 3:].tolist() == expected
    assert found.labels[[row[i] for i in range(TRAIN)], :3].argmax(axis=1).tolist() == [i % 3 for i in range(TRAIN)]


def test_a_list_of_bird_attributes_may_lie_with_the_others(tmp_path, monkeypatch):
    LAYOUT_WRITERS["cub"](tmp_path, monkeypatch)
    (tmp_path / "attributes.txt").rename(tmp_path / "CUB_200_2011/attributes/attributes.txt")
    assert read("cub", tmp_path).label_names == LABELS["cub"]


def test_an_animal_s_images_carry_the_attributes_of_its_kind(tmp_path, monkeypatch):
    LAYOUT_WRITERS["awa2"](tmp_path, monkeypatch)
    found = read("awa2", tmp_path, official_split=True)
    for source, labels in zip(found.sources.tolist(), found.labels.tolist(), strict=True):
        animal = source.split("/")[0]
        assert labels[: len(labels) - 3].index(1) == LABELS["awa2"].index(animal)
        kinds = {"antelope": [1, 0, 0], "grizzly+bear": [1, 0, 1], "killer+whale": [0, 1, 0], "beaver": [1, 1, 1]}
        assert labels[-3:] == kinds[animal]
    kept = {source.split("/")[0] for source in found.sources[found.test_part].tolist()}
    assert kept == {"beaver"}


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [
        ("cub", "CUB_200_2011/images.txt", "2 ../../../secret.jpg"),
        ("cub", "CUB_200_2011/images.txt", "7 out-of-order.jpg"),
        ("cub", "CUB_200_2011/image_class_labels.txt", "2 4"),
        ("cub", "CUB_200_2011/image_class_labels.txt", "1 1"),
        ("cub", "CUB_200_2011/train_test_split.txt", "2 x"),
        ("cub", "CUB_200_2011/attributes/image_attribute_labels.txt", "99 1 1 4 0.1"),
        ("cub", "CUB_200_2011/attributes/image_attribute_labels.txt", "1 1"),
        ("cub", "CUB_200_2011/attributes/image_attribute_labels.txt", f"1 1 1 {10**30} 0.1"),
        ("cub", "CUB_200_2011/attributes/image_attribute_labels.txt", "1 -1 1 4 0.1"),
        ("cub", "CUB_200_2011/classes.txt", "2"),
        ("awa2", "Animals_with_Attributes2/predicate-matrix-binary.txt", "1 0"),
        ("awa2", "Animals_with_Attributes2/predicate-matrix-binary.txt", "1 0 7"),
        ("awa2", "Animals_with_Attributes2/classes.txt", "5 wolf"),
    ],
)
def test_a_list_that_is_not_as_published_is_refused_by_name(tmp_path, monkeypatch, name, file, line):
    LAYOUT_WRITERS[name](tmp_path, monkeypatch)
    lines = (tmp_path / file).read_text().splitlines()
    lines[1] = line
    (tmp_path / file).write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line \d+, is not as published|leads out of the folder"):
        read(name, tmp_path)


def test_a_list_that_ends_early_is_refused(tmp_path, monkeypatch):
    LAYOUT_WRITERS["cub"](tmp_path, monkeypatch)
    path = tmp_path / "CUB_200_2011/train_test_split.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match=r"train_test_split\.txt, line 21, is not as published"):
        read("cub", tmp_path)


def test_a_missing_photograph_is_left_out_and_named(tmp_path, monkeypatch):
    LAYOUT_WRITERS["cub"](tmp_path, monkeypatch)
    gone = sorted((tmp_path / "CUB_200_2011/images").rglob("*_0001.jpg"))[0]
    gone.unlink()
    for changes in ({}, {"cache": tmp_path / "cache"}, {"cache": tmp_path / "cache"}):
        found = read("cub", tmp_path, **changes)
        assert len(found) == TRAIN - 1 and gone.name in found.problems[0]
