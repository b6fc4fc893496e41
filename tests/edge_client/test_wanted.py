"""What a server delivers is what was asked for, or it is refused; against a server that answers what it is told to."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core.conditioning import TextSpace
from collafuse.core.errors import MismatchError, StorageError
from collafuse.core.intermediate import Intermediate
from collafuse.core.texts import EncodedText
from edge_client import fetching
from edge_client.fetching import FOLDER, fetched
from edge_client.finisher import Finisher
from edge_client.finishing import Order, finish_from
from edge_client.remote import Remote, Trust
from edge_client.wanted import Wanted, WantedText
from tests.edge_client.scripted import answer, scripted

SHAPE = (1, 4, 4)
TERMS = answer(200, json.dumps({"request_images": 64, "deadline_seconds": 60}).encode())
SPACE = TextSpace("t5-4-00", 4)
ROWS = np.array([[1, -1, 1, -1], [-1, -1, 1, 1]], dtype=np.float16)
TEXT = WantedText.of(EncodedText(SPACE, ROWS))


def batch(labels=None, text=None, count=4, names=("x", "y"), **changes) -> Intermediate:
    """Images whose labels [count, 2] and text rows are these, at sigma 0.5."""
    x = np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)
    rows = None if labels is None else np.array([labels] * count if isinstance(labels[0], int) else labels, np.uint8)
    spoken = None if text is None else EncodedText(SPACE, ROWS[text])
    made = Intermediate(x, 0.5, rows, () if rows is None else names, "m", "euler", 1, 1.0, text=spoken)
    return dataclasses.replace(made, **changes)


def fetch(wanted, reply, folder):
    with (
        scripted(TERMS, answer(200, intermediates.to_bytes(reply))) as server,
        Remote(server.url, Trust("t")) as remote,
    ):
        with fetched(remote, wanted, SHAPE, folder) as whole:
            return whole.block(slice(0, len(whole)))


GOOD = [
    (Wanted("a", 4, labels=("x",)), batch([1, 0])),
    (Wanted("a", 4, labels=("x",)), batch([0, 1], names=("y", "x"))),
    (Wanted("a", 4, labels=("y", "x", "y")), batch([1, 1])),
    (Wanted("a", 4, labels=()), batch([0, 0])),
    (Wanted("a", 4), batch([1, 0])),
    (Wanted("a", 4), batch()),
    (Wanted("a", 4, text=TEXT), batch(text=[0, 0, 1, 1])),
    (Wanted("a", 4, text=TEXT, labels=("y",)), batch([0, 1], [0, 0, 1, 1])),
]


@pytest.mark.parametrize(("wanted", "reply"), GOOD)
def test_what_was_asked_for_is_taken(tmp_path, wanted, reply):
    assert intermediates.to_bytes(fetch(wanted, reply, tmp_path)) == intermediates.to_bytes(reply)


WRONG = [
    (Wanted("a", 4, labels=("x",)), batch([0, 1]), "sent images that show y, asked for were .* just x. Ask again"),
    (Wanted("a", 4, labels=("x",)), batch([1, 1]), "show x, y, asked for were .* just x"),
    (Wanted("a", 4, labels=("x",)), batch([[1, 0]] * 3 + [[0, 0]]), "asked for were images that each show just x"),
    (Wanted("a", 4, labels=("x", "y")), batch([[1, 1]] * 3 + [[1, 0]]), "that each show just x, y"),
    (Wanted("a", 4, labels=("x",)), batch(), "show no stated label, asked for were .* just x"),
    (Wanted("a", 4, labels=("x",)), batch([0, 0]), "show none of the labels"),
    (Wanted("a", 4, labels=()), batch([1, 0]), "show x, asked for were .* just none of the labels"),
    (Wanted("a", 4, labels=("x",)), batch([1, 0], names=("z", "y")), "show z"),
    (Wanted("a", 4, text=TEXT), batch([1, 0], [0, 0, 1, 1]), "show x, asked for were .* just no stated label"),
    (Wanted("a", 4, text=TEXT), batch(), "images of no text, asked for was t5-4-00 text"),
    (Wanted("a", 4, text=dataclasses.replace(TEXT, encoder="t5-4-11")), batch(text=[0] * 4), "of t5-4-00 text"),
    (Wanted("a", 4, text=TEXT), batch(text=[0, 1, 0, 1]), "another text than was asked for"),
    (Wanted("a", 4), batch(text=[0] * 4), "images of t5-4-00 text, asked for was no text"),
    (Wanted("a", 4, sampler="heun"), batch(), "sampled with euler, asked for was heun"),
    (Wanted("a", 4), batch(count=3), "3 images of shape .* asked for were 4 of"),
]


@pytest.mark.parametrize(("wanted", "reply", "says"), WRONG)
def test_what_was_not_asked_for_is_refused_and_not_kept(tmp_path, wanted, reply, says):
    with pytest.raises(MismatchError, match=says):
        fetch(wanted, reply, tmp_path)
    assert not list((tmp_path / FOLDER).glob("*.safetensors"))


def test_a_part_that_was_exchanged_while_it_lay_there_is_asked_for_again(tmp_path):
    wanted, right = Wanted("a", 4, labels=("x",), seed=1), intermediates.to_bytes(batch([1, 0]))
    with scripted(*[TERMS, answer(200, right)] * 2) as server, Remote(server.url, Trust("t")) as remote:
        with pytest.raises(KeyboardInterrupt), fetched(remote, wanted, SHAPE, tmp_path):
            raise KeyboardInterrupt
        (part,) = (tmp_path / FOLDER).glob("*.safetensors")
        part.write_bytes(intermediates.to_bytes(batch([0, 1])))
        with fetched(remote, wanted, SHAPE, tmp_path) as whole:
            assert intermediates.to_bytes(whole.block(slice(0, 4))) == right


def test_a_folder_that_is_gone_already_is_no_fault(tmp_path):
    with scripted(TERMS, answer(200, intermediates.to_bytes(batch()))) as server:
        with Remote(server.url, Trust("t")) as remote, fetched(remote, Wanted("a", 4), SHAPE, tmp_path):
            shutil.rmtree(tmp_path / FOLDER)


def test_what_came_and_cannot_be_removed_is_said_in_a_sentence(tmp_path, monkeypatch):
    def refused(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with scripted(TERMS, answer(200, intermediates.to_bytes(batch()))) as server:
        with pytest.raises(StorageError, match=r"cannot remove .*\.fetching.*Permission denied.*remove it by hand"):
            with Remote(server.url, Trust("t")) as remote, fetched(remote, Wanted("a", 4), SHAPE, tmp_path):
                monkeypatch.setattr(fetching.shutil, "rmtree", refused)


def test_a_device_makes_no_picture_of_another_label_or_another_cut(tiny_bundle, tiny_intermediate, tmp_path):
    """The whole way: the bundle would have finished either."""
    finisher, progress = Finisher.load(tiny_bundle, threads=1), lambda what, total: lambda count: None
    right = dataclasses.replace(tiny_intermediate, labels=np.array([[0, 1, 0, 0]] * 5, dtype=np.uint8))
    cases = [
        (dataclasses.replace(right, labels=tiny_intermediate.labels), "asked for were images that each show just 2"),
        (dataclasses.replace(right, sigma=2.0), "stands at sigma 2, the bundle was trained for"),
    ]
    for number, (reply, says) in enumerate(cases):
        out = tmp_path / str(number)
        with scripted(TERMS, answer(200, intermediates.to_bytes(reply))) as server:
            with Remote(server.url, Trust("t")) as remote, pytest.raises(MismatchError, match=says):
                finish_from(finisher, Order(remote, 5), out, progress=progress, labels=["2"])
        assert not list(out.glob("*.png")) and not list((out / FOLDER).glob("*.safetensors"))
