"""python -m training, as a user types it."""

import subprocess
import sys
import time

import pytest

from training.__main__ import main

TINY = [
    f"--set={setting}"
    for setting in (
        "image_size=16",
        "cache_size=20",
        "width=0.25",
        "stem=half",
        "batch_size=8",
        "epochs=2",
        "warmup=0",
        "knn_k=5",
    )
]


def python(*arguments):
    command = [sys.executable, "-m", "training", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_needs_no_torch_and_is_instant():
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'numpy', 'PIL'])); "
        "from training.__main__ import main; main(['--help'])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
    assert time.perf_counter() - start < 5  # generous: the machine may be busy


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in ("npid-imagenet", "npid-cifar10", "npid-demo", "npid-gallery", "npid-cifar10-cpu"):
        assert f"\n{name} " in f"\n{listed}"
    assert main(["recipes", "npid-cifar10"]) == 0
    shown = capsys.readouterr().out
    assert "80.8" in shown
    assert ["options.old_weight", "0.5"] in [line.split() for line in shown.splitlines()]


def test_from_pictures_to_an_encoder_and_curves(shapes_folder, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["pretrain", "npid-demo", "--data", str(shapes_folder), "--out", str(run), "--threads", "1", *TINY]
    first = python(*command)
    assert first.returncode == 0, first.stderr
    assert "kNN-5 τ=0.07, leave-one-out, 32 pictures, 4 classes" in first.stderr
    assert "to rise above: raw pixels, PCA-128: 0." in first.stderr
    assert "epoch    2/2" in first.stderr
    assert "the best baseline (" in first.stderr
    assert f"next: python -m training export {run}" in first.stderr

    def said(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code
        return "".join(capsys.readouterr())

    assert f"resuming {run} at step 8" in said(*command)
    assert "got seed 0 → 1" in said(*command, "--set", "seed=1", code=2)
    assert "largest difference" in said("export", run, "--out", tmp_path / "encoder.onnx")
    assert "curves.png" in said("plot", run, "--out", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pretrain", "npid-dmo", "--data", "x", "--out", "y"], "did you mean npid-demo"),
        (["pretrain", "npid-demo", "--data", "x", "--out", "y", "--set", "epoch=3"], "did you mean epochs"),
        (["pretrain", "npid-demo", "--data", "x", "--out", "y", "--set", "epochs"], "expected --set KEY=VALUE"),
        (["pretrain", "npid-demo", "--data", "absent", "--out", "y"], "no such folder"),
        (["export", "absent", "--out", "e.onnx"], "without recipe.json"),
        (["plot", "absent", "--out", "c.png"], "without metrics.jsonl"),
        (["plot", "absent", "--out", "c.doc"], "expected --out to end in .png, .svg, .pdf, got 'c.doc'"),
        (["recipes", "npid"], "expected a recipe, got 'npid'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("error: expected ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_one_picture_and_too_few_are_told(tmp_path, shape_png, capsys):
    (tmp_path / "pictures").mkdir()
    command = ["pretrain", "npid-demo", "--data", str(tmp_path / "pictures"), "--out", str(tmp_path / "run")]
    (tmp_path / "pictures" / "1.png").write_bytes(shape_png("circle", 1))
    assert main(command) == 2
    assert "at least two different pictures" in capsys.readouterr().err
    (tmp_path / "pictures" / "2.png").write_bytes(shape_png("square", 1))
    assert main(command) == 2
    assert "one batch of 128 pictures, got 2; give more pictures, or --set batch_size=2" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path, shapes_folder, capsys):
    (tmp_path / "file").write_text("")
    run = tmp_path / "file" / "run"
    assert main(["pretrain", "npid-demo", "--data", str(shapes_folder), "--out", str(run)]) == 2
    assert "expected a folder for the run" in capsys.readouterr().err
