"""Text on a device: chosen there or finished as it was delivered; which of the two, the bundle says."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from collafuse.core.conditioning import MAX_TEXT_WIDTH, TextSpace
from collafuse.core.errors import MismatchError, UsageError
from collafuse.core.intermediate import Intermediate
from collafuse.core.noise import SIGMA_MIN
from collafuse.core.texts import MAX_ASKED, EncodedText, Prompts
from collafuse.learning.weights import TrainedModel
from collafuse.serving.bodies import MAX_JSON_BYTES
from edge_client import Finisher
from edge_client.job import finish_to_folder
from edge_client.wanted import WantedText
from export.writer import export_client
from tests.nodes.sites import config
from tests.tiny import NETWORK, denoiser

SPACE = TextSpace("t5-4-00", 4)
ROWS = np.array([[1, -1, 1, -1], [-1, -1, 1, 1]], dtype=np.float16)
PROMPTS = Prompts(EncodedText(SPACE, ROWS), ("a cat", "a dog"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = TrainedModel(denoiser(NETWORK, (1, 8, 8), ("x", "y"), text=SPACE).eval(), "client", SIGMA_MIN, 0.5, 0)
    path = tmp_path_factory.mktemp("bundle") / "a.onnx"
    export_client(model, config(share_text=False).client("a"), "a", path)
    return path


@pytest.fixture(scope="module")
def finisher(bundle):
    return Finisher.load(bundle, threads=1)


def batch(count: int = 5, **changes) -> Intermediate:
    x = np.random.default_rng(0).standard_normal((count, 1, 8, 8)).astype(np.float32)
    return dataclasses.replace(Intermediate(x, 0.5, None, (), "m", "euler", 1, 1.0), **changes)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_the_bundle_knows_its_encoder_and_whose_choice_text_is(finisher):
    info = finisher.bundle.info
    assert info.text == SPACE and info.text_kept and not info.labels_kept


def test_prompts_chosen_here_are_what_a_server_would_have_delivered_for(finisher):
    delivered = batch(text=EncodedText(SPACE, ROWS[[0, 0, 0, 1, 1]]))
    here, there = finisher.reading(PROMPTS).finish(batch(), batch_size=2), finisher.finish(delivered)
    assert apart(here, there) <= 1 < apart(here, finisher.finish(batch()))


def test_labels_of_the_server_and_prompts_of_the_device_go_together(finisher):
    labels = np.eye(2, dtype=np.uint8)[[0, 1, 0, 1, 0]]
    both = finisher.reading(PROMPTS).finish(batch(labels=labels, label_names=("x", "y")))
    text = EncodedText(SPACE, ROWS[[0, 0, 0, 1, 1]])
    assert apart(both, finisher.finish(batch(labels=labels, label_names=("x", "y"), text=text))) <= 1
    assert apart(both, finisher.reading(PROMPTS).finish(batch())) > 1


def test_each_picture_says_its_prompt(finisher, tmp_path):
    finish_to_folder(finisher.reading(PROMPTS), batch(), tmp_path / "out")
    shown = [Image.open(io.BytesIO((tmp_path / "out" / f"{i:06d}.png").read_bytes())).text for i in range(5)]
    assert [one["collafuse:prompt"] for one in shown] == ["a cat"] * 3 + ["a dog"] * 2
    again = finish_to_folder(finisher.reading(PROMPTS), batch(), tmp_path / "out")
    assert again.finished == 0


def test_what_was_delivered_for_text_is_finished_as_that(finisher):
    delivered = batch(text=EncodedText(SPACE, ROWS[[0] * 5]))
    with pytest.raises(MismatchError, match="were made for text and are finished as that"):
        finisher.reading(PROMPTS).finish(delivered)


def test_text_of_another_encoder_and_more_prompts_than_images_are_refused(finisher, tiny_bundle):
    other = Prompts(EncodedText(TextSpace("t5-4-11", 4), ROWS), PROMPTS.prompts)
    with pytest.raises(MismatchError, match="the file of prompts holds text of the encoder t5-4-11 .* with t5-4-00"):
        finisher.reading(other)
    with pytest.raises(MismatchError, match="trained without text"):
        Finisher.load(tiny_bundle, threads=1).reading(PROMPTS)
    with pytest.raises(UsageError, match="2 texts and 1 images"):
        finisher.reading(PROMPTS).finish(batch(1))


def test_a_request_carries_no_more_texts_than_a_server_takes():
    many = EncodedText(SPACE, ROWS[np.zeros(MAX_ASKED + 1, dtype=int)])
    assert len(WantedText.of(many.take(slice(1, None))).rows) == MAX_ASKED
    with pytest.raises(UsageError, match="17 prompts; a server takes at most 16 at once of t5-4-00"):
        WantedText.of(many)


@pytest.mark.parametrize(("width", "most"), [(1024, 16), (2048, 8), (MAX_TEXT_WIDTH, 4)])
def test_wide_texts_are_asked_for_in_a_body_that_a_server_takes(width, most):
    many = EncodedText(TextSpace("t5", width), np.ones((most + 1, width), dtype=np.float16))
    body = {"client": "a" * 64, "count": 10_000, "text": dataclasses.asdict(WantedText.of(many.take(slice(1, None))))}
    assert len(json.dumps(body)) < MAX_JSON_BYTES - 2000
    with pytest.raises(UsageError, match=f"a server takes at most {most} at once"):
        WantedText.of(many)


def test_the_whole_graph_takes_text_too(bundle, finisher, tmp_path):
    from export.runtime import OnnxWhole

    model = TrainedModel(denoiser(NETWORK, (1, 8, 8), ("x", "y"), text=SPACE).eval(), "client", SIGMA_MIN, 0.5, 0)
    settings = config().client("a")
    settings = settings.model_copy(update={"sampler": settings.sampler.model_copy(update={"guidance": 2.0})})
    export_client(model, settings, "a", tmp_path / "whole.onnx", graph="whole")
    conditions = finisher.bundle.info.space.conditions(5, None, ROWS[[0, 0, 0, 1, 1]])
    pixels = OnnxWhole((tmp_path / "whole.onnx").read_bytes())(batch().x, conditions)
    guided = Finisher.load(bundle, threads=1, guidance=2.0).reading(PROMPTS).finish(batch())
    assert apart(pixels, guided) <= 1
