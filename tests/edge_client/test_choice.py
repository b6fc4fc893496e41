"""edge_client.choice, trial, child and caches: --provider auto."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from collafuse.core.errors import RuntimeMissingError
from collafuse.core.intermediate import Intermediate
from edge_client import Finisher, caches, choice, placement, trial
from edge_client.child import ChildError, run_child
from edge_client.trial import Trial, try_here, try_isolated
from tests.bundles import SHAPE, halving_bundle

KEY = {"bundle": "b", "machine": "m"}
ORDINARY = ["AzureExecutionProvider", "CPUExecutionProvider"]
WITH_CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "collafuse"


@pytest.fixture
def halving(tmp_path) -> Path:
    (tmp_path / "halving.onnx").write_bytes(halving_bundle())
    return tmp_path / "halving.onnx"


def choose(outcomes: dict[str, float | None], said: list[str] | None = None) -> str:
    """The choice among providers that take so many milliseconds, or fail."""

    def attempt(path, name, threads):
        value = outcomes[name]
        return Trial(name, value, "broken" if value is None else "")

    return choice.choose(Path("x"), list(outcomes), 1, KEY, (said if said is not None else []).append, attempt)


# --- choosing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ({"cpu": 2.0, "cuda": 1.0}, "cuda"),
        ({"cpu": 1.0, "cuda": 2.0}, "cpu"),
        ({"cpu": 1.0, "cuda": 0.9}, "cpu"),  # not enough faster for what it costs
        ({"cpu": 1.0, "cuda": None}, "cpu"),
        ({"cpu": None, "cuda": 5.0}, "cuda"),
        ({"cpu": 9.0, "cuda": 2.0, "tensorrt": 1.0}, "tensorrt"),
    ],
)
def test_the_fastest_that_works_is_chosen_said_and_remembered(outcomes, best):
    said: list[str] = []
    assert choose(outcomes, said) == best
    assert said[-1].startswith(f"Provider {best}: ") and all(name in said[-1] for name in outcomes)
    again: list[str] = []
    assert choice.remembered(KEY, list(outcomes), again.append) == best
    assert "as measured before" in again[0] and all(name in again[0] for name in outcomes)


@pytest.mark.parametrize("version", ["101300", ""])
def test_an_engine_is_announced_before_it_is_built(monkeypatch, version):
    monkeypatch.setattr(choice.machine, "tensorrt_version", lambda: version)
    said: list[str] = []
    choose({"cpu": 1.0, "tensorrt": 1.0}, said)
    assert any("takes minutes" in line for line in said[:-1]) == bool(version)


def test_an_engine_that_could_not_be_kept_is_not_built_at_each_start(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    said: list[str] = []
    assert choose({"cpu": 2.0, "tensorrt": 1.0}, said) == "cpu"
    assert "tensorrt fails (not tried: the cache folder" in said[-1]


ALLOCATION = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
    "Name:'node_conv2d' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, onnxruntime::Wait"
)
"""As onnxruntime says it; the words that would be plainer are cut off."""


@pytest.mark.parametrize(
    "failure",
    [
        ALLOCATION,
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "it was killed (SIGKILL), as where memory runs out",
        "cannot write a temporary file (No space left on device), which checking a provider needs",
        placement.shortfall(Counter(), "x"),
    ],
)
def test_a_provider_that_lacked_memory_or_room_is_tried_again(failure):
    outcomes, said = {"cpu": Trial("cpu", 1.0, ""), "cuda": Trial("cuda", None, failure)}, []
    for _ in range(2):
        best = choice.choose(Path("x"), ["cpu", "cuda"], 1, KEY, said.append, lambda path, name, *_: outcomes[name])
        assert best == "cpu" and "What cuda lacked" in said[-1]
        assert choice.remembered(KEY, ["cpu", "cuda"], said.append) is None


@pytest.mark.parametrize("failure", ["it crashed (SIGSEGV)", "libcudnn.so.9: no such file", "it did not finish"])
def test_a_provider_that_fails_for_good_is_not_tried_again(failure):
    outcomes, said = {"cpu": Trial("cpu", 1.0, ""), "cuda": Trial("cuda", None, failure)}, []
    choice.choose(Path("x"), ["cpu", "cuda"], 1, KEY, said.append, lambda path, name, *_: outcomes[name])
    assert choice.remembered(KEY, ["cpu", "cuda"], said.append) == "cpu"


def test_when_none_works_each_reason_is_given():
    with pytest.raises(RuntimeMissingError, match=r"cpu fails \(broken\); cuda fails \(broken\)"):
        choose({"cpu": None, "cuda": None})
    assert choice.remembered(KEY, ["cpu", "cuda"], [].append) is None


def test_one_candidate_is_not_measured(halving, cache, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ORDINARY)
    said: list[str] = []
    assert Finisher.load(halving, provider="auto", say=said.append).provider == "cpu"
    assert not said and [path.name.partition("-")[0] for path in cache.iterdir()] == ["proof"]


def test_several_candidates_are_tried_once_in_processes_of_their_own(halving, cache, monkeypatch):
    """The second candidate is one that this onnxruntime does not have, so its process says so."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: WITH_CUDA)
    said: list[str] = []
    assert Finisher.load(halving, provider="auto", say=said.append).provider == "cpu"
    assert "cuda fails (this onnxruntime was built without it)" in said[-1]
    assert len(list(cache.glob("provider-*.json"))) == 1
    said.clear()
    assert Finisher.load(halving, provider="auto", say=said.append).provider == "cpu"
    assert len(said) == 1 and "as measured before" in said[0]


