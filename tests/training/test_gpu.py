"""The same step on a GPU as on the CPU."""

import dataclasses

import pytest
import torch

from training.data import load_pictures
from training.evaluation.knn import Evaluation
from training.loop import Training
from training.recipes import MocoV2, Npid, RelativeLocation, Rotation

pytestmark = pytest.mark.gpu

METHODS = {
    "npid": Npid(temperature=0.2),
    "nce": Npid(loss="nce", negatives=16),
    "infonce": Npid(loss="infonce", negatives=16),
    "moco_v2": MocoV2(queue=12, symmetric=True),
    "rotation": Rotation(),
    "relative_location": RelativeLocation(crop=18, patch=5, hidden=32),
}


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_the_gpu_learns_what_the_cpu_learns(tiny_recipe, shapes_folder, tmp_path, monkeypatch, method):
    recipe = dataclasses.replace(tiny_recipe, options=METHODS[method], epochs=1)
    scores = []
    for name, available in (("gpu", True), ("cpu", False)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        (tmp_path / name).mkdir()
        training = Training(recipe, Evaluation(recipe, load_pictures(shapes_folder, recipe)), tmp_path / name)
        assert training.run()
        scores.append(training.scores)
        assert next(training.method.parameters()).device.type == ("cuda" if available else "cpu")
    on_gpu, on_cpu = scores
    assert on_gpu.pca == pytest.approx(on_cpu.pca, abs=0.1)  # one picture in 32 is 0.03


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_trains_on_the_gpu_and_goes_on_after_a_stop(
    tiny_recipe, shapes_folder, tmp_path, method, precision
):
    recipe = dataclasses.replace(tiny_recipe, options=METHODS[method], precision=precision, epochs=2)
    evaluation = Evaluation(recipe, load_pictures(shapes_folder, recipe))
    assert Training(recipe, evaluation, tmp_path, save_seconds=0.0).run()
    (tmp_path / "checkpoint-000000008.pt").unlink()
    again = Training(recipe, evaluation, tmp_path)
    assert again.run()
    assert again.scores is not None
    assert all(bool(torch.isfinite(value).all()) for value in again.method.parameters())
