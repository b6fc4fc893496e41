"""Where "no condition" was never trained, nothing is finished with it: the pictures would look right and be noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from collafuse.core.bundle import read
from collafuse.core.conditioning import ConditionSpace, TextSpace
from collafuse.core.errors import MismatchError, UsageError
from collafuse.core.intermediate import Intermediate
from collafuse.core.texts import EncodedText, Prompts
from edge_client import Finisher, bench
from edge_client.finishing import Order, finish_from
from export.writer import export_client
from tests.bundles import steered_bundle

SHAPE = (1, 8, 8)
TEXT = TextSpace("t5-4-00", 4)
NAMES = ("x", "y")
ROWS = np.ones((3, 4), dtype=np.float16)


@pytest.fixture
def finisher_of(tmp_path):
    def make(names: tuple[str, ...] = NAMES, text: TextSpace | None = None, *, options=None, **changes) -> Finisher:
        path = tmp_path / "a.onnx"
        path.write_bytes(steered_bundle(SHAPE, ConditionSpace(names, text), **{"blank_trained": False, **changes}))
        return Finisher.load(path, threads=1, **(options or {}))

    return make


def batch(**changes) -> Intermediate:
    x = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    return dataclasses.replace(Intermediate(x, 0.5, None, (), "m", "euler", 1, 1.0), **changes)


def test_a_bundle_says_what_its_client_was_trained_with(tiny_bundle, tiny_model, tiny_config, tmp_path):
    north = tiny_config.client("north")
    assert north.training.label_dropout > 0 and read(tiny_bundle).info.blank_trained
    without = north.model_copy(update={"training": north.training.model_copy(update={"label_dropout": 0.0})})
    export_client(tiny_model, without, "north", tmp_path / "a.onnx")
    assert not read(tmp_path / "a.onnx").info.blank_trained


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_guidance_that_compares_with_it_is_refused(finisher_of, guidance):
    said = f"guidance={guidance:g} compares with images without a condition.*never trained.*expected 1.*label_dropout"
    with pytest.raises(UsageError, match=said):
        finisher_of(options={"guidance": guidance})
    with pytest.raises(UsageError, match=said):
        finisher_of(guidance=guidance)  # the bundle's own
    finisher_of(guidance=guidance, options={"guidance": 1.0})
    finisher_of(blank_trained=True, options={"guidance": guidance})


@pytest.mark.parametrize(
    ("names", "text", "offered"),
    [
        (NAMES, None, "no labels.*expected one of the labels x, y;"),
        (NAMES, TEXT, "no labels and no text.*expected one of the labels x, y and text of t5-4-00;"),
        ((), TEXT, "no text.*expected text of t5-4-00;"),
    ],
)
def test_images_of_which_nothing_is_said_are_refused(finisher_of, tmp_path, names, text, offered):
    finisher = finisher_of(names, text)
    said = f"the images carry {offered} choose"
    with pytest.raises(MismatchError, match=said):
        finisher.finish(batch())
    finisher_of(names, text, blank_trained=True).finish(batch())


def test_labels_all_absent_say_nothing_where_the_bundle_has_none(finisher_of):
    said = batch(labels=np.zeros((3, 1), dtype=np.uint8), label_names=("z",))
    finisher_of().finish(said)
    with pytest.raises(MismatchError, match="the images carry no text"):
        finisher_of((), TEXT).finish(said)


def test_one_of_two_does_not_do_where_neither_was_trained_without_the_other(finisher_of):
    """Without dropout each image had its labels and its text."""
    labelled = batch(labels=np.eye(3, 2, dtype=np.uint8), label_names=NAMES)
    with_text = batch(text=EncodedText(TEXT, ROWS))
    for one, lacking in ((labelled, "text"), (with_text, "labels")):
        with pytest.raises(MismatchError, match=f"the images carry no {lacking}, and the client north was never"):
            finisher_of(NAMES, TEXT).finish(one)
        finisher_of(NAMES, TEXT, blank_trained=True).finish(one)
    finisher_of(NAMES, TEXT).finish(dataclasses.replace(labelled, text=with_text.text))
    finisher_of(NAMES, TEXT).showing(["x"]).finish(with_text)


def test_a_label_or_a_text_will_do_delivered_or_chosen_here(finisher_of):
    text = EncodedText(TEXT, ROWS)
    finisher_of().showing(["x"]).finish(batch())
    finisher_of().finish(batch(labels=np.eye(3, 2, dtype=np.uint8), label_names=NAMES))
    finisher_of((), TEXT).reading(Prompts(text, ("a", "b", "c"))).finish(batch())
    finisher_of((), TEXT).finish(batch(text=text))


@pytest.mark.parametrize(
    ("names", "text", "kept"), [(NAMES, None, True), ((), TEXT, False), (NAMES, TEXT, True), (NAMES, TEXT, False)]
)
def test_an_order_without_a_condition_is_refused_before_anything_is_asked(finisher_of, tmp_path, names, text, kept):
    finisher = finisher_of(names, text, labels_kept=kept)
    with pytest.raises(MismatchError, match="the images carry no "):
        finish_from(finisher, Order(None, 3), tmp_path / "out", progress=lambda what, total: print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("names", "text"), [(NAMES, None), ((), TEXT), (NAMES, TEXT)])
def test_bench_has_something_to_finish(finisher_of, names, text):
    finisher = finisher_of(names, text)
    finisher.finish(bench.sample(finisher.bundle.info, 3))
