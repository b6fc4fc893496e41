"""The audit of a whole run: a careless one is found out, and a folder that cannot be audited says why."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from collafuse.core import release as releases
from collafuse.core.atomic import PARTIAL_PREFIX, write_bytes
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.errors import DataError, RefusedError, RuntimeMissingError
from collafuse.core.noise import system_noise
from collafuse.data.dealing import SiteData, load_sites
from collafuse.evaluation import audit as audits
from collafuse.evaluation import features, models_attacked, whole_run
from collafuse.evaluation.attacks import exposure as exposures
from collafuse.evaluation.attacks.exposure import expose
from collafuse.evaluation.attacks.finding import Share
from collafuse.evaluation.audit_tables import verdict as verdict_of
from collafuse.evaluation.whole_run import WholeRun, conditions_of
from collafuse.nodes.runfolder import RunFolder
from tests.tiny import CPU, image_set


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
        for name, value in {"GENERATED": 32, "MOST_MEMBERS": 60}.items():
            patch.setattr(models_attacked, name, value)
        patch.setattr(audits, "MOST_RECONSTRUCTED", 64)
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


def test_labels_that_are_sent_are_not_called_protected(honest):
    """Whatever the cut: they lie in the file as they are."""
    for site, verdict in zip(honest.sites, honest.verdict, strict=True):
        protected = verdict.partition("No better than guessing")[0]
        assert "its labels, which are sent as they are" in protected
        silent = replace(site, exposure=replace(site.exposure, labels_shared=False))
        assert "sent as they are" not in verdict_of(silent)
        told = replace(site, exposure=replace(site.exposure, text_shared=True))
        assert "its captions, whose numbers can be read back" in verdict_of(told)


def test_a_server_of_labels_was_told_nothing_of_images_without_any():
    space = ConditionSpace(("a", "b"))
    unlabelled, labelled = (conditions_of(image_set(2, names), space).tolist() for names in ((), ("a", "b")))
    assert unlabelled == [[0, 0, 1]] * 2 and labelled == [[1, 0, 0], [0, 1, 0]]


def test_the_server_is_asked_with_what_it_was_told(digits_run, monkeypatch):
    run = WholeRun.open(digits_run, CPU)
    images, space = run.sites["north"].train, run.server.model.space
    assert np.array_equal(run.told("north", images), conditions_of(images, space))
    monkeypatch.setitem(run.server.sites, "north", replace(run.server.sites["north"], label_names=None))
    assert np.array_equal(run.told("north", images), space.conditions(len(images), None))


def test_repeated_noise_is_looked_for_where_the_server_stops_above_the_cut_too(digits_run):
    run = WholeRun.open(digits_run, CPU)
    site = run.sites["north"]
    exposure = expose("north", site.train, site.held_out, run.releases["north"])
    above = run.config.client("north").model_copy(update={"handover": 2.0})
    run.server.config = run.config.model_copy(update={"clients": {**run.config.clients, "north": above}})
    assert run.server.handover_sigma("north") == 2 * exposure.sigma
    repeated = models_attacked.memorised(run, "north", exposure.images, exposure.held_out, 0, exposure.z)[1]
    assert repeated is not None and not repeated.alarm


def test_groups_that_were_held_out_whole_are_counted_as_groups(digits_run):
    run = WholeRun.open(digits_run, CPU)
    north = run.sites["north"]

    def found():
        def denoise(x, sigma, conditions):
            return 0 * x

        return models_attacked.attacked(
            run, "north", denoise, lambda images: np.zeros((len(images), 3), np.float32), [1.0], 0
        )

    def of_patients(part, side):
        energy = (part.x0() ** 2).sum(axis=(1, 2, 3))  # what the score is, so that a patient's images score alike
        return replace(
            part, groups=np.array([f"{side} {5 * rank // len(part)}" for rank in energy.argsort().argsort()])
        )

    alone = found()
    patients = [of_patients(part, side) for part, side in zip(north.parts, ("trained on", "held out"), strict=True)]
    run.sites["north"] = SiteData(*patients)
    assert found().auc == alone.auc and found().error > 1.5 * alone.error


def test_no_estimate_is_told_the_labels_that_a_site_keeps(digits_run, monkeypatch):
    run = WholeRun.open(digits_run, CPU)
    monkeypatch.setitem(run.server.sites, "north", replace(run.server.sites["north"], label_names=None))
    site, told = run.sites["north"], []

    def asked(model, device):
        def denoise(x, sigma, conditions):
            told.append(conditions)
            return x

        return denoise

    monkeypatch.setattr(audits, "asked", asked)
    exposure = replace(expose("north", site.train, site.held_out, run.releases["north"]), labels_shared=False)
    audits._reconstruct(run, exposure, exposure.z, None, np.random.default_rng(0))
    assert len(told) == 4  # the server's denoiser and the client's, of the image's own release and of another's
    for conditions, model in zip(told, np.repeat([run.server_model, run.models["north"]], 2), strict=True):
        assert np.array_equal(conditions, model.space.conditions(len(conditions), None))


@pytest.fixture
def of_labels_alone(digits_run, monkeypatch):
    """North, and denoisers that look at what they are told alone; the mean image knows nothing of labels, as where
    there are few images of each, several attributes, or text."""
    monkeypatch.setattr("collafuse.evaluation.attacks.reconstruction.LEAST_OF_A_LABEL", 10**6)
    run = WholeRun.open(digits_run, CPU)
    train = run.sites["north"].train
    means = np.stack([train.take(train.labels[:, i] == 1).x0().mean(axis=0) for i in range(2)])
    monkeypatch.setattr(audits, "asked", lambda model, device: lambda x, sigma, told: means[told[:, :2].argmax(axis=1)])
    return run, expose("north", train, run.sites["north"].held_out, run.releases["north"])


def test_pure_noise_gives_nothing_away_to_denoisers_that_are_told_what_the_mean_image_is_not(of_labels_alone):
    run, exposure = of_labels_alone
    rng = np.random.default_rng(0)
    noise = (exposure.sigma * rng.standard_normal(exposure.z.shape)).astype(np.float32)
    found, _ = audits._reconstruct(run, exposure, noise, None, rng)
    assert [one.name for one in found if one.alarm] == [] and len(found) == 3
    assert found[1].psnr_db > found[0].psnr_db + 0.3  # it is told something, though not by the release


def test_what_a_release_itself_gives_away_still_counts_for_a_denoiser_that_is_told_more(of_labels_alone, monkeypatch):
    run, exposure = of_labels_alone
    monkeypatch.setattr(audits, "asked", lambda model, device: lambda x, sigma, told: x / (1 + sigma**2))
    found, _ = audits._reconstruct(run, exposure, exposure.z, None, np.random.default_rng(0))
    assert [one.alarm for one in found] == [True] * 3


def test_what_the_server_learns_is_not_said_by_a_denoiser_that_it_does_not_have(honest):
    site = honest.sites[0]
    server, wiener = (replace(site.reconstructions[i], gain_db=g, gain_error=0.1) for i, g in ((1, 2.0), (0, 1.0)))
    client = replace(server, name="client's denoiser", gain_db=5.0)
    said = verdict_of(replace(site, reconstructions=(wiener, server, client)))
    assert "the best estimate (server's denoiser) is 2.0 dB nearer" in said
    assert "whoever has the client's bundle too: 5.0 dB nearer" in said
    nothing = [replace(one, gain_db=-1.0) for one in (wiener, server)]
    said = verdict_of(replace(site, reconstructions=(*nothing, client)))
    protected = said.partition("No better than guessing: ")[2]
    assert "the best estimate" not in said and "no estimate of the server comes nearer" in protected
    assert "bundle too: 5.0 dB nearer" in said and "bundle too" not in protected
    behind = replace(client, gain_db=1.5)
    assert "bundle" not in verdict_of(replace(site, reconstructions=(wiener, server, behind)))


def test_what_chance_seldom_does_is_not_called_no_better_than_guessing(honest):
    """4 of 37 recognised of 170, and 2.4 dB beyond the 95 % interval, were said to be no better than guessing."""
    site = honest.sites[0]
    inference = replace(site.inferences[0], accuracy=0.62, chance_error=0.04)
    wiener = replace(site.reconstructions[0], gain_db=2.4, gain_error=0.6)
    shares = {k: Share(4, 37, 1 / 170) for k in site.reidentified}
    seldom = replace(site, reidentified=shares, inferences=(inference,), reconstructions=(wiener,))
    said = verdict_of(seldom)
    perhaps = said.partition("Perhaps not protected, since chance alone seldom does as well: ")[2].split("Formal")[0]
    assert "right one in 11% of cases" in perhaps and "2.4 dB nearer" in perhaps and "in 62% of cases" in perhaps
    assert "No better than guessing" not in said and "no estimate of the server" not in said
    kept = replace(seldom, exposure=replace(site.exposure, labels_shared=False))
    assert "No attack here beats guessing" not in verdict_of(kept)
    often = replace(inference, accuracy=0.55)
    nothing = replace(kept, reidentified={k: Share(0, 37, 1 / 170) for k in shares}, inferences=(often,))
    said = verdict_of(replace(nothing, reconstructions=(replace(wiener, gain_db=1.0),)))
    assert "No attack here beats guessing." in said and "Perhaps" not in said


def test_a_sites_own_order_of_labels_changes_no_reconstruction(digits_run):
    run = WholeRun.open(digits_run, CPU)
    site = run.sites["north"]
    exposure = expose("north", site.train, site.held_out, run.releases["north"])
    turned = replace(
        exposure, images=site.train.with_labels(("1", "0")), held_out=site.held_out.with_labels(("1", "0"))
    )
    found, again = (
        audits._reconstruct(run, one, one.z, None, np.random.default_rng(0))[0][0] for one in (exposure, turned)
    )
    assert found.name == "Wiener filter" and found == again


def test_a_part_of_a_large_site_is_attacked_and_said_and_a_site_of_three_images_is_no_obstacle(digits_run, monkeypatch):
    def load(config, listener):
        sites = load_sites(config)
        few = SiteData(sites["north"].train.take(np.arange(3)), sites["north"].held_out.take(np.arange(0)))
        return {"north": few, "east": sites["east"]}

    monkeypatch.setattr(whole_run, "load_sites", load)
    for name, value in {"MOST_ATTACKED": 80, "FEWEST_ATTACKED": 80}.items():
        monkeypatch.setattr(exposures, name, value)
    found = _audit(digits_run.path)
    north, east = found.sites
    assert north.reconstructions == () and len(east.exposure.z) == 80 and east.from_stored
    received = found.tables[0]
    columns = dict(zip(received.columns, received.rows[1], strict=True))
    whole = len(load_sites(digits_run.read_config())["east"].train)
    assert (columns["releases"], columns["releases looked at"]) == (whole, 80)
    assert f"Of {whole} images 80 were attacked." in found.verdict[1]
    assert any(note.startswith("Of north, east a part was attacked") for note in received.notes)
    assert {alarm.partition(":")[0] for alarm in found.alarms} == {"north"}  # more releases than images


def test_where_no_site_holds_out_enough_it_is_said_why_nothing_was_asked_about_membership(
    honest, digits_run, monkeypatch
):
    monkeypatch.setattr(models_attacked, "FEWEST_OTHERS", 10**6)
    said: list[str] = []
    assert models_attacked.memberships(WholeRun.open(digits_run, CPU), 0, said.append) == {}
    assert [note.split()[0] for note in said] == ["north", "east", "south"] and "too few to ask" in said[0]
    shown = replace(honest, membership={}, notes=tuple(said)).tables
    assert not any("Membership" in table.title for table in shown)
    assert [note for table in shown for note in table.notes if note in said] == said


def test_a_bundle_that_was_never_finished_is_not_asked(tmp_path):
    said: list[str] = []
    (tmp_path / f"{PARTIAL_PREFIX}x.onnx").write_bytes(b"")
    run = SimpleNamespace(folder=RunFolder(tmp_path), sites={}, models={}, server_model=None)
    assert models_attacked.memberships(run, 0, said.append) == {} and said == []


def test_a_bundle_that_cannot_be_asked_ends_no_audit(tmp_path, monkeypatch):
    """As one of another run, for images of another size: onnxruntime's error about sizes took all that was found."""

    def denoise(x, sigma, conditions):
        raise RuntimeMissingError("onnxruntime cannot run the bundle")

    def load(path):
        side = 28 if path.stem == "larger" else 8
        info = SimpleNamespace(client="north", image_shape=(1, side, side), sigma_min=0.002, sigma_max=1.0)
        info.space = images.space
        return SimpleNamespace(bundle=SimpleNamespace(info=info), model=denoise)

    images, said = image_set(24, side=8), list[str]()
    for name in ("larger", "broken"):
        (tmp_path / f"{name}.onnx").write_bytes(b"")
    monkeypatch.setattr(models_attacked.Finisher, "load", load)
    run = SimpleNamespace(folder=RunFolder(tmp_path), sites={"north": SiteData(images, images)}, models={})
    run.server_model = None
    assert models_attacked.memberships(run, 0, said.append) == {}
    assert said == [
        "broken.onnx was not asked: onnxruntime cannot run the bundle",
        "larger.onnx was not asked: it makes images of [1, 28, 28], and those of north are [1, 8, 8].",
    ]


