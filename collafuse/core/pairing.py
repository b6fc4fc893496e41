"""Whether an intermediate and a bundle fit each other."""

from __future__ import annotations

from .bundle import BundleInfo
from .conditioning import Conditions, ConditionSpace, check_same_text, indices_of, translate_labels
from .errors import MismatchError, UsageError
from .intermediate import Intermediate, Source
from .noise import SIGMA_SLACK


def check_pair(intermediate: Source, info: BundleInfo) -> None:
    """Raise MismatchError, naming both values, unless the bundle can finish the intermediate.

    The level must lie in the bundle's trained range, shapes must be equal, labels known to the bundle, text of the
    encoder that it was trained with.
    """
    if intermediate.image_shape != info.image_shape:
        raise MismatchError(
            f"the intermediate holds images of shape {list(intermediate.image_shape)}, the bundle finishes "
            f"{list(info.image_shape)}; use the bundle that belongs to this intermediate."
        )
    if not info.sigma_min < intermediate.sigma <= info.sigma_max * (1 + SIGMA_SLACK):
        raise MismatchError(
            f"the intermediate stands at sigma {intermediate.sigma:g}, the bundle was trained for "
            f"({info.sigma_min:g}, {info.sigma_max:g}]; let the server deliver to this client, whose cut and "
            "handover both sides must configure alike."
        )
    indices_of(intermediate.used_labels, info.label_names)
    if intermediate.text_space is not None:
        check_same_text(intermediate.text_space, info.text, "the intermediate")


def check_guidance(guidance: float, info: BundleInfo) -> None:
    """Raise UsageError for guidance by a comparison that the bundle's client never learned."""
    if guidance != 1.0 and not info.blank_trained:
        raise UsageError(
            f"guidance={guidance:g} compares with images without a condition, on which the client {info.client} was "
            "never trained; expected 1. Finish with --guidance 1, or let its site train it with "
            "training.label_dropout above 0, such as 0.1."
        )


def check_stated(labelled: bool, with_text: bool, info: BundleInfo) -> None:
    """Raise MismatchError where images lack labels or text that the bundle knows, unless its client was trained on
    such: where it never was without a condition, it never was without either of them.

    labelled: whether they have labels, be they all absent, which says nothing to a bundle that knows none.
    """
    known = [
        ("labels", labelled, f"one of the labels {', '.join(info.label_names)}" if info.label_names else ""),
        ("text", with_text, f"text of {info.text.encoder}" if info.text is not None else ""),
    ]
    lacking = [name for name, there, expected in known if expected and not there]
    if info.blank_trained or not lacking:
        return
    raise MismatchError(
        f"the images carry no {' and no '.join(lacking)}, and the client {info.client} was never trained without; "
        f"expected {' and '.join(expected for _, _, expected in known if expected)}; choose with --label, --attributes "
        "or --text, or let its site train it with training.label_dropout above 0, such as 0.1."
    )


def conditions_for(intermediate: Intermediate, space: ConditionSpace) -> Conditions:
    """Conditions [N, W] of an intermediate as a model takes them.

    Raises MismatchError when it carries a label that the model does not know, or text of another encoder.
    """
    labels, text = intermediate.labels, intermediate.text
    if labels is not None:
        labels = translate_labels(labels, intermediate.label_names, space.label_names)
    if text is not None:
        check_same_text(text.space, space.text, "the intermediate")
    return space.conditions(len(intermediate), labels, None if text is None else text.rows)
