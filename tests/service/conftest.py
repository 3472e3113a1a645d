"""A real service over a real bank: 32 labelled shapes, one picture without a label."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.testclient import TestClient

from index.encoder import Encoder
from index.items import Item
from index.manifest import EncoderIdentity
from index.memory_bank import MemoryBank
from index.retriever import Retriever
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[2]

Serve = Callable[..., TestClient]


def build_bank(path: Path, encoder: Encoder, pictures: Path, *, labelled: bool = True) -> Path:
    files = sorted(pictures.rglob("*.png"))
    items = [
        Item(
            id=str(file.relative_to(pictures)),
            uri=str(file.relative_to(pictures)),
            label=file.parent.name if labelled else None,
            metadata={"seed": int(file.stem), "note": "<b>café</b>"},
        )
        for file in files
    ]
    with MemoryBank.create(path, encoder=EncoderIdentity.of(encoder)) as bank:
        bank.add(items, encoder.embed_pictures([file.read_bytes() for file in files]))
    return path


@pytest.fixture(scope="session")
def bank_path(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Encoder, shapes_folder: Path) -> Path:
    return build_bank(tmp_path_factory.mktemp("served") / "bank", tiny_encoder, shapes_folder)


@pytest.fixture(scope="session")
def unlabelled_bank_path(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Encoder, shapes_folder: Path
) -> Path:
    return build_bank(tmp_path_factory.mktemp("plain") / "bank", tiny_encoder, shapes_folder, labelled=False)


@pytest.fixture(scope="session")
def retriever(tiny_encoder: Encoder, bank_path: Path) -> Iterator[Retriever]:
    with MemoryBank.open(bank_path, encoder=EncoderIdentity.of(tiny_encoder), read_only=True) as bank:
        yield Retriever(tiny_encoder, bank)


def wait_until_ready(client: TestClient) -> None:
    for _ in range(10_000):
        if client.get("/readyz").status_code == 200:
            return
    raise AssertionError(client.get("/readyz").text)


@pytest.fixture
def serve(retriever: Retriever) -> Iterator[Serve]:
    """Start a service in this process, ready; settings as keyword arguments."""
    with ExitStack() as stack:

        def start(
            over: Retriever = retriever, *, headers: dict[str, str] | None = None, **settings: object
        ) -> TestClient:
            app = create_app(Settings(threads=2, **settings), over)
            client = TestClient(app, base_url="http://localhost", headers=headers, raise_server_exceptions=False)
            stack.enter_context(client)
            wait_until_ready(client)
            return client

        yield start


@pytest.fixture(scope="session")
def client(retriever: Retriever, shapes_folder: Path) -> Iterator[TestClient]:
    """One service for all tests that only ask."""
    app = create_app(
        Settings(threads=2, images=shapes_folder, max_pictures=4, max_queries=40, max_k=500), retriever
    )
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


class Process(NamedTuple):
    """A service in its own process."""

    popen: "subprocess.Popen[str]"
    url: str

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "service", *map(str, arguments)]


def processes(tiny_encoder_path: Path, bank_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `python -m service` on free ports; killed at the end if the test did not."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> Process:
        popen = subprocess.Popen(
            command("--encoder", tiny_encoder_path, "--bank", bank_path, "--port", 0, "--threads", 1, *arguments),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(popen)
        assert popen.stderr is not None
        line = popen.stderr.readline()
        assert "http://" in line, line + popen.stderr.read()
        return Process(popen, next(word for word in line.split() if word.startswith("http://")))

    yield start
    for popen in started:
        if popen.poll() is None:
            popen.kill()
        popen.communicate()


run_service = pytest.fixture(processes, name="run_service")
start_service = pytest.fixture(processes, name="start_service", scope="session")
