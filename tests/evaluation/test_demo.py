"""collafuse.evaluation.demo: the step that plays a device."""

from __future__ import annotations

from pathlib import Path

from collafuse.core import intermediate as intermediates
from collafuse.evaluation.demo import finish_as_device


def test_the_device_imports_nothing_from_the_users_folder(tiny_bundle, tiny_intermediate, tmp_path, monkeypatch):
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "a.onnx").write_bytes(Path(tiny_bundle).read_bytes())
    (tmp_path / "a.safetensors").write_bytes(intermediates.to_bytes(tiny_intermediate))
    monkeypatch.chdir(tmp_path)
    report = finish_as_device(Path("a.onnx"), Path("a.safetensors"), Path("pictures"))
    assert report["images"] == len(list((tmp_path / "pictures").glob("0*.png"))) == len(tiny_intermediate)
