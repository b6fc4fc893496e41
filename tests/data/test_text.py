"""collafuse.data.text and captions: from what is written of images to numbers, once."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.config.data import TextSettings
from collafuse.core.errors import DataError, UsageError
from collafuse.data import captions
from collafuse.data.captions import beside, captions_of, from_labels
from collafuse.data.listening import UNHEARD
from tests.data.hearing import Heard

# --- captions, which need nothing ---------------------------------------------------------------------------


def test_a_caption_is_one_line():
    assert captions_of(["  a\n smiling\tman ", "", " "]).tolist() == ["a smiling man", "", ""]


def test_captions_stand_beside_the_images(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "face.txt").write_text("\ufeffa man\n", encoding="utf-8")
    assert beside(tmp_path, ["sub/face.jpg", "none.png"]).tolist() == ["a man", ""]
    with pytest.raises(DataError, match=r"no image below .* such as .*none\.txt for none\.png, so nothing would be"):
        beside(tmp_path, ["none.png"])


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a" * (captions.MAX_TEXT_BYTES + 1)])
def test_what_is_no_caption_is_refused(tmp_path, data):
    (tmp_path / "face.txt").write_bytes(data)
    with pytest.raises(DataError, match=r"face\.txt (is no text in UTF-8|has over)"):
        beside(tmp_path, ["face.jpg"])


def test_labels_make_captions_as_the_reference_writes_them():
    labels = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    assert from_labels(labels, ("Eyeglasses", "Male", "Smiling")).tolist() == ["Eyeglasses, Smiling", ""]


# --- numbers, which need an encoder -------------------------------------------------------------------------

CAPTIONS = captions_of(["a cat", "", "a dog", "a cat"])


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    pytest.importorskip("transformers", reason="text encoders need collafuse[text]")
    from tests.tinyt5 import tiny_t5

    return TextSettings(encoder=str(tiny_t5(tmp_path_factory.mktemp("models") / "tiny")))


def embedder(settings, cache=None, listener=UNHEARD):
    from collafuse.data.text import Embedder

    return Embedder(settings, cache, listener)


def test_equal_captions_get_equal_numbers_and_none_gets_zeros(settings):
    rows = embedder(settings).embed(CAPTIONS).rows
    assert np.array_equal(rows[0], rows[3]) and not np.array_equal(rows[0], rows[2])
    assert not rows[1].any() and rows[0].any()


def test_each_different_caption_is_encoded_once(settings):
    heard = Heard()
    once = embedder(settings, listener=heard)
    once.embed(CAPTIONS)
    once.embed(CAPTIONS)
    assert heard.bars == {"encoding captions": 2}


def test_what_was_kept_is_the_same_bytes_without_the_encoder(settings, tmp_path, monkeypatch):
    first = embedder(settings, tmp_path).embed(CAPTIONS)
    monkeypatch.setattr("collafuse.data.text.Encoder", None)
    again = embedder(settings, tmp_path).embed(CAPTIONS)
    assert again.space == first.space and again.rows.tobytes() == first.rows.tobytes()
    with pytest.raises(TypeError):  # a new caption would need it
        embedder(settings, tmp_path).embed(captions_of(["b"]))


def test_the_kept_numbers_are_for_their_owner_alone(settings, tmp_path):
    embedder(settings, tmp_path).embed(CAPTIONS)
    (folder,) = tmp_path.glob("text-t5-8-*")
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.iterdir()] == ["captions.safetensors"]


@pytest.mark.parametrize("data", [b"", b"\0" * 100])
def test_a_damaged_file_is_made_anew(settings, tmp_path, data):
    first = embedder(settings, tmp_path).embed(CAPTIONS)
    (path,) = tmp_path.glob("*/captions.safetensors")
    path.write_bytes(data)
    assert embedder(settings, tmp_path).embed(CAPTIONS).rows.tobytes() == first.rows.tobytes()
    assert path.stat().st_size > 200


def test_another_encoder_and_another_length_find_nothing(settings, tmp_path):
    from tests.tinyt5 import tiny_t5

    other = TextSettings(encoder=str(tiny_t5(tmp_path / "other", seed=1)))
    cache = tmp_path / "cache"
    first = embedder(settings, cache).embed(CAPTIONS)
    assert not np.array_equal(embedder(other, cache).embed(CAPTIONS).rows, first.rows)
    heard = Heard()
    embedder(settings.model_copy(update={"max_tokens": 2}), cache, heard).embed(CAPTIONS)
    assert heard.bars == {"encoding captions": 2}
    assert any("2 of 2 different texts have more than 2 tokens" in said for said in heard.said)


# --- prompts ------------------------------------------------------------------------------------------------


def test_prompts_are_what_captions_would_be(settings):
    from collafuse.data.text import encode_prompts

    made = encode_prompts([" a  cat", "a dog"], settings.encoder, 20, UNHEARD)
    assert made.prompts == ("a cat", "a dog")
    assert np.array_equal(made.text.rows, embedder(settings).embed(CAPTIONS).rows[[0, 2]])


@pytest.mark.parametrize(
    ("prompts", "says"),
    [([], "0 prompts"), (["a"] * 257, "257 prompts"), ([" "], "printable"), (["a" * 501], "printable")],
)
def test_prompts_that_no_file_could_hold_are_refused(settings, prompts, says):
    from collafuse.data.text import encode_prompts

    with pytest.raises(UsageError, match=says):
        encode_prompts(prompts, settings.encoder, 20, UNHEARD)


def test_prompts_come_from_lines(tmp_path):
    pytest.importorskip("safetensors")
    from collafuse.data.text import read_prompts

    (tmp_path / "prompts.txt").write_text("a cat\n\n a dog \n")
    assert read_prompts(tmp_path / "prompts.txt") == ["a cat", "a dog"]
    with pytest.raises(DataError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")


def test_as_many_prompts_as_a_file_holds_come_from_lines(tmp_path):
    pytest.importorskip("safetensors")
    from collafuse.data.text import read_prompts

    longest = "\u5e3d" * 500
    (tmp_path / "prompts.txt").write_text("\r\n".join([longest] * 256), encoding="utf-8", newline="")
    assert read_prompts(tmp_path / "prompts.txt") == [longest] * 256
    (tmp_path / "prompts.txt").write_bytes(b"a" * 600_000)
    with pytest.raises(DataError, match="at most 256 prompts of 500 characters fit one file"):
        read_prompts(tmp_path / "prompts.txt")