def test_a_remembered_provider_that_broke_is_replaced(halving, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: WITH_CUDA)
    monkeypatch.setattr(caches, "read_entry", lambda kind, key: {"provider": "cuda", "why": "it was fast"})
    outcomes = {"cpu": Trial("cpu", 1.0, ""), "cuda": Trial("cuda", None, "gone")}
    monkeypatch.setattr(trial, "try_isolated", lambda path, name, *_: outcomes[name])
    said: list[str] = []
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        assert Finisher.load(halving, provider="auto", say=said.append).provider == "cpu"
    assert any("provider cuda no longer works" in line for line in said)


# --- trials -------------------------------------------------------------------------------------------------


def test_a_trial_measures_or_says_why_not(halving):
    works = try_here(halving, "cpu", 1)
    assert works.failure == "" and 0 < works.milliseconds < 1000 and "takes" in str(works)
    asked = Intermediate(np.zeros((1, *SHAPE), dtype=np.float32), 0.5, None, (), "m", "euler", 1, 1.0)
    assert works.batch_size == Finisher.load(halving, threads=1).check(asked)  # what is compared is what is done
    fails = try_here(halving, "xnnpack", 1)
    assert fails.milliseconds is None and "built without it" in fails.failure
    assert try_here(halving.parent / "gone.onnx", "cpu", 1).failure.endswith("expected a client bundle (.onnx).")


def test_a_verdict_says_how_many_images_were_at_once_on_each():
    """Per image on either side, but a GPU's figure is of a batch, which a job of one image has not."""
    assert str(Trial("cpu", 5.0, "")) == "cpu takes 5.00 ms, one at a time"
    assert str(Trial("cuda", 0.5, "", 16)) == "cuda takes 0.50 ms, 16 at a time"


def test_a_trial_in_a_process_of_its_own_comes_to_the_same(halving):
    isolated, here = try_isolated(halving, "cpu", 1), try_here(halving, "cpu", 1)
    assert isolated.milliseconds > 0 and isolated.batch_size == here.batch_size > 1
    assert try_isolated(halving, "xnnpack", 1) == try_here(halving, "xnnpack", 1)


def test_modules_in_the_users_folder_are_not_taken_for_ours(halving, tmp_path, monkeypatch):
    for name in ("edge_client", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    assert try_isolated(Path(halving.name), "cpu", 1).failure == ""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"it crashed \(SIGSEGV\)"),
        ("import os; os.kill(os.getpid(), 9)", r"it was killed \(SIGKILL\), as where memory runs out"),
        ("import os; os.kill(os.getpid(), 40)", r"it crashed \(signal 40\)"),
        ("import time; time.sleep(60)", "it did not finish within 1 s"),
        ("raise SystemExit('no room')", r"exit code 1 \(no room\)"),
        ("print('hello')", "exit code 0"),
        ("print('[1]')", "exit code 0"),
    ],
)
def test_a_child_that_breaks_says_how(monkeypatch, code, message):
    monkeypatch.setattr("edge_client.child.PROGRAM", code)
    with pytest.raises(ChildError, match=message):
        run_child("trial", (), timeout=1 if "sleep" in code else 30)


# --- the cache ----------------------------------------------------------------------------------------------


