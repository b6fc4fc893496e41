"""Where the time of an evaluation goes, by the operators that onnxruntime runs in the end, from its own profile.

What is not in the convolutions is what a client leaves of the machine's limit: norms, SiLU, and the turns between the
layout that convolutions want and the one that everything else has.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import onnxruntime

from collafuse.core.bundle import INPUTS, Bundle
from collafuse.core.knownanswer import known_answer_input

CALLS = 100
SHOWN = 7


def operator_shares(bundle: Bundle, threads: int) -> dict[str, float]:
    """Each operator's share of the time that all of them take for one image, the largest first."""
    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # as on a device
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "calls")
        session = onnxruntime.InferenceSession(bundle.data, options, providers=["CPUExecutionProvider"])
        one = known_answer_input(bundle.info.image_shape, bundle.info.space, (bundle.info.sigma_max,))
        for _ in range(CALLS):
            session.run(None, dict(zip(INPUTS, one, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_bytes())
    spent = Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {operator: microseconds / spent.total() for operator, microseconds in spent.most_common()}


def sentence(bundle: Bundle, threads: int) -> str:
    """The largest shares in one line."""
    shares = operator_shares(bundle, threads)
    named = [f"{operator} {share:.0%}" for operator, share in list(shares.items())[:SHOWN]]
    rest = sum(list(shares.values())[SHOWN:])
    return f"An evaluation in {bundle.info.precision} spends: {', '.join(named)}, all else {rest:.0%}."
