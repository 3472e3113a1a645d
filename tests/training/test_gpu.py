"""The same step on a GPU as on the CPU."""

import dataclasses

import pytest
import torch

from training.data import load_pictures
from training.evaluation.knn import Evaluation
from training.loop import Training

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")


def test_a_run_on_the_gpu_learns_what_the_cpu_learns(tiny_recipe, shapes_folder, tmp_path, monkeypatch):
    recipe = dataclasses.replace(tiny_recipe, epochs=1)
    scores = []
    for name, available in (("gpu", True), ("cpu", False)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        (tmp_path / name).mkdir()
        training = Training(recipe, Evaluation(recipe, load_pictures(shapes_folder, recipe)), tmp_path / name)
        scores.append(training.run())
        assert next(training.method.parameters()).device.type == ("cuda" if available else "cpu")
    on_gpu, on_cpu = scores
    assert on_gpu is not None
    assert on_cpu is not None
    assert on_gpu.pca == pytest.approx(on_cpu.pca, abs=0.1)  # one picture in 32 is 0.03
