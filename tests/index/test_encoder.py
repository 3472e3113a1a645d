import json
from pathlib import Path

import numpy as np
import pytest

from index import images
from index.encoder import SPEC_KEY, Encoder, EncoderSpec, KnnReport, canary_png
from index.errors import EncoderError
from index.images import Preprocess


def test_an_embedding_is_128_finite_numbers_of_unit_length(tiny_encoder, shape_png):
    vectors = tiny_encoder.embed_pictures([shape_png("circle", 1), shape_png("square", 2)])
    assert vectors.shape == (2, 128)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_picture_alone_and_in_a_batch_embed_alike(tiny_encoder, shape_png):
    pictures = [shape_png("stripes", seed) for seed in range(5)]
    together = tiny_encoder.embed_pictures(pictures)
    alone = np.concatenate([tiny_encoder.embed_pictures([picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_no_pictures_give_no_vectors(tiny_encoder):
    assert tiny_encoder.embed_pictures([]).shape == (0, 128)


def test_the_spec_survives_its_json():
    spec = EncoderSpec(
        name="a",
        method="npid",
        backbone="resnet18",
        dim=2,
        preprocess=Preprocess(70, 64, "bicubic", "pad"),
        head="pca",
        canary=(0.6, 0.8),
        recipe={"epochs": 3},
        trained_on={"items": 9},
        knn=KnnReport(5, 0.1, 0.5, 0.4, "leave-one-out", 9),
    )
    assert EncoderSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 99, "name": "x"}'])
def test_a_broken_or_future_spec_is_one_sentence(text):
    with pytest.raises(EncoderError):
        EncoderSpec.from_json(text)


def test_the_canary_picture_never_changes():
    pixels = images.load(canary_png(), Preprocess(64, 64))
    assert pixels[0, 0].tolist() == [42, 0, 0]
    assert pixels[63, 63].tolist() == [212, 255, 38]
    assert int(pixels.astype(np.int64).sum()) == 1_496_156


def rewrite_spec(source: Path, target: Path, **changes: object) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(source)
    (entry,) = [entry for entry in model.metadata_props if entry.key == SPEC_KEY]
    entry.value = json.dumps(json.loads(entry.value) | changes)
    onnx.save(model, target)
    return target


def test_a_canary_that_differs_is_refused_at_load(tiny_encoder_path, tmp_path):
    wrong = [1.0] + [0.0] * 127
    with pytest.raises(EncoderError, match=r"canary, got cosine"):
        Encoder.load(rewrite_spec(tiny_encoder_path, tmp_path / "e.onnx", canary=wrong))


@pytest.mark.parametrize("changes", [{"dim": 64}, {"preprocess": {"resize": 32, "crop": 32, "fit": "crop"}}])
def test_a_graph_that_does_not_fit_its_description_is_refused(tiny_encoder_path, tmp_path, changes):
    with pytest.raises(EncoderError, match=r"expected images uint8"):
        Encoder.load(rewrite_spec(tiny_encoder_path, tmp_path / "e.onnx", **changes))


def test_missing_foreign_and_truncated_files_are_refused(tiny_encoder_path, tmp_path):
    with pytest.raises(EncoderError, match="no such file"):
        Encoder.load(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(EncoderError, match="does not load"):
        Encoder.load(tmp_path / "text.onnx")
    whole = tiny_encoder_path.read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderError):
        Encoder.load(tmp_path / "half.onnx")


def test_a_plain_onnx_model_is_told_apart(tiny_encoder_path, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_encoder_path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(EncoderError, match="plain ONNX model"):
        Encoder.load(tmp_path / "plain.onnx")


def test_a_flipped_weight_changes_the_canary_or_the_identity(tiny_encoder_path, tiny_encoder, tmp_path):
    data = bytearray(tiny_encoder_path.read_bytes())
    data[len(data) // 2 + 3] ^= 0x7F  # an exponent byte in the middle of the weights
    (tmp_path / "flipped.onnx").write_bytes(data)
    try:
        other = Encoder.load(tmp_path / "flipped.onnx", threads=1)
    except EncoderError:
        return
    assert other.sha256 != tiny_encoder.sha256
