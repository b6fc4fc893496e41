"""Where torch computes."""

from __future__ import annotations

import torch

from ..core.errors import CollaFuseError, first_line

DEVICE_TYPES = ("cuda", "mps", "cpu")


def choose_device(name: str = "auto") -> torch.device:
    """The device named, or the best one there is: cuda, then mps, then cpu."""
    if name != "auto":
        try:
            device = torch.device(name)
            if device.type not in DEVICE_TYPES:
                raise RuntimeError(f"expected one of {', '.join(DEVICE_TYPES)}")
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise CollaFuseError(f"device {name!r} cannot be used: {first_line(error)}. Try --device auto.") from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
