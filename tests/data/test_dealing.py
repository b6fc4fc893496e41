"""Who holds which images: disjoint, the same each time, and a site touches its own folder only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collafuse.config import Config, from_mapping
from collafuse.core.errors import ConfigError, DataError
from collafuse.data.dealing import SiteData, held_out_rows, keys_of, load_site, load_sites
from tests.data.hearing import Heard
from tests.tiny import image_set

MODES = {
    "labels": {"by": "labels"},
    "even": {"by": "even"},
    "dirichlet": {"by": "dirichlet", "alpha": 0.5},
}


def config(split: dict[str, Any], clients: dict[str, Any] | None = None, **data: Any) -> Config:
    """Digits dealt to three clients; when dealt by labels, two of them share the label 3."""
    own = {"a": ["0", "1", "2", "3"], "b": ["3", "4", "5"], "c": ["6", "7"]}
    by_label = {name: {"labels": labels} for name, labels in own.items()}
    given = clients or (by_label if split["by"] == "labels" else {name: {} for name in own})
    values = {"dataset": "digits", "held_out": 0.2, "split": split} | data
    return from_mapping({"data": values, "client": {"cut": {"sigma": 1.0}}, "clients": given})


def test_a_site_hears_that_most_of_its_folder_is_dealt_to_others():
    heard = Heard()
    load_site(config(MODES["even"], {"a": {}, "b": {}}), "a", heard)
    assert any("898 of 1797 images are dealt to the other clients" in text for text in heard.said)
    alone = Heard()
    load_site(config(MODES["even"], {"a": {}}), "a", alone)
    assert not alone.said


def digests(site: SiteData) -> list[bytes]:
    """The images of a site, held out or not; the digits are all different."""
    return [d.tobytes() for part in (site.train, site.held_out) for d in part.digests]


def counts(site: SiteData) -> dict[str, int]:
    totals = site.train.labels.sum(axis=0) + site.held_out.labels.sum(axis=0)
    return dict(zip(site.train.label_names, totals.tolist(), strict=True))


@pytest.mark.parametrize("split", MODES.values(), ids=MODES)
def test_no_image_lies_at_two_sites_or_on_both_sides_of_one(split):
    everything = [key for site in load_sites(config(split)).values() for key in digests(site)]
    assert len(set(everything)) == len(everything)
    assert len(everything) == (1797 if split["by"] != "labels" else 178 + 182 + 177 + 183 + 181 + 182 + 181 + 179)


@pytest.mark.parametrize("split", MODES.values(), ids=MODES)
def test_dealing_is_the_same_for_the_same_seed_and_another_for_another(split):
    first, second, other = (load_sites(config(split, seed=seed)) for seed in (0, 0, 1))
    for name in first:
        assert np.array_equal(first[name].train.digests, second[name].train.digests)
        assert np.array_equal(first[name].held_out.digests, second[name].held_out.digests)
    assert any(digests(first[name]) != digests(other[name]) for name in first)


def test_what_is_held_out_follows_the_seed():
    first, other = (load_site(config(MODES["even"], {"a": {}}, seed=seed), "a") for seed in (0, 1))
    assert sorted(digests(first)) == sorted(digests(other))
    assert not np.array_equal(first.held_out.digests, other.held_out.digests)


@pytest.mark.parametrize("split", MODES.values(), ids=MODES)
def test_a_site_alone_gets_what_it_gets_among_all(split):
    settings = config(split)
    together = load_sites(settings)
    for name, site in together.items():
        alone = load_site(settings, name)
        assert np.array_equal(alone.train.pixels, site.train.pixels)
        assert np.array_equal(alone.held_out.labels, site.held_out.labels)


@pytest.mark.parametrize("held_out", [0.0, 0.2, 0.9])
def test_the_held_out_share_is_kept_away_from_training(held_out):
    for site in load_sites(config(MODES["even"], held_out=held_out)).values():
        deviation = np.sqrt(599 * held_out * (1 - held_out))
        assert abs(len(site.held_out) - 599 * held_out) <= 4 * deviation
        assert len(site.train) == 599 - len(site.held_out)
        train = {d.tobytes() for d in site.train.digests}
        assert not train & {d.tobytes() for d in site.held_out.digests}


def test_an_image_stays_in_training_or_held_out_whatever_images_are_added():
    few, more = image_set(40), image_set(400, seed=1)
    keys = keys_of(more)
    among_more = [*keys[:200], *keys_of(few), *keys[200:]]
    alone = held_out_rows(keys_of(few), 0.3, seed=5)
    assert alone.any() and not alone.all()
    assert np.array_equal(held_out_rows(among_more, 0.3, seed=5)[200:240], alone)


def test_a_larger_share_holds_out_what_a_smaller_one_did_and_more():
    keys = keys_of(image_set(200))
    small, large = (held_out_rows(keys, share, seed=0) for share in (0.1, 0.4))
    assert large[small].all() and large.sum() > small.sum()


def test_equal_images_lie_on_one_side(tmp_path):
    for level in range(12):
        for copy in ("a", "b"):
            paint(tmp_path / "x" / f"{level}-{copy}.png", level)
    data = {"dataset": "folder", "path": str(tmp_path), "image_size": 4, "channels": 1, "held_out": 0.5}
    site = load_site(config(MODES["even"], {"a": {}}, **data), "a")
    train, held_out = ({d.tobytes() for d in part.digests} for part in (site.train, site.held_out))
    assert len(train) + len(held_out) == 12 and len(train) and len(held_out)
    assert len(site.train) == 2 * len(train) and len(site.held_out) == 2 * len(held_out)


def test_a_site_holds_only_its_labels_and_a_shared_label_goes_where_fewer_images_lie():
    sites = load_sites(config(MODES["labels"]))
    assert {name: tuple(counts(site)) for name, site in sites.items()} == {
        "a": ("0", "1", "2", "3"),
        "b": ("3", "4", "5"),
        "c": ("6", "7"),
    }
    a, b = counts(sites["a"]), counts(sites["b"])
    assert a["3"] + b["3"] == 183 and a["3"] < b["3"] and abs(sum(a.values()) - sum(b.values())) < 30
    for site in sites.values():
        assert (site.train.labels.sum(axis=1) == 1).all()


def test_an_even_deal_filtered_by_labels_keeps_a_site_s_own_only():
    sites = load_sites(config(MODES["even"], {"a": {"labels": ["4", "2"]}, "b": {}}))
    assert sites["a"].train.label_names == ("4", "2") and len(sites["b"].train.label_names) == 10
    assert not set(digests(sites["a"])) & set(digests(sites["b"]))


@pytest.mark.parametrize("split", MODES.values(), ids=MODES)
def test_images_without_labels_are_dealt_too(tmp_path, split):
    for level in range(8):
        paint(tmp_path / f"{level}.png", level)
    data = {"dataset": "folder", "path": str(tmp_path), "image_size": 4, "channels": 1, "held_out": 0, "seed": 3}
    sites = load_sites(config(split, {"a": {}, "b": {}}, **data))
    everything = [key for site in sites.values() for key in digests(site)]
    assert len(everything) == len(set(everything)) == 8
    assert all(site.train.label_names == () for site in sites.values())


def test_a_small_alpha_gives_few_labels_and_a_large_one_all():
    def largest_share(alpha: float) -> float:
        sites = load_sites(config({"by": "dirichlet", "alpha": alpha}))
        held = [[counts(site).get(name, 0) for name in "0123456789"] for site in sites.values()]
        return float(np.mean(np.max(held, axis=0) / np.sum(held, axis=0)))

    assert largest_share(0.1) > 0.7 and largest_share(1000) < 0.4


@pytest.mark.parametrize("split", MODES.values(), ids=MODES)
def test_an_unknown_label_is_refused_with_the_closest(tmp_path, split):
    for name in ("cats", "dogs"):
        for level in range(4):
            paint(tmp_path / name / f"{level}.png", 10 * level + len(name))
    data = {"dataset": "folder", "path": str(tmp_path), "image_size": 4, "channels": 1}
    with pytest.raises(DataError, match="client 'a': label 'cat' is not known; known are .*Did you mean 'cats'"):
        load_sites(config(split, {"a": {"labels": ["cat"]}, "b": {"labels": ["dogs"]}}, **data))


def test_a_site_that_is_left_with_nothing_is_refused(tmp_path):
    paint(tmp_path / "x" / "only.png", 1)
    data = {"dataset": "folder", "path": str(tmp_path), "image_size": 4, "channels": 1}
    with pytest.raises(DataError, match="client 'b' has 0 images .* nothing is left to train on"):
        load_sites(config(MODES["even"], {"a": {}, "b": {}}, held_out=0, **data))
    with pytest.raises(DataError, match="client 'a' has 1 images of which 1 are held out"):
        load_site(config(MODES["even"], {"a": {}}, held_out=0.999, **data), "a")


def test_an_unknown_client_is_refused():
    with pytest.raises(ConfigError, match="client 'd' does not exist"):
        load_site(config(MODES["even"]), "d")


def paint(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)


def test_a_site_with_a_path_of_its_own_does_not_touch_the_others(tmp_path):
    for level in range(5):
        paint(tmp_path / "mine" / "x" / f"{level}.png", level)
    clients = {"a": {"path": str(tmp_path / "mine")}, "b": {"path": str(tmp_path / "theirs")}, "c": {}}
    data = {"dataset": "folder", "path": str(tmp_path / "shared"), "image_size": 4, "channels": 1}
    settings = config(MODES["even"], clients, **data)
    assert len(digests(load_site(settings, "a"))) == 5
    for other, missing in (("b", "theirs"), ("c", "shared")):
        with pytest.raises(DataError, match=missing):
            load_site(settings, other)


def test_a_shared_folder_is_dealt_to_those_without_a_path_of_their_own(tmp_path):
    for level in range(6):
        paint(tmp_path / "mine" / "x" / f"{level}.png", level)
        paint(tmp_path / "shared" / "x" / f"{level}.png", 100 + level)
    clients = {"a": {"path": str(tmp_path / "mine")}, "b": {}, "c": {}}
    data = {"dataset": "folder", "path": str(tmp_path / "shared"), "image_size": 4, "channels": 1, "held_out": 0}
    sites = load_sites(config(MODES["even"], clients, **data))
    levels = {name: sorted(site.train.pixels[:, 0, 0, 0].tolist()) for name, site in sites.items()}
    assert levels["a"] == list(range(6)) and sorted(levels["b"] + levels["c"]) == list(range(100, 106))
    assert len(levels["b"]) == len(levels["c"]) == 3


# --- attributes ---------------------------------------------------------------------------------------------


def faces(root: Path, clients: dict[str, Any], split: str = "labels", **data: Any) -> Config:
    """Sixty images with every combination of three attributes, of twelve patients."""
    rows = ["file,patient,Eyeglasses,Smiling,Male"]
    for i in range(60):
        paint(root / f"{i}.png", i)
        rows.append(f"{i}.png,patient {i % 12},{i % 2},{i // 2 % 2},{i // 4 % 2}")
    (root / "t.csv").write_text("\n".join(rows))
    values = {"dataset": "folder", "path": str(root), "image_size": 4, "channels": 1}
    return config(
        {"by": split}, clients, **values, table={"path": "t.csv", "group": "patient"}, **({"held_out": 0.3} | data)
    )


def test_a_site_with_an_expression_holds_what_fits_and_describes_it_by_everything(tmp_path):
    settings = faces(tmp_path, {"a": {"labels": "Eyeglasses and not Smiling"}, "b": {"labels": "Smiling"}})
    sites = load_sites(settings)
    a, b = ([*s.train.pixels[:, 0, 0, 0], *s.held_out.pixels[:, 0, 0, 0]] for s in sites.values())
    assert sorted(a) == [i for i in range(60) if i % 2 and not i // 2 % 2]
    assert sorted(b) == [i for i in range(60) if i // 2 % 2]
    assert sites["a"].train.label_names == ("Eyeglasses", "Male")  # Smiling never occurs there
    assert sites["b"].train.label_names == ("Eyeglasses", "Smiling", "Male")


def test_a_site_where_no_label_occurs_says_so_and_is_not_taken_for_one_without_labels(tmp_path):
    """As one with healthy images alone, where others have tumours."""
    site = load_site(faces(tmp_path, {"a": {"labels": "not Eyeglasses and not Smiling and not Male"}}), "a").train
    assert site.label_names == ("Eyeglasses", "Smiling", "Male") and not site.labels.any()
    assert not site.conditions().any()


def test_a_site_with_a_list_holds_images_with_at_least_one_and_describes_them_by_it(tmp_path):
    site = load_site(faces(tmp_path, {"a": {"labels": ["Male", "Eyeglasses"]}}, held_out=0), "a").train
    assert site.label_names == ("Male", "Eyeglasses") and site.labels.any(axis=1).all()
    assert len(site) == sum(bool(i % 2 or i // 4 % 2) for i in range(60))
    assert (site.labels.sum(axis=1) == 2).any()


def test_an_image_without_any_attribute_belongs_to_a_site_that_takes_all(tmp_path):
    site = load_site(faces(tmp_path, {"a": {}}, held_out=0), "a").train
    assert len(site) == 60 and (site.labels.sum(axis=1) == 0).any()


def test_attributes_choose_what_images_are_described_by_and_not_which_are_held(tmp_path):
    settings = faces(tmp_path, {"a": {"labels": "Eyeglasses"}}, held_out=0, attributes=["Smiling", "Male"])
    site = load_site(settings, "a").train
    assert site.label_names == ("Smiling", "Male") and len(site) == 30


@pytest.mark.parametrize(
    ("client", "data", "who"),
    [
        ({"labels": "Eyeglass and not Smiling"}, {}, "client 'a': label 'Eyeglass'"),
        ({"labels": ["Eyeglass"]}, {}, "client 'a': label 'Eyeglass'"),
        ({}, {"attributes": ["Eyeglass"]}, "data.attributes: label 'Eyeglass'"),
    ],
)
def test_an_unknown_attribute_is_refused_with_the_closest(tmp_path, client, data, who):
    with pytest.raises(DataError, match=f"{who} is not known.*Did you mean 'Eyeglasses'"):
        load_site(faces(tmp_path, {"a": client}, **data), "a")


def test_a_patient_is_never_on_both_sides(tmp_path):
    site = load_site(faces(tmp_path, {"a": {}}), "a")
    train, held_out = set(site.train.groups.tolist()), set(site.held_out.groups.tolist())
    assert train and held_out and not train & held_out and len(train | held_out) == 12


# --- groups and combinations --------------------------------------------------------------------------------


def whose(site: SiteData) -> set[str]:
    return {*site.train.groups.tolist(), *site.held_out.groups.tolist()}


def test_no_patient_lies_at_two_sites_and_all_are_dealt_about_evenly(tmp_path):
    sites = load_sites(faces(tmp_path, {name: {} for name in "abc"}, split="groups"))
    patients = [patient for site in sites.values() for patient in whose(site)]
    assert len(patients) == len(set(patients)) == 12
    assert [len(site.train) + len(site.held_out) for site in sites.values()] == [20, 20, 20]


def test_groups_follow_the_seed_and_what_each_site_chooses(tmp_path):
    clients = {"a": {"labels": ["Male"]}, "b": {"labels": "not Male"}}
    sites, again, other = (load_sites(faces(tmp_path, clients, "groups", seed=seed, held_out=0)) for seed in (0, 0, 1))
    assert whose(sites["a"]) == whose(again["a"]) != whose(other["a"])
    assert not whose(sites["a"]) & whose(sites["b"])
    heard = Heard()
    load_sites(faces(tmp_path, clients, "groups", held_out=0), heard)
    held = sum(len(site.train) for site in sites.values())
    assert 0 < held < 60 and f"{60 - held} of 60 images belong to no site" in heard.said[0]
    assert sites["a"].train.labels.all() and "Male" not in sites["b"].train.label_names


def test_groups_that_nobody_stated_are_refused():
    with pytest.raises(DataError, match=r"set data\.table\.group or data\.hub\.group to the column"):
        load_sites(config({"by": "groups"}, {"a": {}, "b": {}}))


def test_shares_are_drawn_for_combinations_where_images_carry_several_labels(tmp_path):
    with pytest.raises(DataError, match=r"images carry several or none; name a few in data\.split\.over"):
        load_sites(faces(tmp_path, {"a": {}, "b": {}}, split="dirichlet"))
    settings = faces(tmp_path, {"a": {}, "b": {}}, split="dirichlet", held_out=0)
    split = {"by": "dirichlet", "alpha": 0.05, "over": ["Male"]}
    dealt = from_mapping({**settings.model_dump(), "data": settings.data.model_dump() | {"split": split}})
    sites = load_sites(dealt)
    men = [counts(site).get("Male", 0) for site in sites.values()]
    others = [len(site.train) - count for site, count in zip(sites.values(), men, strict=True)]
    assert sum(men) == 28 and sum(others) == 32 and max(men) >= 25 and max(others) >= 29


def test_a_patient_at_two_sites_is_reported(tmp_path):
    heard = Heard()
    load_sites(faces(tmp_path, {"a": {}, "b": {}}, split="even", held_out=0), heard)
    assert len(heard.said) == 1 and re.search(r"\d+ groups stand at two sites, such as patient \d+ at", heard.said[0])


def test_an_image_in_the_folders_of_two_sites_is_reported(tmp_path):
    for name in "ab":
        for level in range(3):
            paint(tmp_path / name / "x" / f"{level}.png", level + (10 if name == "b" else 0))
    paint(tmp_path / "b" / "x" / "copy.png", 2)
    heard = Heard()
    clients = {name: {"path": str(tmp_path / name)} for name in "ab"}
    data = {"dataset": "folder", "image_size": 4, "channels": 1, "held_out": 0}
    load_sites(config(MODES["even"], clients, **data), heard)
    assert heard.said == ["warning: 1 equal images stand at two sites, such as x/2.png at a, x/copy.png at b."]
