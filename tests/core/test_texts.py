"""collafuse.core.texts: text as numbers in every file that carries it, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core import release as releases
from collafuse.core import tensorfile, texts
from collafuse.core.conditioning import ConditionSpace, TextSpace
from collafuse.core.describe import describe
from collafuse.core.errors import FileFormatError, MismatchError
from collafuse.core.intermediate import Intermediate, IntermediateFile
from collafuse.core.pairing import check_pair, conditions_for
from collafuse.core.parts import Parts
from collafuse.core.release import Release
from collafuse.core.texts import EncodedText, Prompts
from tests.bundles import halving_info, halving_model, read, sealed, tensor_input

SPACE = TextSpace("t5-4-0123456789abcdef", 4)
OTHER = TextSpace("t5-4-fedcba9876543210", 4)
ROWS = np.array([[1, -1, 1, -1], [2, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float16)
TEXT = EncodedText(SPACE, ROWS)
PROMPTS = Prompts(TEXT.take([0, 1]), ("a cat", "ein Hund, größer"))


def release(text: EncodedText | None = TEXT) -> Release:
    ids = np.arange(48, dtype=np.uint8).reshape(3, 16)
    return Release(np.ones((3, 1, 2, 2), np.float16), 0.5, ids, None, (), True, text)


def intermediate(**changes) -> Intermediate:
    x = np.ones((3, 1, 2, 2), dtype=np.float32)
    one = Intermediate(x, 0.5, None, (), "m", "euler", 1, 1.0, text=TEXT)
    return dataclasses.replace(one, **changes)


def same(one: EncodedText | None, other: EncodedText) -> bool:
    return one is not None and one.space == other.space and one.rows.tobytes() == other.rows.tobytes()


# --- there and back -----------------------------------------------------------------------------------------


def test_prompts_come_back_and_say_what_they_are(tmp_path):
    path = tmp_path / "prompts.safetensors"
    path.write_bytes(texts.to_bytes(PROMPTS))
    found = texts.read(path)
    assert found.prompts == PROMPTS.prompts and same(found.text, PROMPTS.text) and len(found) == 2
    assert found.digest == PROMPTS.digest != dataclasses.replace(PROMPTS, prompts=("a", "b")).digest
    shown = describe(path)
    assert (shown["kind"], shown["text_encoder"], shown["text_width"]) == ("text", SPACE.encoder, 4)
    assert shown["prompts"] == list(PROMPTS.prompts)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_release_keeps_its_text(tmp_path, in_memory):
    path = tmp_path / "a.safetensors"
    path.write_bytes(releases.to_bytes(release()))
    assert same(releases.read(path, in_memory=in_memory).text, TEXT)
    assert describe(path)["text_encoder"] == SPACE.encoder


def test_a_release_without_text_does_not_say_that_there_could_be_one():
    data = releases.to_bytes(release(None))
    assert b"text" not in data
    assert releases.from_bytes(data, "a").text is None


def test_an_intermediate_keeps_its_text_whole_and_in_blocks(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(intermediates.to_bytes(intermediate()))
    assert same(intermediates.read(path).text, TEXT)
    assert describe(path)["text_encoder"] == SPACE.encoder
    with IntermediateFile(path) as file:
        assert file.text_space == SPACE and file.digest == intermediate().digest
        assert same(file.block(slice(1, 3)).text, TEXT.take(slice(1, 3)))


def test_parts_join_their_text(tmp_path):
    files = []
    for i, rows in enumerate((slice(0, 1), slice(1, 3))):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(intermediates.to_bytes(intermediate().block(rows)))
        files.append(IntermediateFile(path))
    whole = Parts(files)
    assert same(whole.block(slice(0, 3)).text, TEXT)
    assert whole.digest == intermediate().digest
    for file in files:
        file.close()


# --- what is refused ----------------------------------------------------------------------------------------


def with_text(rows=ROWS, **fields) -> bytes:
    """A release's bytes with this tensor and these metadata."""
    values = {"sigma_cut": 0.5, "label_names": None, "simulated": True, "text_encoder": SPACE.encoder, **fields}
    tensors = {"z": release().z, "ids": release().ids, **({} if rows is None else {"text": rows})}
    return tensorfile.to_bytes(releases.KIND, 1, {k: v for k, v in values.items() if v != "left out"}, tensors)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (ROWS.astype(np.float32), "'text' is float32"),
        (ROWS[:2], r"text has shape \[2, 4\], expected 3 rows"),
        (np.zeros((3, 0), np.float16), r"text has shape \[3, 0\]"),
        (np.zeros((3, 4097), np.float16), "1 to 4096 numbers"),
        (ROWS * np.float16(1.1), "root mean square 1.1"),
        (np.full_like(ROWS, np.inf), "not finite"),
        (None, "names a text encoder but holds no text"),
    ],
)
def test_text_that_is_none_is_refused(tmp_path, rows, says):
    with pytest.raises(FileFormatError, match=says):
        releases.from_bytes(with_text(rows), "a")
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_text(rows))
    with pytest.raises(FileFormatError, match=says):
        releases.read(path, in_memory=False)


