"""CollaFuse: several sites and one server train a diffusion model together; no image leaves its site.

Importing this package loads neither torch nor onnx, so it is safe on a device.
"""

__version__ = "0.1.0"
