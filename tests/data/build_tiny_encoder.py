"""Build tests/data/tiny_encoder.onnx: a random linear map of a 16 × 16 thumbnail, normalised, without torch.

python tests/data/build_tiny_encoder.py
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from index.encoder import SPEC_KEY, Encoder, EncoderSpec, canary_png
from index.images import Preprocess

SIDE, POOLED, DIM = 16, 8, 128


def build(path: Path) -> None:
    """Write the encoder: pooling to 8 × 8, a fixed random projection to 128, L2 norm."""
    weights = np.random.default_rng(0).standard_normal((POOLED * POOLED * 3, DIM)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["float", "grey"], ["centred"]),
            helper.make_node("Transpose", ["centred"], ["chw"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["chw"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], ["projected"]),
            helper.make_node("LpNormalization", ["projected"], ["embeddings"], axis=1, p=2),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", DIM])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.full(1, 127.5, np.float32), "grey"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    def save(canary: tuple[float, ...]) -> None:
        spec = EncoderSpec("tiny-0", "random", "linear", DIM, Preprocess(SIDE, SIDE), "projection", canary)
        del model.metadata_props[:]
        model.metadata_props.add(key=SPEC_KEY, value=spec.to_json())
        onnx.save(model, path)

    save((0.0,) * DIM)
    encoder = Encoder.load(path, threads=1, check_canary=False)
    save(tuple(encoder.embed_pictures([canary_png()])[0].tolist()))


if __name__ == "__main__":
    build(Path(__file__).with_name("tiny_encoder.onnx"))
