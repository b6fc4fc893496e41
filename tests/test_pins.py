"""pins/: what a device installs, each file by its digest."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"^([a-z0-9-]+)==([^ ;\\]+)(?: ; ([^\\]+?))? \\$")


def pinned(name):
    """Name and version of each requirement of a file, with how many digests it has."""
    found, digests = [], []
    for line in (ROOT / "pins" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if match := LINE.match(line):
            found.append((match[1], match[2]))
            digests.append(0)
        else:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
            digests[-1] += 1
    assert found and all(digests)
    return found


def needed(extra):
    tomllib = pytest.importorskip("tomllib", reason="Python reads TOML from 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return {re.split(r"[<>=! ;\[]", text)[0].lower() for text in wanted}


@pytest.mark.parametrize(("name", "extra"), [("device.txt", None), ("device-sign.txt", "sign")])
def test_every_dependency_of_a_device_is_pinned_to_the_tested_version_by_digests(name, extra):
    tested = set(
        re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    found = pinned(name)
    assert needed(extra) <= {package for package, _ in found}
    assert {one for one in found if one[0] != "pyreadline3"} <= tested, "run make pins"  # Windows alone asks for it
    assert ("cryptography" in dict(found)) == (extra == "sign")
