"""The device side: load a bundle, finish the server's intermediates. Needs no torch.

from edge_client import Finisher
from collafuse.core import intermediate

finisher = Finisher.load("client.onnx")
images = finisher.finish(intermediate.read("intermediates.safetensors"))   # uint8 [N, H, W, C]
"""

from typing import TYPE_CHECKING, Any

import collafuse  # noqa: F401  it switches off onnxruntime's reports, before onnxruntime is loaded

if TYPE_CHECKING:
    from .finisher import Finisher

__all__ = ["Finisher"]


def __getattr__(name: str) -> Any:
    """Load onnxruntime when it is asked for, so that ``doctor`` can run where it is missing or broken."""
    if name == "Finisher":
        from .finisher import Finisher

        return Finisher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
