"""Int8: the first convolution reads bytes, weights keep their sums, and embeddings stay where they were."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from index.encoder import EncoderSpec
from index.errors import TrainingError
from training.backbone import build
from training.data import preprocess_of
from training.folding import fold
from training.graph import Graph, trace
from training.quantize import CALIBRATION, balance, calibration_pictures, quantise
from training.recipes import Npid, Recipe

SIDE = 33


@pytest.fixture(scope="module")
def pictures():
    """Smooth coloured pictures, some with a plain white half: uint8 (24, 33, 33, 3)."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (24, 3, 3, 3))
    fine = np.repeat(np.repeat(coarse, 11, axis=1), 11, axis=2) + generator.integers(-20, 20, (24, SIDE, SIDE, 3))
    fine[::3, :16] = 255
    return fine.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model(pictures):
    """A network with an ImageNet stem, whose convolutions pad, after a few steps of BatchNorm."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = build(
        Recipe(name="q", about="", options=Npid(), image_size=SIDE, cache_size=SIDE, width=0.25)
    ).train()
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(20):
            network(pixels)
    return trace(Graph(network.eval()).eval(), SIDE)


@pytest.fixture(scope="module")
def small(model, pictures):
    return quantise(model, calibration_pictures(pictures))


def run(model, pixels):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {"images": pixels})[0]


def test_folding_the_normalisation_changes_nothing_not_even_at_the_border(model, pictures):
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    fold(folded)
    assert [node.op_type for node in folded.graph.node].count("Div") < [n.op_type for n in model.graph.node].count(
        "Div"
    )
    assert np.allclose(run(folded, pictures), run(model, pictures), atol=2e-5)


def test_the_scale_and_the_zero_are_those_of_all_channels_together(model):
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    scale, zero = fold(folded)
    assert scale == pytest.approx(np.mean(1 / (255 * np.array([0.229, 0.224, 0.225]))), rel=1e-5)
    assert zero == round(255 * np.mean([0.485, 0.456, 0.406]))


def test_the_quantised_graph_reads_the_bytes_and_multiplies_integers(small):
    graph = small.graph
    kinds = [node.op_type for node in graph.node]
    assert not {"Cast", "Sub"} & set(kinds)
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for node in convolutions:
        inputs = [makers[name] for name in node.input]
        assert {maker.op_type for maker in inputs} == {"DequantizeLinear"}
        assert constants[inputs[1].input[0]].dtype == np.int8
    first = makers[convolutions[0].input[0]]
    assert makers[first.input[0]].op_type == "Transpose"
    assert makers[makers[first.input[0]].input[0]].input[0] == "images"
    onnx.checker.check_model(small)


def test_int8_embeddings_are_near_the_float_ones_and_of_unit_length(model, small, pictures):
    before, after = run(model, pictures), run(small, pictures)
    cosines = (before * after).sum(axis=1)
    assert np.allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    assert cosines.min() > 0.995
    # The neighbours are what counts: the nearest stays among the first three.
    near = np.argsort(-(before @ before.T), axis=1)[:, 1]
    order = np.argsort(-(after @ after.T), axis=1)[:, 1:4]
    assert (order == near[:, None]).any(axis=1).mean() > 0.9


def test_each_picture_is_embedded_alike_in_any_batch(small, pictures):
    whole = run(small, pictures)
    single = np.concatenate([run(small, pictures[i : i + 1]) for i in range(4)])
    assert np.allclose(whole[:4], single, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 16, 1, 1), (2, 4, 7, 7), (3, 1, 1, 1)])
def test_balanced_weights_keep_each_output_s_sum_and_move_by_less_than_a_step(shape):
    weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    rounded = balance(weight)
    axes = (1, 2, 3)
    step = np.abs(weight).max(axis=axes) / 127
    assert np.all(np.abs((rounded - weight).sum(axis=axes)) <= 0.5001 * step)
    assert np.all(np.abs(rounded - weight).max(axis=axes) <= 1.0001 * step)
    assert np.allclose(
        rounded / step[:, None, None, None], np.round(rounded / step[:, None, None, None]), atol=1e-3
    )
    assert np.allclose(np.abs(rounded).max(axis=axes), 127 * step, rtol=1e-5)  # so the grid is found again


def test_an_output_without_weights_stays_without():
    assert not balance(np.zeros((2, 3, 3, 3), np.float32)).any()


def test_calibration_takes_pictures_from_the_whole_set():
    pixels = np.arange(1000, dtype=np.uint16).astype(np.uint8).reshape(1000, 1, 1, 1)
    chosen = calibration_pictures(pixels)
    assert len(chosen) == CALIBRATION
    assert (chosen[0], chosen[-1]) == (pixels[0], pixels[-1])
    assert len(calibration_pictures(pixels[:7])) == 7


def test_a_network_that_does_not_begin_with_a_convolution_is_told(pictures):
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["x"], ["embeddings"]),
    ]
    shape = ["B", SIDE, SIDE, 3]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, None)],
    )
    with pytest.raises(TrainingError, match="export it without --int8"):
        quantise(helper.make_model(graph), pictures)


def test_descriptions_from_before_int8_are_of_float32(tiny_recipe):
    spec = EncoderSpec("n", "npid", "resnet18", 2, preprocess_of(tiny_recipe), "pca", (0.0, 1.0), precision="int8")
    assert EncoderSpec.from_json(spec.to_json()).precision == "int8"
    old = {key: value for key, value in json.loads(spec.to_json()).items() if key != "precision"}
    assert EncoderSpec.from_json(json.dumps(old)).precision == "float32"
