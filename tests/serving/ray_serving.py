"""Serves a run folder with Ray on this machine until its input ends; says its URL. For `test_ray.py`, as a process."""

from __future__ import annotations

import json
import sys

import ray
from ray import serve

from collafuse.serving.ray_app import build


def main(port: int, arguments: dict[str, object]) -> None:
    """Serve on loopback."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(arguments), name="collafuse")
    print(f"http://127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
