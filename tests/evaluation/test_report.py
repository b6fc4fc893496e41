"""collafuse.evaluation.report: one page, whole, with everything inside and nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from collafuse.config import from_mapping
from collafuse.core.atomic import PARTIAL_PREFIX
from collafuse.core.errors import FileFormatError
from collafuse.evaluation import baselines
from collafuse.evaluation.page import paragraph, results_table
from collafuse.evaluation.report import _curves, _results, write_page
from collafuse.evaluation.standing import standing_of
from collafuse.evaluation.tables import Table, write_results
from collafuse.nodes.runfolder import RunFolder
from tests.evaluation.conftest import SETTINGS, train
from tests.tiny import CPU, Recorder

VOID = {"meta", "img", "line", "rect", "polyline", "br"}


class Structure(HTMLParser):
    """Refuses tags that do not nest, and collects what is there."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory) -> RunFolder:
    folder = RunFolder(shutil.copytree(digits_run.path, tmp_path_factory.mktemp("reported") / "run"))
    write_results(
        folder.path / "evaluation" / "audit.json", [Table("Who <is> it?", ("of", "rate"), (("a & b", 0.5),), ("n",))]
    )
    picture = folder.path / "evaluation" / "audit" / "reconstruction.png"
    picture.parent.mkdir()
    Image.new("L", (3, 2)).save(picture)
    return folder


@pytest.fixture(scope="module")
def html(run) -> str:
    return write_page(run, device=CPU)


def test_the_page_nests_and_loads_nothing_from_elsewhere(html):
    tags = Structure(html).tags
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "object")]
    sources = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"url\(|@import", html)


def test_every_picture_opens_and_says_what_it_shows(html):
    images = [attributes for tag, attributes in Structure(html).tags if tag == "img"]
    assert len(images) == 4 * 3 + 3 + 1  # rows by clients, neighbours, the audit's
    for one in images:
        assert one["alt"]
        Image.open(io.BytesIO(base64.b64decode(one["src"].split(",")[1]))).verify()


def test_clients_stand_in_the_order_of_their_cuts(html):
    heads = re.findall(r"<th>(\w+): sigma ([\d.]+)", html)
    assert [float(sigma) for _, sigma in heads] == sorted(float(sigma) for _, sigma in heads) == [0.5, 0.5, 1.5]


def test_clients_stand_in_the_order_of_what_the_server_sees_not_of_where_they_take_over(tmp_path):
    handovers = {"north": {"handover": 4.0}, "east": {}, "south": {"handover": 1.0}}
    clients = {name: one | handovers[name] for name, one in SETTINGS["clients"].items()}
    html = write_page(train(tmp_path / "run", clients=clients), device=CPU)
    assert re.findall(r"<th>(\w+): sigma ([\d.]+)[^<]*?(, takes over at sigma [\d.]+)?</th>", html) == [
        ("east", "0.5", ", takes over at sigma 1"),
        ("north", "0.5", ", takes over at sigma 2"),
        ("south", "1.5", ""),
    ]
    assert "the further right, the less the server sees" in html


def test_the_page_of_a_model_without_a_cut_speaks_of_none(tmp_path):
    run = RunFolder(tmp_path / "run")
    baselines.train(from_mapping(SETTINGS | {"method": "centralised"}), run, CPU, lambda node: Recorder())
    html = write_page(run, device=CPU)
    assert "<th>south</th>" in html and "there is no cut" in html and "the less the server sees" not in html
    assert "<code>collafuse evaluate RUN</code> does" in html
    for command in ("audit", "plan"):  # they refuse a baseline, so a reader would ask in vain
        assert f"<code>collafuse {command}</code> is of the method" in html


def test_the_page_of_statistics_does_not_say_that_the_server_sees_images(statistics_run):
    html = write_page(statistics_run, device=CPU)
    assert "The server saw statistics, and no image in any form." in html and "less the server sees" not in html


def test_results_are_shown_and_what_is_missing_is_said(html):
    assert "Who &lt;is&gt; it?" in html
    assert "a &amp; b" in html
    assert "collafuse evaluate RUN" in html
    assert "collafuse plan RUN" in html
    assert "collafuse audit RUN" not in html


def test_what_audit_and_plan_say_in_words_stands_above_their_tables(run, tmp_path):
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    audit, plan = (copy.path / "evaluation" / f"{name}.json" for name in ("audit", "plan"))
    table = [Table("Figures", ("of",), (("a",),))]
    write_results(audit, table, alarms=["north: <sent> twice."], verdict=["Not protected: which image it is."])
    write_results(plan, table, conclusions=["north: no cut meets what is asked."])
    html = write_page(copy, device=CPU)
    said = [
        "ALARM: north: &lt;sent&gt; twice.",
        "Not protected: which image it is.",
        "<h3>Figures",
        "north: no cut meets",
    ]
    places = [html.find(text) for text in said]
    assert -1 not in places and places == sorted(places)
    write_results(audit, table, verdict="a text")
    with pytest.raises(FileFormatError, match=r"audit\.json.*verdict"):
        write_page(copy, device=CPU)


