"""examples/simclr.py: a method that the package does not know trains, exports and answers like its own."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

from index.encoder import Encoder
from training.methods import METHODS
from training.recipes import RECIPES

SIMCLR = Path(__file__).parents[2] / "examples" / "simclr.py"
TINY = {
    "image_size": 16,
    "cache_size": 20,
    "width": 0.25,
    "stem": "half",
    "batch_size": 16,
    "epochs": 2,
    "warmup": 0,
    "knn_k": 5,
    "options.temperature": 0.5,
}


def test_a_fifth_method_from_outside_trains_and_exports(shapes_folder, tmp_path, monkeypatch):
    run, encoder = tmp_path / "run", tmp_path / "encoder.onnx"
    tiny = [f"--set={key}={value}" for key, value in TINY.items()]
    command = ["pretrain", "simclr-demo", "--data", shapes_folder, "--out", run, "--threads", 1, *tiny]
    trained = subprocess.run(
        [sys.executable, SIMCLR, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
    assert "epoch    2/2" in trained.stderr
    assert "finished: kNN-5" in trained.stderr
    # The export in this process, which has torch and the exporter loaded; both registries are put back.
    monkeypatch.setitem(METHODS, "simclr", None)
    monkeypatch.setitem(RECIPES, "simclr-demo", None)
    assert runpy.run_path(str(SIMCLR))["main"](["export", str(run), "--out", str(encoder)]) == 0
    loaded = Encoder.load(encoder, threads=1)
    assert loaded.spec.method == "simclr"
    embeddings = loaded.embed(np.zeros((2, 16, 16, 3), np.uint8))
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_it_fits_on_a_screen():
    assert len(SIMCLR.read_text(encoding="utf-8").splitlines()) < 60
