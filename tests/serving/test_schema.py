"""The API against its own description: schemathesis makes right and wrong requests and reads the replies."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
# Most operations take nothing that could be varied; three do, and bring the examples together.
AMOUNTS = [
    pytest.param(3, 100, id="short"),
    pytest.param(1800, 5000, id="long", marks=pytest.mark.torture),
]
SETTINGS = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]
"""
"""503 is an answer of ours: busy, or not finished within the deadline that was asked for."""
SECONDS, ALL_SECONDS = 120, 3600


@pytest.fixture
def schemathesis():
    found = shutil.which("schemathesis", path=Path(sys.executable).parent) or shutil.which("schemathesis")
    if found is None:
        pytest.skip("schemathesis is not installed (make torture does it, or pip install 'collafuse[fuzz]')")
    return found


@pytest.mark.parametrize(("examples", "least"), AMOUNTS)
def test_no_request_makes_it_fail_or_answer_otherwise_than_it_says(
    serve, schemathesis, tmp_path, examples, least, record_property
):
    running = serve(images_per_minute=10_000_000, request_images=16)
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    command = [schemathesis, "run", f"{running.url}/openapi.json", "--checks", ",".join(CHECKS), "--no-color"]
    command += ["--header", f"Authorization: Bearer {running.token('north', 'admin')}", "--continue-on-failure"]
    command += ["--phases", "coverage,fuzzing", "--max-examples", str(examples), "--seed", "1"]
    command += ["--generation-database", "none", "--request-timeout", str(SECONDS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=ALL_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    count = re.search(r"(\d+) generated", done.stdout)
    assert count and int(count.group(1)) >= least, done.stdout[-2000:]
    record_property("figure", f"schemathesis: {count.group(1)} requests, no 500 and no reply against the description")
    assert not running.service.engine.ended
