"""The server is killed (-9) in the midst of uploads and samplings."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.core.errors import CollaFuseError, UnreachableError
from collafuse.nodes.runfolder import REGISTRY
from collafuse.nodes.sites import read_releases
from collafuse.serving.registry import Registry
from edge_client.fetching import fetched, send_release
from edge_client.remote import Remote, Trust
from edge_client.wanted import Wanted
from tests.nodes.sites import release_of
from tests.serving.parts import SECONDS
from tests.serving.processes import Process

SHAPE = (1, 4, 4)
AMOUNTS = [pytest.param(6, 1, id="short"), pytest.param(50, 5, id="long", marks=pytest.mark.torture)]


class Site:
    """Where clients of one run keep their files, and what became of each."""

    def __init__(self, path: Path, trained: Path, amount: int) -> None:
        self.path, self.run, self.amount = path, path / "run", amount
        shutil.copytree(trained, self.run / "server")
        self.registry = Registry(self.run / "server" / REGISTRY)
        self.trust = Trust(self.registry.add_token("north", ("sample", "release"))[0])
        for number in range(amount):
            made = release_of(0.5, count=200 + number)  # of different sizes, so that no two are the same
            write_bytes(self.file(number), releases.to_bytes(made))

    def file(self, number: int) -> Path:
        return self.path / "sent" / f"{number}.safetensors"

    def digest(self, number: int) -> str:
        return hashlib.sha256(self.file(number).read_bytes()).hexdigest()

    def held(self) -> dict[str, Path]:
        """The releases that are listed, by digest; each listed once and its file whole."""
        listed = self.registry.releases()
        files = {one.sha256: self.run / "server/releases" / f"north.{one.id}.safetensors" for one in listed}
        assert len(files) == len(listed)
        for digest, path in files.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        return files

    def work(self, url: str, patience: float) -> tuple[dict[int, object], dict[int, object]]:
        """All uploads and all samplings at once; each one's result or its error, by number."""

        def remote() -> Remote:
            return Remote(url, self.trust, patience=patience, pause=lambda seconds: time.sleep(min(seconds, 1.0)))

        def upload(number: int) -> object:
            with remote() as one:
                return send_release(one, self.file(number))["sha256"]

        def sample(number: int) -> object:
            with remote() as one:
                with fetched(one, Wanted("north", 8, seed=number), SHAPE, self.path / f"out-{number}") as parts:
                    return len(parts)

        def outcome(ask: object, number: int) -> object:
            try:
                return ask(number)
            except CollaFuseError as error:
                return error

        with ThreadPoolExecutor(2 * self.amount) as pool:
            asked = [{n: pool.submit(outcome, ask, n) for n in range(self.amount)} for ask in (upload, sample)]
            uploads, samples = ({n: one.result(10 * SECONDS) for n, one in each.items()} for each in asked)
        return uploads, samples


@pytest.fixture
def site(tmp_path, trained_folder):
    return lambda amount: Site(tmp_path, trained_folder.path, amount)


@pytest.fixture
def start():
    """Starts processes; none is left."""
    with ExitStack() as stack:
        yield lambda *arguments, **settings: stack.enter_context(Process(*arguments, **settings))


def kill_amid(process: Process, site: Site, seconds: float) -> threading.Thread:
    """Kill the process some seconds after the first release has come."""

    def watch() -> None:
        until = time.monotonic() + SECONDS
        while not site.registry.releases() and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(("amount", "kills"), AMOUNTS)
def test_what_was_acknowledged_is_there_after_a_kill_and_the_rest_is_a_clear_error(site, start, amount, kills):
    site = site(amount)
    for seconds in np.linspace(0, 0.2, kills):
        process = start(site.run)
        killing = kill_amid(process, site, seconds)
        uploads, samples = site.work(process.url, patience=0)
        killing.join()
        held = site.held()
        for number, outcome in uploads.items():
            if isinstance(outcome, CollaFuseError):
                assert isinstance(outcome, UnreachableError) and "does not answer" in str(outcome)
            else:
                assert outcome == site.digest(number) and outcome in held
        for outcome in samples.values():
            assert outcome == 8 or (isinstance(outcome, UnreachableError) and "does not answer" in str(outcome))


@pytest.mark.parametrize(("amount", "kills"), AMOUNTS)
def test_patient_clients_end_with_their_results_though_the_server_is_killed(site, start, amount, kills):
    site = site(amount)
    processes = [start(site.run)]
    url, port = processes[0].url, processes[0].port

    def kill_and_start() -> None:
        for seconds in np.linspace(0, 0.2, kills):
            kill_amid(processes[-1], site, seconds).join()
            processes.append(start(site.run, port=port))

    killing = threading.Thread(target=kill_and_start)
    killing.start()
    uploads, samples = site.work(url, patience=5 * SECONDS)
    killing.join()
    assert processes[-1].end() == 0
    assert uploads == {n: site.digest(n) for n in range(amount)}
    assert samples == dict.fromkeys(range(amount), 8)
    assert set(site.held()) == set(uploads.values())
    lying = [path for path in (site.run / "server/releases").iterdir() if not path.name.startswith(".")]
    assert len(lying) == amount  # so training sees none twice
    found = read_releases(site.run / "server/releases", accept_simulated=False)
    assert sum(len(one.ids) for one in found["north"]) == sum(200 + n for n in range(amount))
