"""From a run to encoder.onnx, through the runtime that serves it."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from index import images
from index.encoder import Encoder
from index.errors import CheckpointError, TrainingError
from index.knn import KnnProtocol, leave_one_out
from training import export, graph, proof
from training.backbone import build
from training.data import load_pictures
from training.evaluation.pca import fit_pca
from training.recipes import Rotation
from training.runs import start


@pytest.fixture(scope="module")
def exported(tiny_recipe, shapes_folder, tmp_path_factory):
    """A run of the tiny recipe, exported once for all tests."""
    torch.set_num_threads(1)
    recipe = dataclasses.replace(tiny_recipe, epochs=2, whiten=1.0)
    root = tmp_path_factory.mktemp("export")
    start(recipe, data=shapes_folder, test=None, labels=True, folder=root / "run", threads=1)
    return root, export.export_run(root / "run", root / "encoder.onnx")


def test_the_file_describes_itself(exported):
    root, result = exported
    spec = Encoder.load(root / "encoder.onnx").spec  # this recomputes the canary
    assert spec == result.spec
    assert (spec.name, spec.method, spec.backbone, spec.dim) == ("tiny", "npid", "resnet18", 128)
    assert spec.preprocess == images.Preprocess(resize=16, crop=16, fit="pad")
    assert spec.recipe["options"]["temperature"] == 0.2
    assert spec.trained_on["pictures"] == 32


def test_the_recorded_accuracy_is_what_the_service_gives_by_leave_one_out(exported, shapes_folder):
    root, result = exported
    encoder = Encoder.load(root / "encoder.onnx")
    files = sorted(shapes_folder.rglob("*.png"), key=lambda file: file.relative_to(shapes_folder).as_posix())
    classes = sorted({file.parent.name for file in files})
    vectors = encoder.embed_pictures([file.read_bytes() for file in files])
    labels = np.array([classes.index(file.parent.name) for file in files])
    report = result.spec.knn
    protocol = KnnProtocol(report.k, report.temperature)
    assert report.top1 == leave_one_out(protocol, vectors, labels, 4)
    assert report.top1 == max(result.scores.values())
    assert (report.split, report.items) == ("leave-one-out", 32)


def test_the_report_names_protocol_split_and_both_heads(exported):
    _, result = exported
    text = str(result)
    assert "kNN-5 τ=0.07, leave-one-out, 32 pictures, 4 classes: projection 0." in text
    assert f"kept {result.spec.head}" in text


def test_one_whole_file_without_external_data_or_traces_of_this_machine(exported):
    root, _ = exported
    assert [path.name for path in root.iterdir() if path.name != "run"] == ["encoder.onnx"]
    model = onnx.load(root / "encoder.onnx", load_external_data=False)
    onnx.checker.check_model(model)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    text = (root / "encoder.onnx").read_bytes()
    assert b".py" not in text
    assert b"site-packages" not in text


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_any_batch_gives_the_same_unit_rows(exported, shapes_folder, tiny_recipe, batch):
    root, _ = exported
    encoder = Encoder.load(root / "encoder.onnx")
    pixels = load_pictures(shapes_folder, tiny_recipe).prepared
    whole = encoder.embed(pixels)
    parts = np.concatenate([encoder.embed(pixels[start : start + batch]) for start in range(0, 32, batch)])
    assert np.allclose(whole, parts, atol=1e-5)
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def int8(exported):
    """The same run, exported quantised."""
    root, _ = exported
    return root, export.export_run(root / "run", root / "int8" / "encoder.onnx", int8=True)


def test_the_int8_file_says_so_is_smaller_and_proves_itself(exported, int8):
    root, result = int8
    spec = Encoder.load(root / "int8" / "encoder.onnx").spec  # this recomputes its own canary
    assert spec == result.spec
    assert spec.precision == "int8"
    assert exported[1].spec.precision == "float32"
    assert spec.head == exported[1].spec.head
    assert spec.canary != exported[1].spec.canary
    assert (root / "int8" / "encoder.onnx").stat().st_size < 0.5 * (root / "encoder.onnx").stat().st_size


def test_the_int8_accuracy_is_that_of_the_int8_file(int8, shapes_folder, tiny_recipe):
    root, result = int8
    pictures = load_pictures(shapes_folder, tiny_recipe)
    vectors = Encoder.load(root / "int8" / "encoder.onnx").embed(pictures.prepared)
    before = Encoder.load(root / "encoder.onnx").embed(pictures.prepared)
    report = result.spec.knn
    assert report.top1 == leave_one_out(KnnProtocol(report.k, report.temperature), vectors, pictures.labels, 4)
    assert result.int8.after == report.top1
    assert result.int8.before == max(result.scores.values())
    assert result.int8.cosine == pytest.approx(float((vectors * before).sum(axis=1).mean()), abs=1e-6)
    assert result.int8.cosine > 0.99


def test_the_report_tells_what_int8_costs_and_gains(int8):
    _, result = int8
    text = str(result)
    assert "head: " + result.spec.head + ", int8" in text
    assert "int8, calibrated on 32 pictures: " in text
    assert "points, " in text
    assert "batch 1: " in text
    assert "batch 32: " in text
    worse = dataclasses.replace(result.int8, before=0.5, after=0.496)
    assert "(-0.40 points, MORE than the 0.3 that int8 should cost)" in str(worse)
    assert "(-0.20 points, within 0.3)" in str(dataclasses.replace(worse, after=0.498))


def test_a_method_without_a_projection_gets_the_pca_head(shapes_folder, tmp_path, tiny_recipe):
    recipe = dataclasses.replace(tiny_recipe, options=Rotation(), epochs=1)
    start(recipe, data=shapes_folder, test=None, labels=True, folder=tmp_path / "run", threads=1)
    result = export.export_run(tmp_path / "run", tmp_path / "e.onnx")
    assert (result.spec.method, result.spec.head) == ("rotation", "pca")
    assert list(result.scores) == ["pca"]
    assert "projection" not in str(result)
    assert Encoder.load(tmp_path / "e.onnx").spec.dim == 128


def test_the_pca_head_in_the_graph_is_the_pca():
    features = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    pca = fit_pca(features, 8, 1.0)
    layer = graph.linear(pca)
    with torch.inference_mode():
        folded = torch.nn.functional.normalize(layer(torch.from_numpy(features)), dim=1).numpy()
    assert np.allclose(folded, pca(features), atol=1e-4)


def test_a_runtime_that_disagrees_with_torch_is_refused(exported, shapes_folder, tiny_recipe):
    root, _ = exported
    encoder = Encoder.load(root / "encoder.onnx")
    other = build(tiny_recipe).eval()  # other weights
    pictures = load_pictures(shapes_folder, tiny_recipe)
    with pytest.raises(TrainingError, match="nothing was written"):
        proof.prove_parity(graph.Graph(other), encoder, pictures)


def test_other_pictures_than_the_run_s_are_refused_unless_they_are_asked_for(exported, tmp_path, shape_png):
    root, _ = exported
    for kind in ("circle", "square"):
        (tmp_path / kind).mkdir()
        for seed in range(4):
            (tmp_path / kind / f"{seed}.png").write_bytes(shape_png(kind, seed + 50))
    result = export.export_run(root / "run", tmp_path / "other.onnx", data=tmp_path)
    assert result.spec.knn.items == 8
    assert result.spec.trained_on["pictures"] == 32
    document = (root / "run" / "recipe.json").read_text()
    moved = tmp_path / "run"
    moved.mkdir()
    (moved / "recipe.json").write_text(document.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(CheckpointError, match="give their place with --data"):
        export.export_run(moved, tmp_path / "moved.onnx")
    assert not (tmp_path / "moved.onnx").exists()


def test_a_place_that_cannot_be_written_is_told(exported, tmp_path, monkeypatch):
    root, _ = exported
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(export, "trace", lambda *_: None)  # the place is tried before the file is needed
    with pytest.raises(TrainingError, match=r"expected to write .*e\.onnx, got: (Not a directory|File exists)"):
        export.export_run(root / "run", tmp_path / "file" / "e.onnx")


def test_a_run_without_a_checkpoint_is_told(exported, tmp_path):
    root, _ = exported
    (tmp_path / "recipe.json").write_text((root / "run" / "recipe.json").read_text())
    with pytest.raises(CheckpointError, match="expected a checkpoint in"):
        export.export_run(tmp_path, tmp_path / "e.onnx")


def test_without_labels_the_heads_are_compared_by_instance_retrieval(shapes_folder, tmp_path, tiny_recipe):
    recipe = dataclasses.replace(tiny_recipe, epochs=1)
    start(recipe, data=shapes_folder, test=None, labels=False, folder=tmp_path / "run", threads=1)
    result = export.export_run(tmp_path / "run", tmp_path / "e.onnx")
    assert result.spec.knn is None
    assert "instance retrieval" in str(result)
