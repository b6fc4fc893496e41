"""A configuration: what is refused, with which words, and what a run is told in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from collafuse.config import Config, DataSettings, from_mapping, load
from collafuse.config.settings import MethodName
from collafuse.core.errors import ConfigError

SHIPPED = sorted(path.name for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"))


def values(**changes: Any) -> dict[str, Any]:
    """The least configuration, with other top-level sections in place of its own."""
    return {"data": {"dataset": "digits"}, "client": {"cut": {"sigma": 1.0}}, "clients": {"a": {}}} | changes


def with_client(**settings: Any) -> Config:
    return from_mapping(values(clients={"a": settings}))


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_but_the_data_the_clients_and_their_cuts_has_a_default():
    config = from_mapping(values())
    assert config.client("a").cut.resolve().sigma == 1.0
    assert config.server.sampler.steps == 18 and config.data.image_shape == (1, 8, 8)


def test_a_clients_network_is_that_of_a_device_wherever_it_says_nothing_else():
    assert from_mapping(values()).server.network.norm == "group"
    for given in ({}, {"network": {"blocks": 1}}):
        network = with_client(cut={"sigma": 1.0}, **given).client("a").network
        assert (network.channels, network.norm) == (32, "none")
    network = with_client(cut={"sigma": 1.0}, network={"channels": 8, "norm": "group"}).client("a").network
    assert (network.channels, network.norm) == (8, "group")


def test_a_client_takes_over_at_twice_its_cut_and_at_the_cut_where_nothing_is_noised():
    statistics = {"server": {"kind": "statistics"}}
    assert from_mapping(values()).client("a").handover_sigma == 2.0
    assert from_mapping(values(**statistics)).client("a").handover_sigma == 1.0
    given = {"cut": {"sigma": 1.0}, "handover": 3}
    assert from_mapping(values(**statistics, client=given)).client("a").handover_sigma == 3.0
    assert from_mapping(values(**statistics, clients={"a": {"handover": 1.5}})).client("a").handover_sigma == 1.5


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "closest"),
    [
        ({"sevrer": {}}, "sevrer", "server"),
        ({"clinet": {}}, "clinet", "client"),
        ({"server": {"training": {"batchsize": 4}}}, "server.training.batchsize", "batch_size"),
        ({"server": {"netwrok": {}}}, "server.netwrok", "network"),
        ({"data": {"dataset": "digits", "heldout": 0.1}}, "data.heldout", "held_out"),
        ({"client": {"cut": {"sigma": 1.0}, "label": ["0"]}}, "clients.a.label", "labels"),
        ({"client": {"cut": {"sigma": 1.0, "shedule": "cosine"}}}, "clients.a.cut.shedule", "schedule"),
        ({"clients": {"a": {"sampler": {"sigmalow": 0.1}}}}, "clients.a.sampler.sigmalow", "sigma_low"),
    ],
)
def test_an_unknown_key_is_refused_with_the_closest_match(changes, key, closest):
    with pytest.raises(ConfigError, match=f"unknown key {key}. Did you mean '{closest}'"):
        from_mapping(values(**changes))


def test_an_unknown_key_unlike_any_other_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match="unknown key server.zzz. Known are kind, network, training, sampler"):
        from_mapping(values(server={"zzz": 1}))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"sigma": 1.0, "log_snr": 0.0}, "given by sigma and log_snr; give exactly one"),
        ({"sigma": 1.0, "t": 0.5, "schedule": "cosine"}, "given by sigma and t"),
        ({}, "given by nothing"),
        ({"t": 0.5}, "t=0.5 and schedule=None"),
        ({"sigma": 1.0, "schedule": "linear"}, "t=None and schedule='linear'"),
        ({"t": 0.5, "schedule": "cosin"}, "'cosin'.*'cosine' or 'linear'"),
        ({"t": 50, "schedule": "cosine"}, "t=50.* outside"),
        ({"sigma": 0.002}, "0.002 lies outside"),
        ({"sigma": 80.1}, "80.1 lies outside"),
        ({"log_snr": 20.0}, "lies outside"),
        ({"t": 0.0, "schedule": "linear"}, "sigma=0 lies outside"),
        ({"sigma": float("nan")}, "clients.a.cut.sigma=nan.*finite"),
        ({"sigma": float("inf")}, "clients.a.cut.sigma=inf.*finite"),
        ({"sigma": "high"}, "clients.a.cut.sigma='high'"),
        (None, "clients.a.cut=None"),
        (0.5, "clients.a.cut=0.5"),
    ],
)
def test_a_cut_that_is_none_is_refused_with_its_value(cut, message):
    with pytest.raises(ConfigError, match=message):
        with_client(cut=cut)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client": {}}, "clients.a.cut is missing"),
        ({"client": 5, "clients": {"a": {"cut": {"sigma": 1.0}}}}, "client=5.*expected"),
        ({"clients": {}}, "clients: .*at least 1"),
        ({"clients": None}, "clients=None"),
        ({"clients": ["a"]}, "clients"),
        ({"clients": {"a": 5}}, "clients.a=5"),
        ({"clients": {"a": {"handover": float("nan")}}}, "handover=nan.*finite"),
        ({"clients": {"a": {"handover": float("inf")}}}, "handover=inf.*finite"),
        ({"clients": {"a": {"handover": 0.9}}}, "handover=0.9"),
        ({"clients": {"a": {"sampler": {"sigma_low": 1.01}}}}, "clients.a.sampler.sigma_low=1.01 is above half .* 2 "),
        ({"server": {"send_previous": True, "sampler": {"name": "euler"}}}, "send_previous.*name=euler"),
        ({"server": {"send_previous": True, "sampler": {"name": "euler_ancestral"}}}, "send_previous.*name=euler_anc"),
        ({"client": {"network": {"multipliers": [1] * 5}, "cut": {"sigma": 1.0}}}, "clients.a.network: image_size=8"),
        ({"server": {"sampler": {"guidance": 2}, "training": {"label_dropout": 0}}}, "server.*guidance=2.*dropout=0"),
        ({"clients": {"a": {"cut": {"sigma": True}}}}, "clients.a.cut: sigma=true"),
        ({"server": {"training": {"steps": True}}}, "server.training: steps=true"),
        ({"server": {"network": {"attention": [16]}}}, r"server.network: attention=\[16\].*8, 4, 2, not 16"),
        ({"clients": {"a": {"sampler": {"sigma_low": 0.001}}}}, "clients.a.sampler.sigma_low=0.001.*0.002"),
        ({"clients": {"a": {"labels": ["0", "1", "0"]}}}, "clients.a.labels: names '0' twice; list each once"),
        ({"clients": {"a": {"labels": []}}}, "clients.a.labels: .*at least 1"),
        ({"clients": {"a": {"labels": [0]}}}, "clients.a.labels.0=0: .*string"),
        ({"clients": {"a": {"labels": "A and"}}}, "clients.a.labels: the expression 'A and' ends where a name"),
        ({"data": {"dataset": "digits", "attributes": ["0", "0"]}}, "data.attributes: names '0' twice"),
        ({"data": {"dataset": "digits", "table": {"path": "a.csv"}}}, "data: dataset 'digits' brings its own labels"),
        ({"server": {"training": {"learning_rate": float("nan")}}}, "learning_rate=nan.*finite"),
        ({"server": {"training": {"learning_rate": float("inf")}}}, "learning_rate=inf.*finite"),
        ({"server": {"training": {"steps": "many"}}}, "server.training.steps='many'.*integer"),
        ({"server": {"training": {"seed": -1}}}, "server.training.seed=-1"),
        ({"server": {"network": {"channels": 12}}}, "server.network.channels=12.*multiple of 8"),
        ({"server": {"sampler": {"name": "ddim"}}}, "server.sampler.name='ddim'.*'dpmpp_2m' or 'euler_ancestral'"),
        ({"clients": {"a": {"sampler": {"name": "euler_ancestral"}}}}, "sampler.name='euler_ancestral'.*'dpmpp_2m'"),
        ({"data": {}}, "data.dataset is missing"),
        ({"data": {"dataset": "imagenet"}}, "data.dataset='imagenet'.*'digits', 'folder', 'celeba'"),
        ({"data": {"dataset": "celeba", "path": "x"}}, "dataset 'celeba' needs image_size and channels"),
        ({"data": {"dataset": "digits", "official_split": True}}, "'digits' has no official split"),
        ({"data": {"dataset": "mnist", "path": "x", "official_split": True, "held_out": 0.1}}, "contradict each other"),
        ({"data": {"dataset": "digits", "held_out": 1.0}}, "data.held_out=1.0"),
        ({"data": {"dataset": "folder", "path": "x"}}, "needs image_size and channels"),
        ({"data": {"dataset": "folder", "path": "x", "image_size": 1025, "channels": 1}}, "image_size=1025.*1024"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(values(**changes))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"name": "heun"}, r"\(heun, .*sample with dpmpp_2m or euler, or give clients.a.handover at least 1.05"),
        ({"steps": 500}, r"\(dpmpp_2m, 500 steps\).*use fewer steps, or give clients.a.handover at least 1.05"),
    ],
)
def test_a_server_that_would_evaluate_where_releases_teach_nothing_is_refused(sampler, message):
    server = {"sampler": sampler}
    for method in ("collafuse", "pfdm"):
        with pytest.raises(ConfigError, match=message):
            from_mapping(values(method=method, server=server, clients={"a": {"handover": 1}}))
        for clients in ({"a": {"handover": 1.05}}, {"a": {}}):
            from_mapping(values(method=method, server=server, clients=clients))


@pytest.mark.parametrize("method", ["centralised", "local", "fedavg"])
def test_a_whole_model_may_be_evaluated_anywhere(method):
    from_mapping(values(method=method, server={"sampler": {"name": "heun", "steps": 500}}))


@pytest.mark.parametrize("method", ["reference", "reference-repaired"])
@pytest.mark.parametrize(
    ("sampler", "message"),
    [({"name": "heun"}, "sample with dpmpp_2m or euler.$"), ({"steps": 500}, "500 steps.* use fewer steps.$")],
)
def test_a_method_without_a_handover_is_not_told_to_raise_it(method, sampler, message):
    """The reference stops at the cut; it was trained, and then refused at its first picture."""
    for clients in ({"a": {"handover": 1.2}}, {"a": {}}):
        with pytest.raises(ConfigError, match=message):
            from_mapping(values(method=method, server={"sampler": sampler}, clients=clients))
    from_mapping(values(method=method, server={"sampler": {"name": "euler"}}, clients={"a": {"handover": 1.2}}))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a.b", "-a", "a\n", "é", "x" * 65])
def test_a_client_name_that_is_no_file_name_everywhere_is_refused(name):
    with pytest.raises(ConfigError, match="should match pattern"):
        from_mapping(values(clients={name: {}}))


@pytest.mark.parametrize("name", ["a", "A-1_b", "7", "x" * 64])
def test_a_plain_client_name_is_taken(name):
    assert list(from_mapping(values(clients={name: None})).clients) == [name]


def test_a_client_that_does_not_exist_is_named_with_the_closest():
    config = from_mapping(values(clients={"north": {}, "east": {}}))
    with pytest.raises(ConfigError, match="client 'nort' does not exist; known are north, east. Did you mean 'north'"):
        config.client("nort")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: [1", "not valid YAML"),
        (b"- a\n- b\n", "holds list, expected keys and values"),
        (b"", "holds NoneType"),
        (b"just words", "holds str"),
        (b"\xff\xfe\x00", "it is not text"),
        (b"a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        (b"a: \x07", "not valid YAML"),
        (b"a: 2024-13-45", "not valid YAML: month"),
        (b"[" * 5000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{message}"):
        load(path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: {dataset: digits}\nclients:\n  a: {cut: {sigma: 1}}\n  a: {cut: {sigma: 2}}\n", "a"),
        ("data: {dataset: digits}\nclients: {a: {cut: {sigma: 1, sigma: 2}}}\n", "sigma"),
        ("data: {dataset: digits}\nclients: {a: {cut: {sigma: 1}}}\ndata: {dataset: digits}\n", "data"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path, text, key):
    with pytest.raises(ConfigError, match=rf"mine\.yaml is not valid YAML: the key '{key}' is given twice"):
        load(written(tmp_path, text))


def test_yaml_anchors_and_merging_work(tmp_path):
    text = "data: {dataset: digits}\nclients: {a: &a {cut: {sigma: 1}, handover: 2}, b: {<<: *a, handover: 3}}\n"
    config = load(written(tmp_path, text))
    assert (config.client("a").handover, config.client("b").handover) == (2, 3)
    assert config.client("b").cut.sigma == 1


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path / name)


# --- merging and overriding ---------------------------------------------------------------------------------


def test_a_client_overrides_single_defaults_and_keeps_the_others():
    client = {"cut": {"sigma": 1.0}, "training": {"steps": 5, "seed": 3}, "share_labels": False}
    config = from_mapping(values(client=client, clients={"a": {"training": {"steps": 7}}, "b": None}))
    a, b = config.client("a"), config.client("b")
    assert (a.training.steps, a.training.seed, a.share_labels) == (7, 3, False)
    assert (b.training.steps, b.training.seed, b.share_labels) == (5, 3, False)


def test_a_cut_is_replaced_whole_and_never_mixed_from_two():
    client = {"cut": {"t": 0.5, "schedule": "cosine"}}
    config = from_mapping(values(client=client, clients={"a": {"cut": {"sigma": 2.0}}, "b": {}}))
    assert config.client("a").cut.resolve().sigma == 2.0
    assert config.client("b").cut.schedule == "cosine"


def test_overrides_go_on_top_of_the_file_and_in_order(tmp_path):
    path = written(tmp_path, "data: {dataset: digits}\nclient: {cut: {sigma: 1}}\nclients: {a: , b: {handover: 2}}\n")
    overrides = [
        "server.training.steps=3",
        "server.training.steps=4",
        "client.training.seed=9",
        "clients.a.handover=1.5",
        "clients.b.labels=['0', '1']",
        "clients.b.cut={log_snr: 0}",
        "name=a=b",
    ]
    config = load(path, overrides)
    assert config.server.training.steps == 4 and config.name == "a=b"
    assert config.client("a").training.seed == config.client("b").training.seed == 9
    assert config.client("a").handover == 1.5 and config.client("b").handover == 2
    assert config.client("b").labels == ("0", "1") and config.client("b").cut.log_snr == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("server.training.steps", "not of the form a.b=value"),
        ("=5", "not of the form a.b=value"),
        ("data.dataset.x=1", "'dataset' is a value, not a section"),
        ("server.training.stesp=5", "unknown key server.training.stesp. Did you mean 'steps'"),
        ("clients.a.labels=[1", r"override 'clients.a.labels=\[1' is not valid YAML"),
        ("data.seed=.nan", "data.seed=nan"),
    ],
)
def test_an_override_that_cannot_work_is_refused(tmp_path, override, message):
    path = written(tmp_path, "data: {dataset: digits}\nclients: {a: {cut: {sigma: 1}}}\n")
    with pytest.raises(ConfigError, match=message):
        load(path, [override])


def test_a_standard_deviation_that_weights_cannot_say_is_refused_before_a_training(tmp_path):
    """And by its own name, not by that of one of the kinds that it may have."""
    path = written(tmp_path, "data: {dataset: digits}\nclients: {a: {cut: {sigma: 1}}}\n")
    load(path, ["server.training.sigma_data=1000"])
    with pytest.raises(ConfigError, match=r"server\.training\.sigma_data=2000: input should be less than or equal"):
        load(path, ["server.training.sigma_data=2000"])


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method_may_have_text(method):
    assert load("celeba-text.yaml", [f"method={method}"]).data.text is not None


OWN = "data: {dataset: digits}\nclients: {a: {cut: {sigma: 1}, training: {seed: 1}}, b: {cut: {log_snr: 2}}}\n"


@pytest.mark.parametrize("override", ["client.cut.sigma=4", "client.cut={sigma: 4}", "client={cut: {sigma: 4}}"])
def test_a_default_that_every_client_has_its_own_of_is_not_taken_in_silence(tmp_path, override):
    """A cut of 1 where 4 was asked for is another privacy than whoever asked believes."""
    said = r"client\.cut changes nothing, since every client \(a, b\) has its own; set clients\.a\.cut"
    with pytest.raises(ConfigError, match=said):
        load(written(tmp_path, OWN), [override])
    (tmp_path / "base.yaml").write_text(OWN)
    with pytest.raises(ConfigError, match=said):
        load(written(tmp_path, "base: base.yaml\nclient: {cut: {sigma: 4}}\n"))
    added = load(written(tmp_path, "base: base.yaml\nclient: {cut: {sigma: 4}}\nclients: {c: }\n"))
    assert added.client("c").cut.sigma == 4 and added.client("a").cut.sigma == 1


def test_a_default_that_some_clients_have_their_own_of_holds_for_the_others(tmp_path):
    config = load(written(tmp_path, OWN), ["client.training.seed=5", "client.training={steps: 7}"])
    assert (config.client("a").training.seed, config.client("b").training.steps) == (1, 7)
    path = written(tmp_path, OWN.replace("b: {", "b: {training: {seed: 2}, "))
    assert load(path, ["client.training.steps=7"]).client("a").training.steps == 7
    with pytest.raises(ConfigError, match=r"client\.training\.seed changes nothing"):
        load(path, ["client.training={seed: 5, steps: 7}"])


# --- what is written beside the results ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_a_resolved_configuration_reads_back_as_itself(tmp_path, name):
    config = load(name, ["data.path=images"] if "cifar" in name else [])
    assert load(written(tmp_path, config.to_yaml())) == config


def test_a_resolved_configuration_is_the_same_to_the_letter_when_it_is_read_back(tmp_path):
    # A default written as a whole number and read back as 50000.0 would be another training to a checkpoint.
    config = from_mapping(values())
    assert load(written(tmp_path, config.to_yaml())).model_dump_json() == config.model_dump_json()


def test_values_that_yaml_takes_for_something_else_survive(tmp_path):
    clients = {
        "1": {"labels": ["0", "no", "1e3", "ünï", "~"], "path": "null", "ledger": "yes"},
        "no": {"cut": {"t": 0.1 + 0.2, "schedule": "linear"}, "training": {"learning_rate": 1e-5}},
    }
    config = from_mapping(values(name="on", clients=clients))
    assert load(written(tmp_path, config.to_yaml())) == config


def test_a_server_sees_no_paths_and_no_labels_that_a_site_keeps(tmp_path):
    clients = {
        "open": {"labels": ["x"], "path": "theirs", "ledger": "book"},
        "shy": {"labels": ["secret"], "share_labels": False},
    }
    data = {"dataset": "folder", "path": "patients", "image_size": 8, "channels": 1}
    data |= {"table": {"path": "patients.csv"}, "attributes": ["a secret too"]}
    text = from_mapping(values(data=data, clients=clients)).for_server().to_yaml()
    assert not any(word in text for word in ("secret", "theirs", "book", "patients"))
    seen = load(written(tmp_path, text))
    assert seen.client("open").labels == ("x",) and seen.client("shy").cut == seen.client("open").cut


def test_labels_that_a_site_keeps_do_not_leave_as_its_text():
    data = {"dataset": "digits", "text": {"encoder": "t5"}}
    with pytest.raises(ConfigError, match=r"data\.text\.captions=labels .* set clients\.shy\.share_text=false too"):
        from_mapping(values(data=data, clients={"open": {}, "shy": {"share_labels": False}}))
    from_mapping(values(data=data, clients={"open": {}, "shy": {"share_labels": False, "share_text": False}}))


def test_nothing_that_is_added_to_the_data_section_reaches_a_server_by_itself():
    data = {
        "dataset": "folder", "path": "patients", "image_size": 8, "channels": 1, "cache": "secret", "fit": "pad",
        "table": {"path": "t.csv", "group": "patient"}, "split": {"by": "dirichlet", "over": ["HIV"]}, "held_out": 0.3,
    }  # fmt: skip
    seen = from_mapping(values(data=data)).for_server().data
    given = {key for key, value in seen if value != DataSettings.model_fields[key].default}
    assert given == {"dataset", "image_size", "channels"}
    assert from_mapping(values(data=data | {"horizontal_flip": True})).for_server().data.horizontal_flip


def test_a_client_sees_nothing_of_the_others():
    config = from_mapping(values(clients={"a": {"labels": ["mine"]}, "b": {"labels": ["theirs"], "path": "there"}}))
    seen = config.for_client("a").to_yaml()
    assert "mine" in seen and "theirs" not in seen and "there" not in seen


def test_a_cut_just_above_the_lowest_level_can_be_configured():
    assert with_client(cut={"sigma": 0.003}, sampler={"sigma_low": 0.002}).client("a").cut.resolve().sigma == 0.003


def test_one_step_needs_no_lowest_level():
    assert with_client(sampler={"steps": 1, "sigma_low": 5.0}).client("a").sampler.steps == 1


def test_a_configuration_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        from_mapping(values()).client("a").handover = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("prefix", ["", "configs/"])
def test_a_bare_name_finds_the_file_that_ships(tmp_path, monkeypatch, name, prefix):
    monkeypatch.chdir(tmp_path)
    assert load(prefix + name, ["data.path=images"]).clients


def test_a_file_of_ones_own_comes_before_the_one_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text("{name: mine, data: {dataset: digits}, clients: {a: {cut: {sigma: 1}}}}")
    assert load("digits.yaml").name == "mine"
    with pytest.raises(ConfigError, match="cannot read"):
        load("elsewhere/digits.yaml")
