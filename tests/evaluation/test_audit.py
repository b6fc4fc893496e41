"""The audit of a whole run: a careless one is found out, and a folder that cannot be audited says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.core.errors import DataError, UsageError
from collafuse.core.noise import system_noise
from collafuse.data.dealing import load_sites
from collafuse.evaluation import audit as audits
from collafuse.evaluation import features
from collafuse.nodes.runfolder import RunFolder
from tests.tiny import CPU


@pytest.fixture(scope="module")
def careless_run(digits_run: RunFolder, tmp_path_factory) -> Path:
    """The same run, but north sent everything twice and east with half the noise that it states."""
    path = tmp_path_factory.mktemp("careless") / "run"
    shutil.copytree(digits_run.path, path)
    config = digits_run.read_config()
    sites, quiet = load_sites(config), np.random.default_rng(0)
    for name, file, noise in (
        ("north", "north.2", system_noise),
        ("east", "east", lambda shape: 0.5 * quiet.standard_normal(shape)),
    ):
        images, cut = sites[name].train, config.client(name).cut.resolve()
        made = releases.make(
            [images.x0()], cut, noise, labels=images.labels, label_names=images.label_names, simulated=True
        )
        write_bytes(path / f"server/releases/{file}.safetensors", releases.to_bytes(made), overwrite=True)
    return path


def _audit(path: Path) -> audits.Audit:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"GENERATED": 32, "MOST_MEMBERS": 60, "MOST_RECONSTRUCTED": 64}.items():
            patch.setattr(audits, name, value)
        patch.setattr(features, "STEPS", 5)
        return audits.audit(RunFolder(path), CPU)


@pytest.fixture(scope="module")
def honest(digits_run: RunFolder) -> audits.Audit:
    return _audit(digits_run.path)


@pytest.fixture(scope="module")
def careless(careless_run: Path) -> audits.Audit:
    return _audit(careless_run)


def test_an_honest_run_has_figures_for_every_site_and_no_alarm(honest):
    assert honest.alarms == []
    assert [site.exposure.name for site in honest.sites] == ["north", "east", "south"]
    assert all(site.from_stored and site.gallery == 1000 for site in honest.sites)
    assert list(honest.membership) == ["server", "client north", "client east", "client south"]
    # Less noise, more recognised.
    assert honest.sites[0].reidentified[1].value > honest.sites[2].reidentified[1].value + 0.2
    titles = [table.title.partition(":")[0] for table in honest.tables]
    assert titles[1:5] == ["Re-identification", "Reconstruction", "Attribute inference", "Membership inference"]


def test_a_verdict_says_what_the_cut_does_not_protect(honest):
    verdict = honest.verdict[0]
    assert "north, cut at sigma 0.5" in verdict and "Not protected: which image it is" in verdict
    assert "so large that it rules out nothing" in verdict


def test_fresh_copies_and_too_little_noise_are_alarms_of_the_sites_that_sent_them(careless):
    assert {alarm.partition(":")[0] for alarm in careless.alarms} == {"north", "east"}
    alarms = " ".join(careless.alarms)
    assert "sent again with fresh noise, 2 copies each" in alarms
    assert "east: the release has too little noise: it states sigma 0.5, measured is 0.249" in alarms


def test_a_sites_figures_do_not_depend_on_the_others_and_are_the_same_again(honest, careless):
    south, again = (next(s for s in audit.sites if s.exposure.name == "south") for audit in (honest, careless))
    assert (south.reidentified, south.inferences, south.nearest) == (
        again.reidentified,
        again.inferences,
        again.nearest,
    )


def test_a_server_of_statistics_is_told_what_says_what_it_received(statistics_run):
    with pytest.raises(UsageError, match="adds up statistics: no image was released.*collafuse inspect"):
        audits.audit(statistics_run, CPU)


def test_a_server_alone_is_told_why_it_cannot_be_audited(digits_run, tmp_path):
    shutil.copytree(digits_run.path / "server", tmp_path / "at-server" / "server")
    with pytest.raises(DataError, match="without its sites' images"):
        _audit(tmp_path / "at-server")
