"""What a run writes down, and the verdict on it."""

import pytest

from index.errors import CheckpointError
from training import metrics


def line(epoch, pca, projection):
    return {"epoch": epoch, "loss": 1.0, "knn_pca": pca, "knn_projection": projection}


def write(run, *lines):
    metrics.begin(run, {"raw_pixels": 0.4, "untrained": 0.45})
    for entry in lines:
        metrics.append(run, entry)


def test_what_was_written_is_read_in_order(tmp_path):
    write(tmp_path, {"epoch": 1, "loss": 2.0}, line(2, 0.5, 0.3))
    found = metrics.read(tmp_path)
    assert found.baselines == {"raw_pixels": 0.4, "untrained": 0.45}
    assert found.curve("loss") == {1: 2.0, 2: 1.0}
    assert found.curve("knn_pca") == {2: 0.5}


def test_a_line_cut_short_by_a_crash_and_later_epochs_are_dropped(tmp_path):
    write(tmp_path, line(1, 0.5, 0.3), line(2, 0.5, 0.3), line(3, 0.5, 0.3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    metrics.cut(tmp_path, 2)
    assert [entry["epoch"] for entry in metrics.read(tmp_path).epochs] == [1, 2]
    assert metrics.read(tmp_path).baselines["raw_pixels"] == 0.4


def test_the_verdict_says_when_a_run_rose_above_the_better_baseline(tmp_path):
    write(tmp_path, line(1, 0.44, 0.3), line(2, 0.43, 0.46), line(3, 0.48, 0.3))
    verdict = metrics.read(tmp_path).verdict()
    assert verdict == "above the best baseline (untrained, 0.4500) by +0.0300, first at epoch 2"


def test_the_verdict_says_how_far_a_run_got_that_did_not(tmp_path):
    write(tmp_path, line(1, 0.41, 0.3))
    assert (
        "not above the best baseline (untrained, 0.4500) yet: -0.0400; raise epochs"
        in metrics.read(tmp_path).verdict()
    )


def test_a_folder_without_metrics_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"without metrics\.jsonl"):
        metrics.read(tmp_path)
