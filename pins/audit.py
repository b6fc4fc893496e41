"""Whether a version that a device installs has a vulnerability that is known: asks through pip-audit, where that can.

``python -m pins.audit FILE``: ends with 0 where nothing is known, 1 where something is, 3 where nobody could be asked.
"""

from __future__ import annotations

import json
import subprocess
import sys

NOBODY = 3


def audit(file: str) -> tuple[int, str]:
    """The exit code and what to say."""
    command = [sys.executable, "-m", "pip_audit", "-r", file, "--require-hashes", "--disable-pip", "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return NOBODY, f"{file} was not checked: pip-audit could ask nobody ({last[:200]})."
    asked = [one for one in found if "vulns" in one]
    lines = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in asked
        for hole in one["vulns"]
    ]
    if lines:
        return 1, "\n".join([f"{len(lines)} known vulnerabilities in {file}:", *lines])
    if len(asked) < len(found):
        missing = len(found) - len(asked)
        return (
            NOBODY,
            f"{missing} of {len(found)} versions in {file} could not be looked up from here, so it is not known.",
        )
    return 0, f"{len(asked)} versions in {file}: no vulnerability is known."


if __name__ == "__main__":
    code, text = audit(sys.argv[1])
    print(text)  # noqa: T201
    sys.exit(code)
