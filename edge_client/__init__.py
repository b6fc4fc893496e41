"""The device side: load a bundle, finish the server's intermediates. Needs no torch.

from edge_client import Finisher
from collafuse.core import intermediate

finisher = Finisher.load("client.onnx")
images = finisher.finish(intermediate.read("intermediates.safetensors"))   # uint8 [N, H, W, C]
"""

from .finisher import Finisher

__all__ = ["Finisher"]
