"""The whole way, with real parts: pictures → pretraining → encoder.onnx → bank → service → an answer.

And the promise that holds it together: the accuracy that training prints, the one in the encoder's description and
the one that POST /classify has (leave-one-out over the bank) are the same number.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from index.encoder import Encoder
from index.images import decode
from index.indexer import build
from index.manifest import EncoderIdentity
from index.memory_bank import MemoryBank
from index.retriever import Retriever
from index.sources import open_source

ROOT = Path(__file__).parents[1]
TINY = ["image_size=16", "cache_size=20", "width=0.25", "stem=half", "batch_size=8", "epochs=2"]
TINY += ["warmup=0", "knn_every=1", "knn_k=5", "precision=float32"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def pretrain(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    settings = [word for setting in TINY for word in ("--set", setting)]
    return run("training", "pretrain", "npid-demo", "--data", data, "--out", out, "--threads", 1, *settings)


def accuracy_through_http(retriever: Retriever) -> float:
    """Ask the service about every item by its id, its own vote excluded, with its default protocol."""
    testclient = pytest.importorskip("starlette.testclient")
    from service.app import create_app
    from service.settings import Settings

    right = asked = 0
    with testclient.TestClient(create_app(Settings(), retriever), base_url="http://localhost") as client:
        while client.get("/readyz").status_code != 200:
            pass
        after = None
        while asked == 0 or after is not None:
            page = client.get("/items", params={"limit": 100} | ({"after": after} if after else {})).json()
            items, after = page["items"], page["next"]
            answer = client.post("/classify", json={"ids": [item["id"] for item in items], "votes": 1})
            assert answer.status_code == 200, answer.text
            asked += len(items)
            results = answer.json()["results"]
            right += sum(got["label"] == item["label"] for got, item in zip(results, items, strict=True))
    assert asked == retriever.bank.count
    return right / asked


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Iterator[tuple[Path, str, str]]:
    """A run of two epochs and its export: (folder, what pretrain printed, what export printed)."""
    pytest.importorskip("torch", reason="training needs torch")
    folder = tmp_path_factory.mktemp("whole")
    pretrained = pretrain(shapes_folder, folder / "run")
    exported = run("training", "export", folder / "run", "--out", folder / "encoder.onnx")
    yield folder, pretrained.stderr, exported.stdout
    shutil.rmtree(folder)


def test_training_the_encoder_and_the_service_report_one_accuracy(trained, shapes_folder):
    folder, printed, exported = trained
    encoder = Encoder.load(folder / "encoder.onnx", threads=1)
    report = encoder.spec.knn
    assert report is not None
    assert (report.split, report.items) == ("leave-one-out", 32)

    finished = next(line for line in printed.splitlines() if line.startswith("finished"))
    told = {"projection": r"projection ([\d.]+)", "pca": r"PCA head ([\d.]+)"}[encoder.spec.head]
    found = re.search(told, finished)
    assert found is not None
    assert float(found[1]) == pytest.approx(report.top1, abs=5e-5)  # four digits are printed
    assert f"{encoder.spec.head} {report.top1:.4f}" in exported

    run("index", "build", "--encoder", folder / "encoder.onnx", "--images", shapes_folder, "--out", folder / "bank")
    with MemoryBank.open(folder / "bank", encoder=EncoderIdentity.of(encoder), read_only=True) as bank:
        assert accuracy_through_http(Retriever(encoder, bank)) == report.top1


def test_an_export_is_one_file_and_its_run_resumes_to_nothing(trained, shapes_folder):
    folder, _, _ = trained
    assert {path.name for path in folder.iterdir()} >= {"run", "encoder.onnx"}
    assert [path.name for path in folder.glob("encoder.onnx*")] == ["encoder.onnx"]
    again = pretrain(shapes_folder, folder / "run")
    assert "finished" in again.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    """The bank of `make demo`."""
    encoder = Encoder.load(ROOT / "examples" / "encoder.onnx")
    path = tmp_path_factory.mktemp("demo") / "bank"
    with MemoryBank.create(path, encoder=EncoderIdentity.of(encoder)) as bank:
        report = build(open_source(ROOT / "examples" / "gallery"), encoder, bank)
        assert not report.skipped
        bank.compact()
        yield Retriever(encoder, bank)


def test_the_demos_encoder_is_as_good_through_http_as_its_description_says(demo):
    report = demo.encoder.spec.knn
    assert report is not None
    assert report.items == demo.bank.count
    assert accuracy_through_http(demo) == report.top1


def test_the_demos_encoder_fits_its_box(demo):
    assert demo.encoder.path.stat().st_size <= 12e6
    assert demo.encoder.dim == 128
    assert demo.encoder.spec.method == "npid"


@pytest.mark.parametrize(("mirrored", "k", "least"), [(False, 1, 0.98), (True, 3, 0.6)])
def test_a_drawing_that_was_enlarged_and_compressed_finds_itself(demo, mirrored, k, least):
    """104 drawings at three times their size as JPEG: all were their own nearest, mirrored 75 among three."""
    pictures = list(open_source(ROOT / "examples" / "gallery"))[::25]
    found = 0
    for picture in pictures:
        drawing = decode(picture.read())
        larger = drawing.resize((drawing.width * 3, drawing.height * 3), Image.Resampling.BICUBIC)
        out = BytesIO()
        (ImageOps.mirror(larger) if mirrored else larger).save(out, "JPEG", quality=85)
        (neighbors,) = demo.search(demo.embed([out.getvalue()]), k=k)
        found += picture.id in {neighbor.item.id for neighbor in neighbors}
    assert len(pictures) > 90
    assert found / len(pictures) >= least
