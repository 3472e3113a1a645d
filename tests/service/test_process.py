"""The service as a process: its command line, its sockets, its end."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EMBED = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
LAST = b"Connection: close\r\n\r\n"


def run(*arguments: object, **more: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **more,
    )  # fmt: skip


def ask(process, method: str, path: str, body: object = None, headers: dict[str, str] | None = None):
    connection = http.client.HTTPConnection(*process.address, timeout=30)
    connection.request(method, path, body, headers or {}, encode_chunked=not isinstance(body, bytes | str | None))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def wait_until_ready(process) -> None:
    for _ in range(2000):
        if ask(process, "GET", "/readyz")[0].status == 200:
            return
    raise AssertionError


def exchange(process, data: bytes) -> bytes:
    """Send raw bytes, and return all that comes until the server closes."""
    with socket.create_connection(process.address, timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.fixture(scope="module")
def shared_process(start_service: Callable[..., object]):
    process = start_service()
    wait_until_ready(process)
    return process


def test_raw_sockets_get_answers_and_the_process_lives(run_service: Callable[..., object]):
    process = run_service("--images", ROOT)
    wait_until_ready(process)

    answer, content = ask(
        process, "POST", "/search", b'{"ids": ["circle/0.png"], "k": 1}', {"Content-Type": "application/json"}
    )
    assert (answer.status, len(json.loads(content)["results"][0]["neighbors"])) == (200, 1)
    assert answer.headers["server"] is None

    chunked = (b"x" * 2**20 for _ in range(40))
    headers = {"Content-Type": "image/png", "Transfer-Encoding": "chunked"}
    answer, content = ask(process, "POST", "/embed", chunked, headers)
    assert (answer.status, json.loads(content)["code"]) == (413, "body_too_large")

    assert b" 413 " in exchange(process, EMBED % 99_999_999_999 + b"x")
    for nonsense in (
        b"nonsense\r\n\r\n",
        EMBED % -1,
        LIVE.replace(b"livez", b"\xff"),
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    ):
        answered = exchange(process, nonsense + b"\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"bad_request"' in answered
        assert b"x-request-id: " in answered
    assert b" 421 " in exchange(process, (LIVE + LAST).replace(b"localhost", b"evil.example"))
    head = exchange(process, (LIVE + LAST).replace(b"GET", b"HEAD"))
    assert b" 200 " in head
    assert head.endswith(b"\r\n\r\n")
    assert exchange(process, LIVE + b"\r\n" + LIVE + LAST).count(b" 200 ") == 2
    for head in (LIVE + b"X: " + b"x" * 2_000_000, LIVE + b"X: y\r\n" * 300_000, b"GET /" + b"x" * 2_000_000):
        assert exchange(process, head).startswith(b"HTTP/1.1 431 ")
    with socket.create_connection(process.address) as gone:
        gone.sendall(EMBED % 500 + b"x")

    assert ask(process, "GET", "/readyz")[0].status == 200
    process.popen.send_signal(signal.SIGTERM)
    out, err = process.popen.communicate(timeout=30)
    assert process.popen.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["message"] for line in lines} == {"request"}
    assert {(line["status"], line["code"]) for line in lines if "status" in line} == {
        (200, None),
        (413, "body_too_large"),
        (421, "host_not_allowed"),
        (499, "client_gone"),
        *((503, "not_ready") for line in lines if line.get("status") == 503),
    }
    assert "Traceback" not in err


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("piece", [7, 10_000])
def test_an_offered_upgrade_is_declined_and_the_request_is_served(
    shared_process, shape_png: Callable[[str, int], bytes], chunked: bool, piece: int
):
    picture = shape_png("circle", 0)
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % len(picture)
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(picture), picture) if chunked else picture
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    data = head + framing + UPGRADE + b"\r\n" + body + LIVE + LAST
    with socket.create_connection(shared_process.address, timeout=20) as connection:
        for start in range(0, len(data), piece):
            connection.sendall(data[start : start + piece])
        received = b""
        while more := connection.recv(65536):
            received += more
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert b'"neighbors":[{"id":"circle/0.png",' in received


def test_a_request_in_progress_is_answered_before_the_end(run_service: Callable[..., object]):
    process = run_service()
    wait_until_ready(process)
    with socket.create_connection(process.address, timeout=20) as connection:
        body = b'{"ids": ["circle/0.png"]}'
        head = (EMBED % len(body)).replace(b"embed", b"search").replace(b"image/png", b"application/json")
        connection.sendall(head + body[:5])
        ask(process, "GET", "/livez")  # by now the upload has begun
        process.popen.send_signal(signal.SIGTERM)
        connection.sendall(body[5:])
        assert b" 200 " in connection.recv(65536)
    assert process.popen.wait(timeout=30) == 0


def test_ctrl_c_ends_quietly(run_service: Callable[..., object]):
    process = run_service()
    wait_until_ready(process)
    process.popen.send_signal(signal.SIGINT)
    _, err = process.popen.communicate(timeout=30)
    assert process.popen.returncode == 0
    assert "Traceback" not in err


@pytest.fixture
def handlers() -> Iterator[None]:
    """The command line takes over the signals; give them back to the test run."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_what_is_wrong_is_one_sentence_and_status_2_before_serving(
    tiny_encoder_path: Path,
    other_encoder_path: Path,
    bank_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    from service.__main__ import main

    good = ("--encoder", tiny_encoder_path, "--bank", bank_path)
    (tmp_path / "text.onnx").write_text("no model")
    for arguments, expected in [
        ((*good, "--port", 70_000), "port: "),
        (("--port", 0), "--encoder FILE and --bank FOLDER"),
        (("--encoder", tmp_path / "none.onnx", "--bank", bank_path, "--port", 0), "none.onnx"),
        (("--encoder", tmp_path / "text.onnx", "--bank", bank_path, "--port", 0), "text.onnx"),
        (("--encoder", tiny_encoder_path, "--bank", tmp_path / "none", "--port", 0), "none"),
        (("--encoder", other_encoder_path, "--bank", bank_path, "--port", 0), "expected encoder"),
        ((*good, "--port", 0, "--images", tmp_path / "none"), "--images"),
        ((*good, "--port", 0, "--host", "0.0.0.0"), "--insecure"),
        ((*good, "--port", 0, "--host", "no.such.host.invalid", "--insecure"), "no.such.host.invalid"),
    ]:
        assert main([str(argument) for argument in arguments]) == 2
        told = capsys.readouterr()
        assert expected in told.err, (arguments, told.err)
        assert told.err.startswith("service: ")
        assert (told.err.count("\n"), told.out) == (1, "")