@pytest.mark.parametrize("encoder", ["", "a b", "x" * 101, "a/b", "\x1b[31m", 7, None, "left out"])
def test_an_encoder_without_a_proper_name_is_refused(encoder):
    with pytest.raises(FileFormatError, match="text_encoder"):
        releases.from_bytes(with_text(text_encoder=encoder), "a")


def test_prompts_in_any_script_are_kept(tmp_path):
    prompts = (
        "ein M\u00e4dchen, \u5e3d\u5b50",
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f9b0",
    )
    path = tmp_path / "p.safetensors"
    path.write_bytes(texts.to_bytes(Prompts(PROMPTS.text, prompts)))
    assert texts.read(path).prompts == prompts


@pytest.mark.parametrize(
    "prompts",
    [
        [],
        ["a"],
        ["a", ""],
        ["a", "b\nc"],
        ["a", "\u202e"],
        ["a", "\x1b[31m"],
        ["a", "x" * 501],
        ["a", 1],
        "ab",
        ["a"] * 257,
    ],
)
def test_prompts_that_do_not_fit_their_numbers_are_refused(tmp_path, prompts):
    fields = {"text_encoder": SPACE.encoder, "prompts": prompts}
    (tmp_path / "a").write_bytes(tensorfile.to_bytes(texts.KIND, 1, fields, {"text": PROMPTS.text.rows}))
    with pytest.raises(FileFormatError, match=r"prompts|expected \d+ rows|holds no text"):
        texts.read(tmp_path / "a")


# --- whether two sides fit ----------------------------------------------------------------------------------

INFO = halving_info(text=SPACE)


def test_text_is_a_condition_between_labels_and_flag():
    check_pair(intermediate(), INFO)
    assert conditions_for(intermediate(), INFO.space).tolist() == [
        [0, 0, 1, -1, 1, -1, 0],
        [0, 0, 2, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert conditions_for(intermediate(text=None), INFO.space)[0].tolist() == [0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (halving_info(text=OTHER), rf"text of the encoder {SPACE.encoder} .* trained with {OTHER.encoder}"),
        (halving_info(text=TextSpace(SPACE.encoder, 5)), r"\(4 numbers\), .*\(5\)"),
        (halving_info(), rf"text of the encoder {SPACE.encoder}, and this model was trained without text"),
    ],
)
def test_text_of_another_encoder_is_refused_by_name(info, says):
    with pytest.raises(MismatchError, match=says):
        check_pair(intermediate(), info)
    with pytest.raises(MismatchError, match=says):
        conditions_for(intermediate(), info.space)


def test_a_bundle_says_what_text_it_takes_and_its_graph_is_as_wide():
    model = halving_model()
    model.graph.input[2].CopyFrom(tensor_input("labels", 2 + 4 + 1))
    info = read(sealed(model, halving_info(text=SPACE, text_kept=True))).info
    assert info.text == SPACE and info.text_kept and info.space == ConditionSpace(("cat", "dog"), SPACE)
    with pytest.raises(FileFormatError, match=r"labels has .* expected 1 and \['N', 7\]"):
        read(sealed(halving_model(), halving_info(text=SPACE)))


def test_a_bundle_of_before_there_was_text_takes_none():
    text = halving_info().to_json()
    assert "text" not in text
    assert read(sealed(halving_model(), text)).info.space == ConditionSpace(("cat", "dog"))
