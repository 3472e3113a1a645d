"""The loop: exact resume, honest stops, and a run that learns."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from index.errors import CheckpointError, CollapseError, TrainingError
from training import checkpoints, collapse, metrics
from training.data import load_pictures
from training.evaluation.knn import Evaluation
from training.loop import Training
from training.methods import METHODS
from training.methods.npid import NPID

CHILD = """
import json, sys
from pathlib import Path
from training.recipes import from_json
from training.runs import start
recipe = from_json(json.loads(sys.argv[1]))
data, folder = Path(sys.argv[2]), Path(sys.argv[3])
start(recipe, data=data, test=None, labels=True, folder=folder, threads=1, save_seconds=0.0)
"""


def training(recipe, folder, out, **options):
    out.mkdir(exist_ok=True)
    return Training(recipe, Evaluation(recipe, load_pictures(folder, recipe)), out, **options)


def everything(folder):
    saved = checkpoints.load(checkpoints.latest(folder))
    for clock in ("seconds", "waited"):
        saved["state"].pop(clock)
    return saved


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def curves(folder):
    written = metrics.read(folder)
    epochs = [
        {key: value for key, value in line.items() if key not in ("seconds", "wait")} for line in written.epochs
    ]
    return written.baselines, epochs


def child(recipe, data, out):
    command = [sys.executable, "-c", CHILD, json.dumps(recipe.to_json()), str(data), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("loss", ["softmax", "nce", "infonce"])
def test_killed_at_a_random_step_and_resumed_equals_never_killed_to_the_bit(
    tiny_recipe, shapes_folder, tmp_path, loss
):
    options = dataclasses.replace(tiny_recipe.options, loss=loss, negatives=16, partition="ema")
    recipe = dataclasses.replace(tiny_recipe, options=options, epochs=6)
    straight = training(recipe, shapes_folder, tmp_path / "straight")
    straight.run()
    run = tmp_path / "killed"
    stop_at = random.randint(2, 20)  # of 24 steps
    process = child(recipe, shapes_folder, run)
    while process.poll() is None:
        newest = checkpoints.latest(run) if run.exists() else None
        if newest and int(newest.stem.split("-")[1]) >= stop_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    training(recipe, shapes_folder, run).run()
    assert same(everything(tmp_path / "straight"), everything(run)), f"killed at step {stop_at} or later"
    assert curves(tmp_path / "straight") == curves(run)


def test_ctrl_c_saves_at_the_next_step_and_says_how_to_go_on(tiny_recipe, shapes_folder, tmp_path):
    recipe = dataclasses.replace(tiny_recipe, epochs=2000)
    run = tmp_path / "run"
    process = child(recipe, shapes_folder, run)
    while not (run.exists() and checkpoints.latest(run)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "run the same command again to go on" in said
    step = checkpoints.load(checkpoints.latest(run))["state"]["step"]
    assert f"interrupted at step {step} of 8,000" in said


def test_a_finished_run_is_not_trained_again(tiny_recipe, shapes_folder, tmp_path):
    first = training(tiny_recipe, shapes_folder, tmp_path / "run")
    assert first.run()
    before = everything(tmp_path / "run")
    again = training(tiny_recipe, shapes_folder, tmp_path / "run")
    assert again.run()
    assert again.scores == first.scores
    assert same(before, everything(tmp_path / "run"))


def test_the_last_two_checkpoints_and_the_best_are_kept(tiny_recipe, shapes_folder, tmp_path):
    training(tiny_recipe, shapes_folder, tmp_path / "run", save_seconds=0.0).run()
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pt"))
    assert names == ["best.pt", "checkpoint-000000011.pt", "checkpoint-000000012.pt"]
    best = checkpoints.load(tmp_path / "run" / "best.pt")["state"]
    scores = [max(line["knn_pca"], line["knn_projection"]) for line in metrics.read(tmp_path / "run").epochs]
    assert best["best"] == max(scores)


def test_each_picture_is_seen_at_most_once_an_epoch_in_an_order_of_its_own(tiny_recipe, shapes_folder, tmp_path):
    run = training(tiny_recipe, shapes_folder, tmp_path / "run")
    orders = [run.plan.order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(32)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == run.plan.order(1).tolist()


def test_a_loss_that_is_not_a_number_stops_the_run_with_a_sentence(tiny_recipe, shapes_folder, tmp_path):
    recipe = dataclasses.replace(tiny_recipe, learning_rate=1e12, warmup=0)
    with pytest.raises(CollapseError, match=r"expected a finite loss, got nan at step .* lower learning_rate"):
        training(recipe, shapes_folder, tmp_path / "run").run()


class Collapsed(NPID):
    """Every embedding is the same."""

    def loss(self, batch):
        loss = super().loss(batch)
        return dataclasses.replace(loss, embeddings=torch.ones_like(loss.embeddings))


def test_equal_embeddings_stop_the_run_with_a_sentence(tiny_recipe, shapes_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "npid", Collapsed)
    recipe = tiny_recipe
    with pytest.raises(CollapseError, match=r"embeddings that differ .* in epoch 1"):
        training(recipe, shapes_folder, tmp_path / "run").run()


def test_spread_and_uniformity_tell_a_full_sphere_from_a_point():
    sphere = torch.nn.functional.normalize(torch.randn(500, 128), dim=1)
    point = sphere[:1].repeat(500, 1)
    assert float(collapse.spread(sphere)) == pytest.approx(1, abs=0.05)
    assert float(collapse.spread(point)) == pytest.approx(0, abs=1e-5)
    assert float(collapse.uniformity(sphere)) == pytest.approx(-4, abs=0.1)
    assert float(collapse.uniformity(point)) == pytest.approx(0, abs=1e-5)


def test_fewer_pictures_than_a_batch_are_refused_with_the_batch_size_that_would_do(
    tiny_recipe, shapes_folder, tmp_path
):
    recipe = dataclasses.replace(tiny_recipe, batch_size=64)
    with pytest.raises(TrainingError, match=r"one batch of 64 pictures, got 32; .* --set batch_size=16"):
        training(recipe, shapes_folder, tmp_path / "run")


def test_another_recipe_is_refused_with_what_differs(tiny_recipe, tmp_path):
    checkpoints.write_recipe(tmp_path, tiny_recipe, {"fingerprint": "a", "pictures": 3})
    checkpoints.write_recipe(tmp_path, tiny_recipe, {"fingerprint": "a", "pictures": 3})
    changed = dataclasses.replace(tiny_recipe, options=dataclasses.replace(tiny_recipe.options, temperature=0.5))
    with pytest.raises(CheckpointError, match=r"got options\.temperature 0\.2 → 0\.5; .* another --out"):
        checkpoints.write_recipe(tmp_path, changed, {"fingerprint": "a", "pictures": 3})
    with pytest.raises(CheckpointError, match=r"the 3 pictures .* got 4 that differ"):
        checkpoints.write_recipe(tmp_path, tiny_recipe, {"fingerprint": "b", "pictures": 4})


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_still_works(tiny_recipe, shapes_folder, tmp_path):
    run = tmp_path / "run"
    training(tiny_recipe, shapes_folder, run, save_seconds=0.0).run()
    whole = everything(run)
    newest = checkpoints.latest(run)
    newest.write_bytes(newest.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="got a damaged one; delete it to resume from the one before"):
        training(tiny_recipe, shapes_folder, run).run()
    newest.unlink()
    training(tiny_recipe, shapes_folder, run).run()
    assert same(whole, everything(run))


def test_a_full_disk_is_told_and_the_checkpoint_before_it_stays_whole(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, {"x": torch.zeros(3)})

    def full(_path, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(CheckpointError, match="got: No space left on device; the checkpoint before it is whole"):
        checkpoints.save(tmp_path, 2, {"x": torch.zeros(3)})
    assert checkpoints.load(checkpoints.latest(tmp_path))["x"].tolist() == [0, 0, 0]


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch " + str(tmp_path / "ran"),))

    path = tmp_path / "checkpoint-000000001.pt"
    torch.save({"format_version": 1, "x": Evil()}, path)
    with pytest.raises(CheckpointError, match="got a damaged one"):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"without recipe\.json"):
        checkpoints.read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(CheckpointError, match="got something else"):
        checkpoints.read_recipe(tmp_path)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_precision_trains_and_keeps_float32_weights(tiny_recipe, shapes_folder, tmp_path, precision):
    recipe = dataclasses.replace(tiny_recipe, precision=precision, epochs=2, clip=1.0)
    run = training(recipe, shapes_folder, tmp_path / "run")
    before = {name: value.clone() for name, value in run.method.named_parameters()}
    assert run.run()
    assert all(value.dtype == torch.float32 for value in run.method.parameters())
    assert all(not torch.equal(value, before[name]) for name, value in run.method.named_parameters())


def test_a_float16_step_that_overflows_moves_nothing_and_writes_nothing(tiny_recipe, shapes_folder, tmp_path):
    recipe = dataclasses.replace(tiny_recipe, precision="float16")
    run = training(recipe, shapes_folder, tmp_path / "run")
    before = {name: value.clone() for name, value in run.method.state_dict().items() if "running" not in name}
    run.update._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # every gradient is infinite
    rows = run.plan.rows(0, run.plan.shares[0])
    run._step(run.method, iter([run.evaluation.train.cached[rows]]))
    after = run.method.state_dict()
    assert run.state.step == 1
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "num_batches" not in name)