def test_a_port_in_use_is_one_sentence_and_status_2(tiny_encoder_path: Path, bank_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--encoder", tiny_encoder_path, "--bank", bank_path, "--port", port)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("service: ")
    assert f":{port} to be free" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_help_is_instant():
    code = (
        "import sys, service.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'fastapi', 'uvicorn', 'onnxruntime', 'faiss', 'pydantic', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "--encoder" in ended.stdout


def test_an_environment_variable_with_an_impossible_value_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("LOOKALIKE_MAX_K", "many"), ("LOOKALIKE_ALLOWED_HOSTS", "a,b")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            ended = run("--port", 0)
        assert ended.returncode == 2
        assert name.removeprefix("LOOKALIKE_").lower() in ended.stderr
        assert "Traceback" not in ended.stderr
        assert value not in ended.stderr or name == "LOOKALIKE_MAX_K"


def test_serving_needs_no_torch(tiny_encoder_path: Path, bank_path: Path):
    code = f"""
import sys
for name in ("torch", "torchvision", "onnx", "onnxscript", "training"): sys.modules[name] = None
from service.app import create_app
from service.engine import load
from service.settings import Settings
from starlette.testclient import TestClient
settings = Settings(encoder={str(tiny_encoder_path)!r}, bank={str(bank_path)!r}, threads=1)
with TestClient(create_app(settings), base_url="http://localhost") as client:
    while client.get("/readyz").status_code != 200: assert client.get("/livez").status_code == 200
    assert client.post("/search", json={{"ids": ["circle/0.png"]}}).status_code == 200
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_missing_bank_leaves_a_live_process_that_says_why_it_is_not_ready(
    tiny_encoder_path: Path, tmp_path: Path
):
    from starlette.testclient import TestClient

    from service.app import create_app
    from service.settings import Settings

    app = create_app(Settings(encoder=tiny_encoder_path, bank=tmp_path / "none", threads=1))
    with TestClient(app, base_url="http://localhost") as client:
        deadline = time.monotonic() + 20
        while "none" not in (answer := client.get("/readyz")).json()["detail"]:
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/search", json={"ids": ["a"]}).status_code == 503
        assert client.get("/livez").status_code == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_curl_example_runs(run_service: Callable[..., object], shapes_folder: Path):
    process = run_service()
    wait_until_ready(process)
    picture = shapes_folder / "circle" / "0.png"
    ended = subprocess.run(
        ["sh", ROOT / "examples" / "ask.sh", picture, process.url], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert answers[0]["results"][0]["neighbors"][0]["id"] == "circle/0.png"
    assert len(answers[1]["results"][0]["votes"]) == 3
    assert answers[2]["results"][0]["neighbors"][0]["id"] == "circle/0.png"
    assert len(answers[3]["results"][0]["neighbors"]) == 2
    assert answers[4] == {"status": "ready"}
