"""Several processes over gloo: what one process computes, and what a killed one costs."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from index.errors import RecipeError
from training import checkpoints
from training.data import load_pictures
from training.distributed import Processes
from training.evaluation.knn import Evaluation
from training.loop import Training
from training.plan import Plan
from training.recipes import MocoV2, Npid

RUN = """
import json, os, sys
from pathlib import Path
from training import loop
from training.recipes import from_json
from training.runs import start
recipe = from_json(json.loads(sys.argv[1]))
data, folder = Path(sys.argv[2]), Path(sys.argv[3])
loop._LOOK_STEPS = 1
Path(f"{sys.argv[4]}.{os.environ['RANK']}.{os.environ['TORCHELASTIC_RESTART_COUNT']}").write_text(str(os.getpid()))
start(recipe, data=data, test=None, labels=True, folder=folder, threads=1, save_seconds=0.0)
"""
STEP = """
import json, os, sys
from pathlib import Path
import torch
from training import distributed
from training.data import load_pictures
from training.distributed import processes
from training.evaluation.knn import Evaluation
from training.loop import Training
from training.recipes import from_json
torch.set_num_threads(1)

def step(group, recipe, data, out):
    run = Training(recipe, Evaluation(recipe, load_pictures(data, recipe)), Path("."), processes=group)
    kept, move = {}, run.update.step
    def look(rate):
        kept.update({name: p.grad.clone() for name, p in run.method.named_parameters() if p.grad is not None})
        return move(rate)
    run.update.step = look
    cached = run.evaluation.train.cached
    rows = iter([cached[run.plan.rows(0, share)] for share in run.plan.shares])
    run._step(distributed.replicate(run.method), rows)
    if group.first:
        torch.save({"gradients": kept, "method": run.method.state_dict()}, out)

with processes() as group:
    step(group, from_json(json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
"""


def torchrun(script, *arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), str(script), *map(str, arguments)]
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def plain(tiny_recipe, **changes):
    """A recipe whose loss is a mean over pictures, so that the mean over processes is the mean over the batch."""
    values = {"options": Npid(temperature=0.2), "batch_size": 8, "optimizer": "sgd", "learning_rate": 0.05}
    return dataclasses.replace(tiny_recipe, **{**values, **changes})


def one_step(recipe, folder):
    """What a single process computes: gradients, and the state after the step."""
    run = Training(recipe, Evaluation(recipe, load_pictures(folder, recipe)), Path())
    kept, move = {}, run.update.step

    def look(rate):
        kept.update({name: p.grad.clone() for name, p in run.method.named_parameters() if p.grad is not None})
        return move(rate)

    run.update.step = look
    cached = run.evaluation.train.cached
    run._step(run.method, iter([cached[run.plan.rows(0, share)] for share in run.plan.shares]))
    return kept, run.method.state_dict()


def near(a, b):
    """Whether two gradients differ by float32 rounding only, on the scale of the whole tensor."""
    return float((a - b).norm()) <= 1e-4 * float(a.norm()) + 1e-7


@pytest.mark.parametrize(
    "options",
    [Npid(temperature=0.2), pytest.param(MocoV2(queue=12, old_weight=0.9), marks=pytest.mark.slow)],
    ids=["npid", "moco"],
)
def test_two_processes_compute_the_gradient_and_the_memory_of_one(tiny_recipe, shapes_folder, tmp_path, options):
    recipe = plain(tiny_recipe, options=options)
    script = tmp_path / "step.py"
    script.write_text(STEP)
    process = torchrun(script, json.dumps(recipe.to_json()), shapes_folder, tmp_path / "two.pt")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    # Each process has a BatchNorm of its own: on one, that is a BatchNorm over two parts.
    gradients, state = one_step(dataclasses.replace(recipe, bn_splits=2), shapes_folder)
    assert gradients.keys() == two["gradients"].keys()
    for name, gradient in gradients.items():
        assert near(gradient, two["gradients"][name]), name
    for name in ("memory", "queue"):
        if name in state:
            assert torch.allclose(state[name], two["method"][name], atol=1e-5)
    _, untouched = one_step(dataclasses.replace(recipe, seed=1, bn_splits=2), shapes_folder)
    name = "memory" if "memory" in state else "queue"
    assert not torch.allclose(untouched[name], two["method"][name], atol=1e-5)


def test_micro_batches_compute_the_gradient_and_the_memory_of_the_whole_batch(tiny_recipe, shapes_folder):
    recipe = plain(tiny_recipe)
    gradients, state = one_step(dataclasses.replace(recipe, bn_splits=4), shapes_folder)
    pieces, same_state = one_step(dataclasses.replace(recipe, accumulate=4), shapes_folder)
    for name, gradient in gradients.items():
        assert near(gradient, pieces[name]), name
    assert torch.allclose(state["memory"], same_state["memory"], atol=1e-5)


@pytest.mark.slow
def test_a_process_killed_in_the_middle_costs_nothing(tiny_recipe, shapes_folder, tmp_path):
    recipe = plain(tiny_recipe, epochs=10)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    text = json.dumps(recipe.to_json())
    straight = torchrun(script, text, shapes_folder, tmp_path / "straight", tmp_path / "pid-straight")
    said, _ = straight.communicate(timeout=300)
    assert straight.returncode == 0, said
    killed = torchrun(script, text, shapes_folder, tmp_path / "killed", tmp_path / "pid", restarts=3)
    while killed.poll() is None:
        newest = checkpoints.latest(tmp_path / "killed") if (tmp_path / "killed").exists() else None
        if newest and int(newest.stem.split("-")[1]) >= 5:
            os.kill(int((tmp_path / "pid.1.0").read_text()), signal.SIGKILL)
            break
        time.sleep(0.002)
    said, _ = killed.communicate(timeout=300)
    assert killed.returncode == 0, said
    assert "resuming" in said
    assert (tmp_path / "pid.1.1").exists(), "the killed process was started again"
    one, other = (checkpoints.load(checkpoints.latest(tmp_path / name)) for name in ("straight", "killed"))
    assert one["state"]["step"] == other["state"]["step"] == 40
    for name, value in one["method"].items():
        assert torch.equal(value, other["method"][name]), name


def test_the_shares_of_all_processes_are_the_batch(tiny_recipe):
    recipe = dataclasses.replace(tiny_recipe, batch_size=24, accumulate=3)
    rows = [
        row
        for rank in range(4)
        for share in Plan(recipe, 100, Processes(rank, 4, torch.device("cpu"))).shares
        for row in Plan(recipe, 100, Processes(rank, 4, torch.device("cpu"))).rows(2, share).tolist()
    ]
    assert rows == Plan(recipe, 100, Processes(0, 1, torch.device("cpu"))).order(0)[48:72].tolist()


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(tiny_recipe):
    recipe = dataclasses.replace(tiny_recipe, batch_size=10, accumulate=2)
    with pytest.raises(RecipeError, match=r"divides by 2 processes × 2 micro-batches, got 10; set batch_size=8"):
        Plan(recipe, 100, Processes(0, 2, torch.device("cpu")))
