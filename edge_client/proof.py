"""A bundle's first load on this machine, in a process of its own: what it breaks there, it does not break here.

The checks of ``collafuse.core.bundle`` keep out what a bundle never holds. What is left is plain arithmetic, but a
graph can still ask for more memory than there is, compute for minutes, or meet a fault of onnxruntime that ends the
process (docs/reliability.md has figures). So the first load and the known-answer test run under limits, and that they
went well is remembered for this bundle, onnxruntime and machine.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence

import onnxruntime

from collafuse.core import bundle as bundles
from collafuse.core.bundle import Bundle
from collafuse.core.errors import CollaFuseError, FileFormatError

from . import caches, machine
from .child import ChildError, run_child
from .providers import CPU, default_batch_size

KIND = "proof"
PASSED = {"verdict": "gives its known answer"}
SECONDS = 300.0
"""How long the first load may take; a slow board with a large bundle needs a minute."""
PROCESSOR_SECONDS = 120
"""The same in processor time, which does not pass while the machine does something else."""
PRODUCTS_PER_SECOND = 4e9
"""Of weights and pixels, a second more is given for so many. A client for 128x128 on one fast core comes to 150e9."""
MOST_SECONDS_MORE = 3600.0
BASE_BYTES = 1 << 30
COPIES = 4
"""How often onnxruntime may hold a bundle's weights while it loads."""
BYTES_PER_PIXEL = 16 << 10
"""For what a network holds of each pixel in between: 200 channels in float32 at 20 places of its graph."""


def require(bundle: Bundle, say: Callable[[str], None] = lambda text: None) -> None:
    """Return once a bundle has given its known answer on this onnxruntime, now or before.

    ``say`` hears when that cannot be remembered. Raises FileFormatError, with the sentence of the process that tried it
    or with what became of that process.
    """
    # A cache may come from elsewhere: in a home folder on a network, or on a memory card that was copied.
    key = {"bundle": bundle.digest, "onnxruntime": onnxruntime.__version__, "machine": machine.identity()}
    if caches.read_entry(KIND, key) == PASSED:
        return
    try:
        refused = run_child("proof", (), SECONDS + seconds_more(bundle), bundle.data)["refused"]
    except ChildError as error:
        raise FileFormatError(
            f"onnxruntime {onnxruntime.__version__} was given the bundle in a process of its own first, where {error}; "
            "it is not loaded. Export it again or smaller, or use another onnxruntime."
        ) from error
    if refused:
        raise FileFormatError(str(refused))
    if not caches.write_entry(KIND, key, PASSED):
        say("The cache folder cannot be written, so each start tries the bundle first; collafuse doctor says more.")


def memory_limit(bundle: Bundle) -> int:
    """Bytes that a bundle's first load may hold, beside what Python, NumPy and onnxruntime hold without one."""
    return BASE_BYTES + COPIES * len(bundle.data) + BYTES_PER_PIXEL * _pixels(bundle)


def seconds_more(bundle: Bundle) -> float:
    """What a bundle's first load may take beyond SECONDS, and PROCESSOR_SECONDS, for its size.

    A convolution multiplies each weight with each pixel at most once, so this is an upper bound of the work.
    """
    return min(bundle.summary.num_parameters * _pixels(bundle) / PRODUCTS_PER_SECOND, MOST_SECONDS_MORE)


def _pixels(bundle: Bundle) -> int:
    """Pixels of the images that are evaluated at once."""
    shape = bundle.info.image_shape
    return math.prod(shape[1:]) * max(len(bundle.info.known_answer.sigmas), default_batch_size(CPU, shape))


def _limit(bundle: Bundle) -> None:
    """Limit this process, where the system can do that."""
    try:
        import resource
    except ImportError:
        return
    processor_seconds = PROCESSOR_SECONDS + math.ceil(seconds_more(bundle))
    # NumPy alone maps 41 MB for each core beyond the first, for matrix products that nobody asks of it.
    held = machine.mapped_bytes() + memory_limit(bundle)
    for kind, most in ((resource.RLIMIT_DATA, held), (resource.RLIMIT_CPU, processor_seconds)):
        hardest = resource.getrlimit(kind)[1]
        most = most if hardest == resource.RLIM_INFINITY else min(most, hardest)
        resource.setrlimit(kind, (most, hardest))


def main(arguments: Sequence[str]) -> None:
    """Load the bundle on stdin and run its known answer; print as JSON why not, or an empty text."""
    from .session import open_session

    bundle = bundles.from_bytes(sys.stdin.buffer.read(), "the bundle")
    _limit(bundle)
    refused = ""
    try:
        open_session(bundle, CPU)
    except CollaFuseError as error:
        refused = str(error)
    print(json.dumps({"refused": refused}))  # noqa: T201
