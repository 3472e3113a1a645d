"""TensorBoard's files, read back by TensorBoard."""

import pytest

from training.board import Board


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own
def test_scalars_are_read_back_and_a_resumed_run_supersedes_what_came_after(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = Board(tmp_path, 0)
    for epoch in (1, 2, 3):
        first.write(epoch, {"loss": float(10 - epoch), "knn_pca": epoch / 10})
    first.close()
    again = Board(tmp_path, 2)  # the checkpoint was from epoch 2
    again.write(3, {"loss": 5.0, "knn_pca": 0.9})
    again.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 9.0), (2, 8.0), (3, 5.0)]
    assert events.Scalars("knn_pca")[-1].value == pytest.approx(0.9)
