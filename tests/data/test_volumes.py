"""BraTS 2020 in its true layout: which way up, which slices, which labels, and who is left out."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collafuse.config import DataSettings, from_mapping
from collafuse.core.errors import ConfigError, DataError, RuntimeMissingError
from collafuse.data.datasets import load
from collafuse.data.dealing import load_sites
from collafuse.data.imageset import ImageSet
from collafuse.data.volumes import FOLDER, LABELS
from tests.data.hearing import Heard
from tests.data.whole_path import run_through

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed (extra: medical)")
SHAPE = (12, 14, 10)
"""To the right, to the front, upwards."""


def write(root: Path, patients: int = 3, suffix: str = ".nii.gz") -> Path:
    """Patients whose brain is brighter to the right, to the front and upwards; a tumour in slices 4 and 5."""
    folder = root / FOLDER
    rows = ["Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID"]
    rows[0] += ",BraTS_2020_subject_ID"
    right, front, up = np.indices(SHAPE)
    for number in range(1, patients + 1):
        name = f"BraTS20_Training_{number:03d}"
        (folder / name).mkdir(parents=True)
        brain = (100 * right + 10 * front + up + number).astype(np.int16)
        brain[:2] = 0  # background on the left
        brain[:, :, 9] = 0
        seg = np.zeros(SHAPE, dtype=np.uint8)
        seg[4:6, 4:6, 4] = 1
        seg[4:6, 4:6, 4:6] += 4 * (seg[4:6, 4:6, 4:6] == 0).astype(np.uint8)
        for kind, values in (("flair", brain), ("t1", brain // 2), ("seg", seg)):
            save(folder / name / f"{name}_{kind}{suffix}", values)
        rows.append(f"{'LGG' if number == 2 else 'HGG'},a,b,c,d,{name}")
    (folder / "name_mapping.csv").write_text("\n".join(rows) + "\n")
    return root


def save(path: Path, values: np.ndarray, axes: str = "LPS") -> None:
    """Stored as the published volumes are, with axes to the left, to the back and upwards, unless told otherwise."""
    image = nibabel.Nifti1Image(values, np.eye(4))  # right, front, up
    stored = nibabel.orientations.axcodes2ornt(tuple(axes))
    nibabel.save(
        image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), stored)), path
    )


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    volumes = {"slices": [0, 20], "least_tissue": 0.1} | changes.pop("volumes", {})
    return {"dataset": "brats2020", "path": str(root), "image_size": 14, "channels": 1, "volumes": volumes} | changes


def read(root: Path, heard: Heard | None = None, **changes: Any) -> ImageSet:
    return load(DataSettings(**settings(root, **changes)), listener=heard or Heard())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_with_tissue_become_images_of_their_patient(tmp_path, suffix):
    found = read(write(tmp_path, suffix=suffix))
    assert len(found) == 3 * 9 and not found.problems  # the tenth slice is empty
    assert found.sources[:2].tolist() == ["BraTS20_Training_001 axial 0", "BraTS20_Training_001 axial 1"]
    assert found.groups.tolist() == [f"BraTS20_Training_{n:03d}" for n in (1, 2, 3) for _ in range(9)]


def test_labels_say_what_the_segmentation_and_the_grade_say(tmp_path):
    found = read(write(tmp_path))
    assert found.label_names == LABELS == ("tumour", "necrosis", "oedema", "enhancing", "HGG", "LGG")
    by_source = dict(zip(found.sources.tolist(), found.labels.tolist(), strict=True))
    assert by_source["BraTS20_Training_001 axial 3"] == [0, 0, 0, 0, 1, 0]
    assert by_source["BraTS20_Training_001 axial 4"] == [1, 1, 0, 0, 1, 0]
    assert by_source["BraTS20_Training_002 axial 5"] == [1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PSR", "ILA"])
def test_a_slice_is_the_right_way_up_however_it_is_stored(tmp_path, axes):
    write(tmp_path, 1, ".nii")
    name = "BraTS20_Training_001"
    right, front, up = np.indices(SHAPE)
    for kind, values in (("flair", 100 * right + 10 * front + up), ("seg", np.zeros(SHAPE))):
        save(tmp_path / FOLDER / name / f"{name}_{kind}.nii", values.astype(np.int16), axes)
    image = read(tmp_path, fit="pad").pixels[3, 0].astype(int)
    assert image[0, 7] > image[13, 7] and image[7, 12] > image[7, 1]  # front above, right on the right


@pytest.mark.parametrize(("axis", "count"), [("axial", 9), ("coronal", 14), ("sagittal", 10)])
def test_each_axis_gives_its_own_slices(tmp_path, axis, count):
    found = read(write(tmp_path, 1), volumes={"axis": axis})
    assert len(found) == count and found.sources[0].endswith(f"{axis} {2 if axis == 'sagittal' else 0}")


def test_range_step_and_modality_are_those_asked_for(tmp_path):
    found = read(write(tmp_path, 1), volumes={"slices": [2, 6], "every": 2, "modality": "t1"})
    assert [source.rpartition(" ")[2] for source in found.sources.tolist()] == ["2", "4", "6"]


def test_grey_levels_reach_from_background_to_white_whatever_the_scanner_s_scale(tmp_path):
    write(tmp_path, 1, ".nii")
    first = read(tmp_path)
    path = tmp_path / FOLDER / "BraTS20_Training_001" / "BraTS20_Training_001_flair.nii"
    save(path, np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj, dtype=np.float32) * 37)
    second = read(tmp_path)
    assert first.pixels.min() == 0 and first.pixels.max() >= 250
    assert np.abs(first.pixels.astype(int) - second.pixels).max() <= 1


def damage(folder: Path, kind: str) -> str:
    path = folder / "BraTS20_Training_002" / "BraTS20_Training_002_flair.nii.gz"
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no volume":
        path.write_bytes(gzip.compress(b"words" * 200))
    elif kind == "gone":
        path.unlink()
    elif kind == "another shape":
        save(path, np.ones((5, 5, 5), dtype=np.int16))
        return "the segmentation is"
    elif kind == "four axes":
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4, 2), dtype=np.int16), np.eye(4)), path)
        return "expected three axes"
    elif kind == "not finite":
        save(path, np.full(SHAPE, np.nan, dtype=np.float32))
        return "not finite"
    elif kind == "no grade":
        table = folder / "name_mapping.csv"
        table.write_text(table.read_text().replace("LGG", "NA"))
        return "has no grade"
    return "BraTS20_Training_002"


KINDS = ["truncated", "empty", "no volume", "gone", "another shape", "four axes", "not finite", "no grade"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_patient_who_cannot_be_read_is_left_out_and_named(tmp_path, kind):
    write(tmp_path)
    reason = damage(tmp_path / FOLDER, kind)
    heard = Heard()
    found = read(tmp_path, heard)
    assert set(found.groups.tolist()) == {"BraTS20_Training_001", "BraTS20_Training_003"}
    assert len(found.problems) == 1 and reason in found.problems[0] and "BraTS20_Training_002" in found.problems[0]
    assert "1 of 3 patients" in heard.said[0] and heard.advanced == 3


def test_a_volume_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path):
    write(tmp_path, 2, ".nii")
    path = tmp_path / FOLDER / "BraTS20_Training_002" / "BraTS20_Training_002_flair.nii"
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30_000] * 3, dtype="<i2").tobytes()
    path.write_bytes(data)
    assert "at most" in read(tmp_path).problems[0]


def test_a_range_that_holds_nothing_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"gives no slices of 1 patients.*widen data\.volumes\.slices"):
        read(write(tmp_path, 1), volumes={"slices": [9, 9]})


def test_what_is_missing_is_named_with_its_terms(tmp_path):
    with pytest.raises(DataError, match=r"BraTS 2020 .* needs MICCAI_BraTS2020_TrainingData.*after registration"):
        read(tmp_path)


def test_slices_that_end_before_they_begin_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.volumes: slices=\[9, 3\] end before they begin"):
        from_mapping(
            {"data": settings(tmp_path, volumes={"slices": [9, 3]}), "clients": {"a": {"cut": {"sigma": 1.0}}}}
        )


def test_without_nibabel_it_is_said_what_to_install(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(RuntimeMissingError, match=r"collafuse\[medical\]"):
        read(tmp_path)


def test_no_patient_lies_at_two_hospitals(tmp_path):
    write(tmp_path, 6)
    values = settings(tmp_path, image_size=12, split={"by": "groups"}, held_out=0.3, seed=1)
    clients = {"north": {"labels": ["tumour"], "cut": {"sigma": 1.0}}, "south": {"cut": {"sigma": 1.0}}}
    sites = load_sites(from_mapping({"data": values, "clients": clients}))
    whose = [{*site.train.groups.tolist(), *site.held_out.groups.tolist()} for site in sites.values()]
    assert not whose[0] & whose[1] and len(whose[0] | whose[1]) == 6
    assert sites["north"].train.labels.all()


def test_brats_trains_releases_delivers_and_finishes(tmp_path):
    run_through(settings(write(tmp_path), image_size=8), ("tumour", "necrosis", "HGG"), tmp_path)