def test_figures_of_a_run_that_samples_otherwise_since_are_said_to_be_of_before(run, tmp_path):
    """train --resume --set client.sampler.steps=24 changes what devices make, and the page showed the old figures."""
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))))
    before, config = standing_of(copy), copy.read_config()
    write_results(copy.path / "evaluation" / "evaluation.json", [], standing=before)
    said = "its models, or how they sample, are others now. <code>collafuse evaluate RUN</code> measures it anew"
    html = "".join(_results(copy, "collafuse"))
    north = config.client("north")
    more = north.model_copy(update={"sampler": north.sampler.model_copy(update={"steps": 24})})
    copy.write_config(config.model_copy(update={"clients": {**config.clients, "north": more}}))
    # The audit's file does not say of what it is.
    assert said not in html and "".join(_results(copy, "collafuse")).count("others now") == 1
    copy.write_config(config)
    shutil.copy(copy.client("south").weights, copy.client("north").weights)
    assert standing_of(copy) != before


def test_autoguidance_that_is_off_does_not_make_a_run_another(run, tmp_path, monkeypatch):
    """Runs that were measured before there was any would all be said to be others now."""
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))))
    hashed, dumps = [], json.dumps
    monkeypatch.setattr("collafuse.evaluation.standing.json.dumps", lambda value: hashed.append(value) or dumps(value))
    before, config = standing_of(copy), copy.read_config()
    assert "autoguidance" not in str(hashed) and "guidance" in str(hashed)
    north = config.client("north")
    guided = north.model_copy(update={"sampler": north.sampler.model_copy(update={"autoguidance": 2.0})})
    copy.write_config(config.model_copy(update={"clients": {**config.clients, "north": guided}}))
    assert standing_of(copy) != before


def test_a_run_beside_that_is_another_since_is_said_to_be(run, tmp_path):
    copy, beside = (
        RunFolder(Path(shutil.copytree(run.path, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))))
        for name in ("run", "centralised")
    )
    standings = {str(beside.path): standing_of(beside), str(tmp_path / "gone"): "another"}
    write_results(copy.path / "evaluation" / "evaluation.json", [], standing_beside=standings)
    assert "Beside" not in "".join(_results(copy, "collafuse"))
    shutil.copy(beside.client("south").weights, beside.client("north").weights)
    html = "".join(_results(copy, "collafuse"))
    assert html.count("Beside centralised as it was") == 1 and "gone" not in html
    (beside.path / "config.yaml").write_text("server: [")
    assert "Beside centralised as it was; as it is now it cannot be read" in "".join(_results(copy, "collafuse"))


def test_curves_configuration_and_versions_are_there(html, run):
    assert html.count("<svg") == 4
    assert "dataset: digits" in html
    assert re.search(r"torch \d", html)


def test_curves_of_distilled_clients_say_whose_they_are(run, tmp_path):
    """Each was headed "distilled"."""
    for name in ("north", "south"):
        shutil.copytree(run.client(name).path, tmp_path / "clients" / name)
        shutil.copytree(run.client(name).path, RunFolder(tmp_path).client(name).distilled.path)
    charts = " ".join(_curves(RunFolder(tmp_path)))
    assert re.findall(r">([^<>]+): loss by noise level<", charts) == [
        "north, distilled",
        "north",
        "south, distilled",
        "south",
    ]


def test_the_same_seed_gives_the_same_page(html, run):
    assert write_page(run, device=CPU) == html


def test_a_damaged_file_of_results_is_named(run, tmp_path):
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    (copy.path / "evaluation" / "audit.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"audit\.json"):
        write_page(copy, device=CPU)


def test_a_picture_that_was_never_finished_is_not_shown(run):
    """What a killed audit was writing stood on the page as a broken picture, ".partial-x"."""
    unfinished = run.path / "evaluation" / "audit" / f"{PARTIAL_PREFIX}x.png"
    unfinished.write_bytes(b"\x89PNG")
    try:
        parts = _results(run, "collafuse")
    finally:
        unfinished.unlink()
    assert sum(part.startswith("<figure>") for part in parts) == 1 and not any("partial" in part for part in parts)


def test_code_in_a_note_is_code_and_nothing_else_is_markup():
    assert paragraph("run `a <b>` & go") == "<p>run <code>a &lt;b&gt;</code> &amp; go</p>"


def test_figures_stand_right_and_words_left():
    html = results_table(Table("t", ("arm", "value"), (("server", "1.2 ± 0.1"), ("client", "-3 ± 1"))))
    assert '<td class="text">server</td><td>1.2 ± 0.1</td>' in html
    assert html.count('class="group"') == 1
