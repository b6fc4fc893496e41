"""collafuse.core.bundle: a bundle is checked before onnxruntime sees it. onnxruntime is not used in this file."""

from __future__ import annotations

import hashlib
import json

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from collafuse.core import bundle as bundles
from collafuse.core.errors import FileFormatError
from tests.bundles import LOSS, halving_bundle, halving_info, halving_model, read, resealed, sealed
from tests.damage import bit_flips, truncations


def test_metadata_there_and_back():
    assert read(halving_bundle()).info == halving_info()


def test_a_real_bundle_is_accepted(tiny_bundle):
    bundle = bundles.read(tiny_bundle)
    assert bundle.info.client == "north"
    assert bundle.data == tiny_bundle.read_bytes()
    assert len(bundle.digest) == 64


def test_the_metadata_hold_the_allowed_fields_and_nothing_else(tiny_bundle):
    model = onnx.load(tiny_bundle)
    props = {p.key: p.value for p in model.metadata_props}
    assert set(props) == {"collafuse", "collafuse_sha256"}
    values = json.loads(props["collafuse"])
    assert set(values) == {
        "kind", "version", "client", "image_shape", "label_names", "sigma_min", "sigma_max", "sampler", "steps",
        "sigma_low", "guidance", "precision", "opset", "provenance", "known_answer", "loss", "graph", "labels_kept",
        "blank_trained",
    }  # fmt: skip
    assert set(values["known_answer"]) == {"sigmas", "values", "tolerance"}
    assert set(values["provenance"]) == {"weights", "training_steps", "collafuse", "torch", "onnx", "exported"}


def test_a_bundle_of_before_kept_labels_were_recorded_keeps_none():
    values = json.loads(halving_info(labels_kept=True).to_json())
    assert read(sealed(halving_model(), json.dumps(values))).info.labels_kept is True
    del values["labels_kept"]
    assert read(sealed(halving_model(), json.dumps(values))).info.labels_kept is False


def test_a_bundle_says_nothing_of_the_machine_that_made_it(tiny_bundle):
    data = tiny_bundle.read_bytes()
    for trace in (b"/work/", b"/home/", b"site-packages", b".py", b"pkg.torch"):
        assert trace not in data


def test_the_digest_covers_the_whole_file():
    data = halving_bundle()
    digest = read(data).digest.encode()
    assert hashlib.sha256(data.replace(digest, b"0" * 64)).hexdigest().encode() == digest


def test_a_placeholder_that_occurs_twice_cannot_be_sealed():
    with pytest.raises(FileFormatError, match="holds the digest's placeholder twice"):
        sealed(halving_model(), halving_info(client=bundles.NO_DIGEST))


# --- damage -------------------------------------------------------------------------------------------------


def test_every_truncation_is_refused(tiny_bundle, tmp_path):
    path = tmp_path / "spoiled.onnx"
    for spoiled in truncations(tiny_bundle.read_bytes(), 100):
        path.write_bytes(spoiled)
        with pytest.raises(FileFormatError, match=r"spoiled\.onnx"):
            bundles.read(path)


@pytest.mark.parametrize("which", ["real", "halving"])
def test_every_bit_flip_is_refused(tiny_bundle, which):
    for spoiled in bit_flips(tiny_bundle.read_bytes() if which == "real" else halving_bundle(), 300):
        with pytest.raises(FileFormatError, match=r"a\.onnx"):
            read(spoiled)


@pytest.mark.parametrize("extra", [b"\0", b"\x08\x0a"])
def test_bytes_that_follow_are_refused(extra):
    with pytest.raises(FileFormatError):
        read(halving_bundle() + extra)


def test_places_that_hold_no_bundle(tmp_path):
    with pytest.raises(FileFormatError, match=r"is not a file; expected a client bundle"):
        bundles.read(tmp_path)
    with pytest.raises(FileFormatError, match=r"gone\.onnx is not a file; expected a client bundle"):
        bundles.read(tmp_path / "gone.onnx")


def test_a_huge_file_is_refused_unread(tmp_path):
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(bundles.MAX_BUNDLE_BYTES + 1)
    with pytest.raises(FileFormatError, match="bytes; a bundle has at most 536870912"):
        bundles.read(tmp_path / "huge.onnx")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(100), b"{}", b"\0" * 1000])
def test_other_files_are_refused(data):
    with pytest.raises(FileFormatError, match=r"^a\.onnx "):
        read(data)


def test_an_onnx_model_that_is_no_bundle_is_told_how_to_become_one():
    with pytest.raises(FileFormatError, match="is an ONNX model but no client bundle; make one with collafuse export-"):
        read(halving_model().SerializeToString())


# --- metadata that mean harm, sealed with a right digest ----------------------------------------------------

HUGE = int("7" * 400)
"""A whole number beyond every float, without the digest's placeholder in it."""