def test_what_is_remembered_comes_back_for_its_key_alone(cache):
    caches.write_entry("provider", KEY, {"provider": "cpu"})
    assert caches.read_entry("provider", KEY) == {"provider": "cpu"}
    assert caches.read_entry("provider", {**KEY, "machine": "n"}) is None
    caches.write_entry("provider", KEY, {"provider": "cuda"})
    assert caches.read_entry("provider", KEY) == {"provider": "cuda"}
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"key": {}, "value": {}}', b'{"value": {"provider": "cpu"}}', b"[" * 70_000]
)
def test_a_damaged_cache_is_none(cache, text):
    caches.write_entry("provider", KEY, {"provider": "cpu"})
    (entry,) = cache.iterdir()
    entry.write_bytes(text)
    assert caches.read_entry("provider", KEY) is None
    caches.write_entry("provider", KEY, {"provider": "cpu"})
    assert caches.read_entry("provider", KEY) == {"provider": "cpu"}


@pytest.mark.parametrize(
    "value",
    [
        {"provider": "abacus", "why": "w"},
        {"provider": 1, "why": "w"},
        {"provider": "cpu"},
        {"provider": "cpu", "why": "\x1b[2J"},
    ],
)
def test_a_hostile_verdict_is_none(cache, value):
    caches.write_entry("provider", KEY, value)
    assert choice.remembered(KEY, ["cpu", "cuda"], lambda text: pytest.fail(text)) is None


def test_a_cache_that_cannot_be_written_is_none(cache, monkeypatch):
    cache.parent.write_text("a file where the folder should be")
    caches.write_entry("provider", KEY, {"provider": "cpu"})
    assert caches.read_entry("provider", KEY) is None and caches.usable_folder() is None
    assert choose({"cpu": 1.0, "cuda": 2.0}) == "cpu"


def test_a_folder_that_others_can_write_is_not_used(cache):
    """An engine is code to whoever loads it, and a verdict spares a bundle its trial."""
    caches.usable_folder("engines")
    (cache / "engines").chmod(0o777)
    assert caches.usable_folder("engines") is None
    assert caches.write_entry("provider", KEY, {"provider": "cpu"})
    (cache / "engines").chmod(0o700)
    cache.chmod(0o777)
    assert caches.usable_folder("engines") is None  # whoever may write around it can put another in its place
    assert caches.read_entry("provider", KEY) is None and not caches.write_entry("provider", KEY, {"provider": "cpu"})


def test_a_folder_for_engines_makes_the_cache_ours_alone(cache):
    """Where people are in a group of their own, files are made writable for it: so on Ubuntu and Jetson."""
    before = os.umask(0o002)
    try:
        caches.usable_folder("engines", "one")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / "engines", cache / "engines/one")] == [0o700] * 3
    assert caches.usable_folder() == cache


def test_a_cache_that_was_filled_before_it_became_read_only_is_read(cache):
    """As in the image of a device."""
    caches.write_entry("provider", KEY, {"provider": "cpu"})
    cache.chmod(0o500)
    try:
        assert caches.read_entry("provider", KEY) == {"provider": "cpu"}
    finally:
        cache.chmod(0o700)


def test_a_relative_cache_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert caches.cache_folder() == tmp_path / ".cache" / "collafuse"


def test_the_engines_that_were_used_last_are_kept_and_others_go(monkeypatch):
    """A bundle that is exported again, an update of onnxruntime: each leaves an engine that nobody asks for."""
    folders = [caches.engine_folder("tensorrt", str(number)) for number in range(caches.KEPT_ENGINES)]
    for age, folder in enumerate(reversed(folders), start=1):
        (folder / "one.engine").write_bytes(b"")
        os.utime(folder, (1e9 - age, 1e9 - age))
    caches.engine_folder("tensorrt", "0")  # the oldest, used again
    new = caches.engine_folder("tensorrt", "new")
    assert set(new.parent.iterdir()) == {new, *folders} - {folders[1]}


def test_engines_of_another_bundle_or_runtime_lie_elsewhere(monkeypatch):
    one = caches.engine_folder("tensorrt", "a" * 64)
    assert one is not None and one.is_dir()
    assert caches.engine_folder("tensorrt", "a" * 64) == one != caches.engine_folder("tensorrt", "b" * 64)
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")
    assert caches.engine_folder("tensorrt", "a" * 64) != one
