"""collafuse.data.t5: an encoder from a folder, its numbers, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from collafuse.core import texts
from collafuse.core.errors import DataError
from collafuse.data.t5 import BATCH, Encoder, find

pytest.importorskip("transformers", reason="text encoders need collafuse[text]")

from tests.tinyt5 import WIDTH, tiny_t5

TEXTS = ["a smiling man", "cat", "dog with hat , a cat and a man with a hat", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_t5(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder(find(str(folder)), max_tokens=20)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).max())


def test_a_text_is_the_scaled_mean_of_what_transformers_itself_computes(folder, encoder):
    from tokenizers import Tokenizer
    from transformers import T5EncoderModel

    theirs = T5EncoderModel.from_pretrained(folder, local_files_only=True).eval()
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXTS[0]).ids])
    assert ids.shape == (1, 4)  # three words and the end
    with torch.inference_mode():
        mean = theirs(input_ids=ids).last_hidden_state[0].mean(dim=0)
    expected = (mean / mean.square().mean().sqrt()).numpy()
    assert apart(encoder.encode(TEXTS[:1])[0], expected) < 2e-3


def test_numbers_are_of_root_mean_square_one_and_pass_the_check_of_files(encoder):
    rows = encoder.encode(TEXTS)
    assert rows.shape == (4, WIDTH) and rows.dtype == np.float16
    texts.check(rows, "here")


def test_padding_and_company_do_not_change_a_text(encoder, monkeypatch):
    monkeypatch.setattr("collafuse.data.t5.READ_AT_ONCE", BATCH + 1)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    many = encoder.encode((TEXTS * BATCH)[: 3 * BATCH + 1])
    assert apart(alone, encoder.encode(TEXTS)) < 2e-3
    assert apart(alone, many[:4]) < 2e-3
    assert apart(alone[0], alone[1]) > 0.1


def test_what_comes_after_the_last_token_is_not_read_and_counted(folder):
    short = Encoder(find(str(folder)), max_tokens=3)
    one, other = short.encode(["a smiling man", "a smiling dog with hat"])
    assert apart(one, other) < 2e-3 and short.truncated == 2
    assert short.encode(["cat"]).shape == (1, WIDTH) and short.truncated == 2


def test_the_name_tells_the_files_and_not_where_they_lie(folder, tmp_path):
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other"
    shutil.copytree(folder, elsewhere)
    tiny_t5(other, seed=1)
    space = find(str(folder)).space
    assert find(str(elsewhere)).space == space and find(str(other)).space != space
    assert space.encoder.startswith("t5-8-") and space.width == WIDTH
    (elsewhere / "tokenizer.json").write_bytes((elsewhere / "tokenizer.json").read_bytes() + b" ")
    assert find(str(elsewhere)).space != space


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_with_how_to_get_it(folder, tmp_path, missing):
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / missing).unlink()
    with pytest.raises(DataError, match=rf"it lacks {missing}\. Expected are .* hf download google-t5/t5-small"):
        find(str(tmp_path / "t5"))


def test_a_pickle_is_no_substitute(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / "model.safetensors").rename(tmp_path / "t5" / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is not read, since that can run code"):
        find(str(tmp_path / "t5"))


@pytest.mark.parametrize("name", ["no/such-encoder", "no such folder", "../x"])
def test_what_lies_nowhere_is_not_fetched(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)

    def refused(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)
    with pytest.raises(DataError, match="neither a folder nor an encoder that lies in this machine's cache"):
        find(name)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"model_type": "bert", "d_model": 8}', '{"model_type": "t5", "d_model": 99999}', '{"d_model": 8}'],
)
def test_a_folder_of_another_model_is_refused(folder, tmp_path, text):
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / "config.json").write_text(text)
    with pytest.raises(DataError, match="does not describe a T5|expected a T5 of width"):
        find(str(tmp_path / "t5"))


def test_weights_that_are_not_those_of_the_configuration_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if "block.1" not in k}, path)
    with pytest.raises(DataError, match="are not those of its config.json"):
        Encoder(find(str(tmp_path / "t5")), 20)
    path.write_bytes(b"\x80\x04." + bytes(100))
    with pytest.raises(DataError, match="are not those of its config.json"):
        Encoder(find(str(tmp_path / "t5")), 20)


@pytest.mark.parametrize("change", [{"num_layers": "2"}, {"dropout_rate": None}, {"torch_dtype": "none"}])
def test_a_configuration_that_transformers_does_not_take_is_refused(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="are not those of its config.json"):
        Encoder(find(str(tmp_path / "t5")), 20)


def test_weights_that_cannot_be_read_are_named(folder, tmp_path, monkeypatch):
    def refused(path, memory):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("collafuse.data.t5.digest_of", refused)
    with pytest.raises(DataError, match=r"cannot read .*config\.json: Permission denied"):
        find(str(folder))
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / "model.safetensors").unlink()
    (tmp_path / "t5" / "model.safetensors").symlink_to("gone")  # as in a cache whose blobs were removed
    with pytest.raises(DataError, match=r"it lacks model\.safetensors"):
        find(str(tmp_path / "t5"))


def test_weights_that_are_not_finite_make_no_numbers(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"shared.weight": tensors["shared.weight"] * torch.nan}, path)
    with pytest.raises(DataError, match="not finite, so its weights are damaged"):
        Encoder(find(str(tmp_path / "t5")), 20).encode(TEXTS)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["elephant"] = 32
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="knows 33 tokens, the weights beside it 32; they are of two models"):
        Encoder(find(str(tmp_path / "t5")), 20)


def test_a_damaged_tokenizer_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(DataError, match="is no tokenizer"):
        Encoder(find(str(tmp_path / "t5")), 20)


def test_what_else_lies_beside_the_weights_is_no_part_of_the_encoder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t5")
    save_file({"shared.weight": torch.zeros(1)}, tmp_path / "t5" / "model.fp16.safetensors")
    assert find(str(tmp_path / "t5")).space == find(str(folder)).space


def test_weights_in_parts_are_one_encoder(folder, tmp_path, encoder):
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "model.safetensors"
    tensors = sorted(load_file(path).items())
    for i, part in enumerate((tensors[:5], tensors[5:]), start=1):
        save_file(dict(part), tmp_path / "t5" / f"model-0000{i}-of-00002.safetensors")
    path.unlink()
    assert np.array_equal(Encoder(find(str(tmp_path / "t5")), 20).encode(TEXTS), encoder.encode(TEXTS))