BAD_FIELDS = [
    ("kind", "release"),
    ("version", 2),
    ("version", True),
    ("version", None),
    ("client", 7),
    ("client", "\x1b[2J"),
    ("image_shape", [1, 2]),
    ("image_shape", [1, 2, 2.0]),
    ("image_shape", [0, 2, 2]),
    ("image_shape", [5, 2, 2]),
    ("image_shape", [1, 2, 1025]),
    ("image_shape", [1, 4, 4]),
    ("label_names", ["cat"]),
    ("label_names", ["cat", "cat"]),
    ("label_names", "cat"),
    ("sigma_min", 0.0),
    ("sigma_min", 0.6),
    ("sigma_max", 0.002),
    ("sigma_max", 81),
    ("sigma_max", float("nan")),
    ("sigma_max", HUGE),
    ("sampler", "rk45"),
    ("steps", 0),
    ("steps", 1001),
    ("steps", 2.5),
    ("sigma_low", 0.0),
    ("sigma_low", 0.7),
    ("guidance", float("inf")),
    ("guidance", -1),
    ("precision", "int4"),
    ("precision", "int8"),
    ("precision", None),
    ("graph", "half"),
    ("graph", "whole"),
    ("graph", None),
    ("graph", ["step"]),
    ("loss", {}),
    ("loss", 0),
    ("opset", 0),
    ("provenance", {"weights": 1}),
    ("provenance", {"weights": "\x1b]0;evil"}),
    ("known_answer", None),
    ("known_answer", {}),
    ("labels_kept", 1),
    ("labels_kept", None),
    ("blank_trained", None),
    ("blank_trained", 0),
    ("exif", "taken at home"),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda v: repr(v)[:20])
def test_a_field_that_is_wrong_is_named(field, value):
    with pytest.raises(FileFormatError, match=r"^a\.onnx"):
        read(resealed(halving_bundle(), **{field: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"sigmas": []},
        {"sigmas": [0.1] * 17},
        {"sigmas": [0.0, 0.1]},
        {"sigmas": [-0.5]},
        {"sigmas": [1e300]},
        {"sigmas": [HUGE]},
        {"values": []},
        {"values": [0.0] * 5000},
        {"values": ["0"]},
        {"tolerance": 0.0},
        {"tolerance": 2.0},
        {"seed": 1},
    ],
    ids=lambda v: repr(v)[:24],
)
def test_a_known_answer_that_is_wrong_is_refused(change):
    answer = {**vars(halving_info().known_answer), **change}
    with pytest.raises(FileFormatError, match=r"^a\.onnx"):
        read(resealed(halving_bundle(), known_answer=answer))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_precision_states_its_loss(precision):
    assert read(resealed(halving_bundle(), precision=precision, loss=LOSS)).info.loss == bundles.Loss(**LOSS)
    with pytest.raises(FileFormatError, match="loss=None, expected an object"):
        read(resealed(halving_bundle(), precision=precision, loss=None))


@pytest.mark.parametrize(
    "change",
    [
        {"images": 0},
        {"images": 1.5},
        {"images": HUGE},
        {"mean_grey_levels": -0.1},
        {"mean_grey_levels": float("nan")},
        {"mean_grey_levels": 256},
        {"max_grey_levels": 256},
        {"max_grey_levels": True},
        {"psnr_db": 101},
        {"psnr_db": "48"},
        {"worst_label": None},
        {"worst_psnr_db": 101},
        {"seed": 1},
    ],
    ids=lambda v: repr(v)[:24],
)
def test_a_loss_that_is_wrong_is_refused(change):
    with pytest.raises(FileFormatError, match=r"^a\.onnx"):
        read(resealed(halving_bundle(), precision="int8", loss={**LOSS, **change}))


def test_fp32_states_no_loss():
    with pytest.raises(FileFormatError, match="in fp32 and yet states a loss"):
        read(resealed(halving_bundle(), loss=LOSS))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(halving_info().to_json()))), JSON)
def test_any_value_in_any_field_is_accepted_or_refused(field, value):
    try:
        read(resealed(halving_bundle(), **{field: value}))
    except FileFormatError:
        return
    assert (field, value) == ("loss", None) or field in {
        "client",
        "labels_kept",
        "blank_trained",
        "sigma_min",
        "sigma_max",
        "steps",
        "sigma_low",
        "guidance",
        "opset",
        "provenance",
        "version",
    }


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "{}", '{"kind": "bundle", "kind": "bundle"}', "[" * 10_000])
def test_metadata_that_are_no_object_are_refused(text):
    with pytest.raises(FileFormatError, match=r"^a\.onnx"):
        read(sealed(halving_model(), text))


def test_too_much_metadata_is_refused():
    with pytest.raises(FileFormatError, match="bytes of metadata; at most 1048576 are read"):
        read(resealed(halving_bundle(), client="x" * (1 << 20)))


def test_metadata_changed_without_a_new_digest_are_refused():
    data = halving_bundle()
    for old, new in ((b'"client": "north"', b'"client": "south"'), (b'"steps": 3', b'"steps": 9')):
        assert data.count(old) == 1
        with pytest.raises(FileFormatError, match="does not match the SHA-256 that it carries"):
            read(data.replace(old, new))


@pytest.mark.parametrize("digest", [None, "", "0" * 64, "f" * 64, "0" * 63, "é" * 32])
def test_a_bundle_without_a_right_digest_is_refused(digest):
    model = halving_model()
    props = {"collafuse": halving_info().to_json(), "collafuse_sha256": digest}
    helper.set_model_props(model, {k: v for k, v in props.items() if v is not None})
    with pytest.raises(FileFormatError, match="SHA-256"):
        read(model.SerializeToString())
