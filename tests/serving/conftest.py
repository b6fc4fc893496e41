"""A real service on loopback, in this process: uvicorn in a thread, a trained server's folder, tokens."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server import Server
from collafuse.nodes.server_training import train_server
from collafuse.nodes.sites import read_releases
from collafuse.serving.admission import Limits
from collafuse.serving.app import make_app
from collafuse.serving.engine import DEFAULT_STRETCH, Engine
from collafuse.serving.listening import Address, bind, http_server, url_of
from collafuse.serving.service import Service
from tests.nodes.sites import config, release_of
from tests.serving.parts import SECONDS
from tests.tiny import CPU, Recorder

ANYWHERE = Address(port=0)
CUTS = {"north": 0.5, "east": 1.0}
HANDOVERS = {"north": 1.0, "east": 2.0}


def train(path: Path, *, simulated: bool = False) -> NodeFolder:
    """A folder with a server that learned for three steps from two sites' releases."""
    received = path / "sent"
    for name, sigma in CUTS.items():
        write_bytes(received / f"{name}.safetensors", releases.to_bytes(release_of(sigma, simulated=simulated)))
    settings = config({name: {"cut": {"sigma": sigma}, "handover": HANDOVERS[name]} for name, sigma in CUTS.items()})
    folder = NodeFolder(path / "server")
    train_server(settings, read_releases(received, accept_simulated=True), folder, CPU, Recorder())
    return folder


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> NodeFolder:
    """Trained once; read-only for tests."""
    return train(tmp_path_factory.mktemp("trained-server"))


@dataclass
class Running:
    """A service that runs, and how to speak to it."""

    url: str
    service: Service
    folder: NodeFolder
    server: uvicorn.Server
    verify: Any = True

    def token(self, client: str = "north", *scopes: str) -> str:
        return self.service.registry.add_token(client, scopes or ("sample", "release"))[0]

    def http(self, token: str | None = None, **settings: Any) -> httpx.Client:
        """A client with this token; by default one of north."""
        headers = {"Authorization": f"Bearer {token or self.token()}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS, verify=self.verify, **settings)


@contextmanager
def run_service(
    folder: NodeFolder, engine: Engine | None, limits: Limits, address: Address, *, accept_simulated: bool = False
) -> Iterator[Running]:
    """Serve while the block runs."""
    service = Service.open(folder, engine, limits, accept_simulated=accept_simulated)
    server = http_server(make_app(service), address, deadline_seconds=SECONDS)
    with bind(address) as bound:
        if engine is not None:
            engine.start()
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield Running(url_of(address, bound), service, folder, server)
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            service.close()
            if engine is not None and not engine.ended:
                engine.stop()


def copy_of(trained: NodeFolder, path: Path) -> NodeFolder:
    """The trained server's folder once more, for a service that may write to it."""
    folder = NodeFolder(path)
    for name in ("weights.safetensors", "config.yaml", "sites.json"):
        write_bytes(folder.path / name, (trained.path / name).read_bytes(), durable=False)
    return folder


@pytest.fixture(scope="module")
def running(trained_folder: NodeFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service of the trained server for all tests of a file that change nothing in it: starting one takes longer
    than most of what is asked."""
    folder = copy_of(trained_folder, tmp_path_factory.mktemp("running") / "server")
    with run_service(folder, Engine(Server.load(folder, CPU), 4), Limits(), ANYWHERE) as one:
        yield one


@pytest.fixture
def serve(trained_folder: NodeFolder, tmp_path: Path) -> Iterator[Any]:
    """Starts a service: of the trained server, or of the one that is given."""
    with ExitStack() as stack:

        def start(
            server: Server | None = None,
            *,
            receive_only: bool = False,
            address: Address = ANYWHERE,
            slots: int = 4,
            queue_images: int = 1024,
            stretch: float = DEFAULT_STRETCH,
            accept_simulated: bool = False,
            **limits: Any,
        ) -> Running:
            folder = NodeFolder(tmp_path / "server")
            if not folder.weights.exists() and not receive_only:
                copy_of(trained_folder, folder.path)
            engine = None
            if not receive_only:
                made = server or Server.load(folder, CPU)
                engine = Engine(made, slots, queue_images=queue_images, stretch=stretch)
            running = run_service(folder, engine, Limits(**limits), address, accept_simulated=accept_simulated)
            return stack.enter_context(running)

        yield start


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private authority with certificates for localhost and for one client, as docs/serving.md makes them."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so there are no certificates")
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=our authority")
    for name, more in (("server", ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]), ("device", [])):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
                "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key", *more)  # fmt: skip
    return folder
