"""All nodes in one process, and what each folder may hold."""

from __future__ import annotations

import pytest

from collafuse.core import release as releases
from collafuse.data.dealing import load_sites
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.runfolder import RunFolder
from tests.tiny import CPU, Recorder


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    run_experiment(tiny_config, folder, CPU, lambda name: Recorder())
    return folder


def test_resuming_releases_nothing_again(tiny_config, run):
    files = {p: p.read_bytes() for p in run.server.releases.iterdir()}
    run_experiment(tiny_config, run, CPU, lambda name: Recorder(), resume=True)
    assert {p: p.read_bytes() for p in run.server.releases.iterdir()} == files
    assert len(files) == 3 and all(releases.read(p).simulated for p in files)


def test_the_servers_folder_holds_no_clean_image_and_no_ledger(tiny_config, run):
    files = [p for p in run.server.path.rglob("*") if p.is_file()]
    assert not [p for p in files if "ledger" in p.name]
    pixels = [one for site in load_sites(tiny_config).values() for one in site.train.pixels[:20]]
    needles = [p.tobytes() for p in pixels] + [(p / 127.5 - 1).astype("f4").tobytes() for p in pixels]
    assert not [p for p in files if any(needle in p.read_bytes() for needle in needles)]


def test_warm_start_begins_at_the_servers_weights(tiny_config, tmp_path):
    done = run_experiment(tiny_config, RunFolder(tmp_path), CPU, lambda name: Recorder(), warm_start=True)
    sigma_data = done.server.model.denoiser.sigma_data
    assert all(model.denoiser.sigma_data == sigma_data for model in done.models.values())
