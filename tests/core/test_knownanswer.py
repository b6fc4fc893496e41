"""collafuse.core.knownanswer: the input that everybody makes, and the places of an output that are kept."""

from __future__ import annotations

import numpy as np

from collafuse.core.conditioning import ConditionSpace
from collafuse.core.knownanswer import known_answer_input, known_answer_values


def test_known_answer_inputs_are_the_same_everywhere():
    """The numbers are part of the format: a device must come to the very same input."""
    x, sigma, labels = known_answer_input((1, 1, 2), ConditionSpace(("a", "b")), (0.5, 1.0, 2.0, 4.0))
    expected = [
        (0.5 * np.cos(0.37 * i) + 0.5 * np.sin(1.73 * i)) * (0.5 + level)
        for i, level in enumerate(np.repeat([0.5, 1.0, 2.0, 4.0], 2))
    ]
    np.testing.assert_allclose(x.ravel(), expected, rtol=1e-6)
    assert sigma.tolist() == [0.5, 1.0, 2.0, 4.0]
    assert labels.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert {a.dtype for a in (x, sigma, labels)} == {np.dtype(np.float32)}


def test_known_answer_inputs_of_a_model_without_labels():
    assert known_answer_input((1, 1, 1), ConditionSpace(), (0.5, 1.0))[2].tolist() == [[1], [1]]


def test_a_known_answer_keeps_both_ends_of_an_output():
    values = known_answer_values(np.arange(1000, dtype=np.float32).reshape(10, 1, 10, 10), 5)
    assert values.tolist() == [0, 249, 499, 749, 999]
    assert known_answer_values(np.arange(3, dtype=np.float32)).tolist() == [0, 1, 2]
