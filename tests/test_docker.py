"""`docker compose up`, with a real engine: build, serve, answer, keep the bank. Skips where there is no engine."""

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = "lookalike-test"

pytestmark = pytest.mark.docker


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compose_command() -> list[str]:
    """Return Compose v2 if it is there, else 1.29; skip without an engine."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs a Docker engine: start one, or point DOCKER_HOST at it")
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
        ):
            return command
    pytest.skip("needs Docker Compose")


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def compose(port: int) -> Iterator:
    command = compose_command()
    environment = os.environ | {"LOOKALIKE_PORT": str(port)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*command, "-p", PROJECT, *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("up", "-d", "--build")
    yield run
    run("down", "-v")


def ask(port: int, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[int, dict]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        with connection.getresponse() as answer:
            return answer.status, json.loads(answer.read())


def wait_until_ready(port: int) -> None:
    for _ in range(100_000):
        try:
            if ask(port, "GET", "/readyz")[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            continue  # nobody listens yet
    raise AssertionError("never ready")


def test_a_stranger_gets_answers_from_the_demo_and_the_bank_survives_down_and_up(compose, port):
    wait_until_ready(port)
    picture = (ROOT / "examples/gallery/wild_animals/fawn.webp").read_bytes()
    status, answer = ask(port, "POST", "/classify", picture, "image/webp")
    assert (status, answer["results"][0]["label"]) == (200, "wild_animals")
    bank = ask(port, "GET", "/info")[1]["bank"]
    compose("down")
    compose("up", "-d")
    wait_until_ready(port)
    assert ask(port, "GET", "/info")[1]["bank"]["generation"] == bank["generation"]


@pytest.mark.usefixtures("compose")
def test_the_container_is_small_holds_no_torch_and_does_not_run_as_root(port):
    wait_until_ready(port)
    (container,) = docker("ps", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
    assert docker("exec", container, "id", "-u").strip() != "0"
    missing = "import importlib.util as u; print([m for m in ('torch', 'training', 'pytest') if u.find_spec(m)])"
    assert docker("exec", container, "python", "-c", missing).strip() == "[]"
    image = docker("inspect", "--format", "{{.Image}}", container).strip()
    assert int(docker("image", "inspect", "--format", "{{.Size}}", image)) < 600e6
