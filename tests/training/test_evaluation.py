"""PCA against a slow decomposition, and the online measurement against index.knn."""

import dataclasses

import numpy as np
import pytest
import torch

from index.errors import TrainingError
from index.knn import KnnProtocol, leave_one_out, normalise
from training.backbone import build
from training.data import load_pictures
from training.evaluation.knn import Evaluation, embed
from training.evaluation.pca import fit_pca, unit


def vectors(count, features, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, features)) * np.linspace(3, 0.2, features) + 1).astype(np.float32)


@pytest.mark.parametrize(("count", "features"), [(200, 30), (20, 60)])
@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_pca_equals_a_singular_value_decomposition(count, features, whiten):
    x = vectors(count, features)
    pca = fit_pca(x, 8, whiten)
    centred = x.astype(np.float64) - x.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    slow = centred @ directions[:8].T / (singular[:8] / np.sqrt(count)) ** whiten
    # Directions have no sign, so what is compared is every cosine between two pictures.
    slow = normalise(slow.astype(np.float32))
    fast = pca(x)
    assert np.allclose(fast @ fast.T, slow @ slow.T, atol=1e-3)


def test_blocks_have_the_same_say_whatever_their_scale():
    x = vectors(100, 20)
    scaled = x * np.repeat([1, 1000], [12, 8]).astype(np.float32)
    once, again = fit_pca(x, 6, 1.0, (12, 8))(x), fit_pca(scaled, 6, 1.0, (12, 8))(scaled)
    assert np.allclose(once @ once.T, again @ again.T, atol=1e-3)
    blind = fit_pca(scaled, 6, 1.0)(scaled)
    assert not np.allclose(once @ once.T, blind @ blind.T, atol=0.1)


def test_pca_gives_the_width_that_was_asked_for_even_without_that_many_directions():
    pca = fit_pca(vectors(5, 3), 8, 1.0)
    assert pca.components.shape == (3, 8)
    assert np.isfinite(pca(vectors(5, 3))).all()


def test_equal_pictures_do_not_break_the_pca():
    same = np.ones((10, 6), np.float32)
    assert np.isfinite(fit_pca(same, 4, 1.0)(same)).all()


def test_unit_gives_a_zero_row_a_direction():
    rows = unit(np.array([[0, 0], [3, 4]], np.float32))
    assert np.allclose(rows, [[1, 0], [0.6, 0.8]])


def test_a_batch_of_one_embeds_like_a_batch_of_many(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe)
    torch.manual_seed(0)
    network = build(tiny_recipe).train()
    many = embed(network, pictures.prepared)
    one = embed(network, pictures.prepared[3:4])
    assert np.allclose(many.projection[3], one.projection[0], atol=1e-5)
    assert np.allclose(many.features[3], one.features[0], atol=1e-4)
    assert network.training


def test_the_measurement_is_leave_one_out_by_the_one_protocol(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe)
    torch.manual_seed(0)
    network = build(tiny_recipe)
    scores = Evaluation(tiny_recipe, pictures).measure(network)
    protocol = KnnProtocol(tiny_recipe.knn_k, tiny_recipe.knn_temperature)
    expected = leave_one_out(protocol, embed(network, pictures.prepared).projection, pictures.labels, 4)
    assert scores.projection == expected


def test_a_test_set_is_classified_by_the_training_set(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe)
    evaluation = Evaluation(dataclasses.replace(tiny_recipe, knn_k=1), pictures, pictures)
    torch.manual_seed(0)
    assert evaluation.measure(build(tiny_recipe)).projection == 1.0  # every picture finds itself
    assert evaluation.describe() == "kNN-1 τ=0.07, train → test, 32 → 32 pictures, 4 classes"


def test_other_classes_in_the_test_set_are_refused(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe)
    other = dataclasses.replace(pictures, classes=("a", "b", "c", "d"))
    with pytest.raises(TrainingError, match="test pictures of the training classes"):
        Evaluation(tiny_recipe, pictures, other)


def test_without_labels_a_view_looks_for_its_own_picture(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe, labels=False)
    evaluation = Evaluation(tiny_recipe, pictures)
    assert "instance retrieval" in evaluation.describe()
    assert 0 <= evaluation.baseline() <= 1
    torch.manual_seed(0)
    score = evaluation.measure(build(tiny_recipe)).projection
    assert 1 / 32 <= score <= 1
