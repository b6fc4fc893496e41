"""Where torch computes: the best device there is, or the one that was named."""

import pytest
import torch

from collafuse.core.errors import CollaFuseError
from collafuse.learning.device import choose_device


def test_a_device_is_chosen_and_can_be_named():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device().type == best and choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "", "meta"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(CollaFuseError, match=f"device '{name}' cannot be used.*--device auto"):
        choose_device(name)
