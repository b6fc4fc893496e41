"""CollaFuse: several sites and one server train a diffusion model together; no image leaves its site.

Importing this package loads neither torch nor onnx, so it is safe on a device.
"""

import os

# From 1.29 on onnxruntime's own packages report to Microsoft, with an identifier that they keep in the user's cache
# folder. A device of ours tells nobody that it runs. It is read once, when onnxruntime is first imported; whoever
# wants the reports sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