def test_a_gallery_holds_the_attacked_first_and_each_image_once(digits_run):
    run = WholeRun.open(digits_run, CPU)
    site = run.sites["north"]
    exposure = expose("north", site.train, site.held_out, run.releases["north"])
    twice = replace(exposure, held_out=exposure.images)  # all of them again
    gallery = whole_run.gallery_of(run, twice, np.arange(5, 25))
    assert np.array_equal(gallery[:20], exposure.images.x0()[5:25])
    flat = gallery.reshape(len(gallery), -1)
    assert len(gallery) == whole_run.GALLERY and len(np.unique(flat, axis=0)) == len(gallery)


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


def test_a_run_of_statistics_opens_with_what_its_sites_sent(statistics_run):
    run = WholeRun.open(statistics_run, CPU)
    assert run.server_model is None and run.releases == {}
    counted = {name: files[0].counts.tolist() for name, files in run.statistics.items()}
    assert counted == {name: site.train.labels.sum(axis=0).tolist() for name, site in run.sites.items()}


def test_a_baseline_is_told_that_it_is_none_to_audit(digits_run, tmp_path):
    (tmp_path / "run" / "models").mkdir(parents=True)
    RunFolder(tmp_path / "run").write_config(digits_run.read_config().model_copy(update={"method": "local"}))
    with pytest.raises(RefusedError, match="baseline 'local'.* an audit or a plan needs a run of collafuse"):
        audits.audit(RunFolder(tmp_path / "run"), CPU)


def test_a_server_alone_is_told_why_it_cannot_be_audited(digits_run, tmp_path):
    shutil.copytree(digits_run.path / "server", tmp_path / "at-server" / "server")
    with pytest.raises(DataError, match="without its sites' images"):
        _audit(tmp_path / "at-server")
