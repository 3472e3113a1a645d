"""Let a graph's first convolution read the picture's bytes themselves.

What stands between the two, scaling and normalisation, is an affine map per channel, and moves into the weights:

    w · (scale · byte + offset)  =  w' · s · (byte - zero)  +  w · (scale · zero + offset)

with one `zero` and one `s` for all channels, as integer arithmetic wants it. The last term is a constant, but only
where there is a picture: around it the convolution pads with the mean colour. So a fourth channel, 255 in the
picture and `zero` around it, carries the constant, and the border stays what it was.
"""

from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from index.errors import TrainingError

SCALED = "images_scaled"  # the first convolution's input
_BYTES = "images_bytes"  # the same before it is scaled


class Folded(NamedTuple):
    """How the first convolution's input is made of bytes: (byte - zero) · scale."""

    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]


def fold(model: onnx.ModelProto) -> Folded:
    """Rewrite the graph so that its first convolution sees (byte - zero) · scale; it computes the same.

    Raises:
        TrainingError: the graph does not begin with a normalisation and a convolution.
    """
    graph = model.graph
    first = _first_convolution(graph)
    scale, offset = _affine(model, first.input[0])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight = constants[first.input[1]].astype(np.float64)
    side = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    step = np.float32(scale.mean())
    zero = np.uint8(np.clip(np.round(-(offset / scale).mean()), 0, 254))
    inside = np.einsum("ochw,c->ohw", weight, scale * float(zero) + offset) / (step * (255 - float(zero)))
    weight = np.concatenate([weight * (scale / step)[:, None, None], inside[:, None]], axis=1)
    tensors = {
        "first_weight": weight.astype(np.float32),
        "first_zero": np.float32(zero),
        "first_scale": step,
        "plane_shape": np.array([side, side, 1], np.int64),
        "plane_value": np.full((1, 1, 1, 1), 255, np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    nodes = [
        helper.make_node("Shape", ["images"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "plane_shape"], ["planes_shape"], axis=0),
        helper.make_node("Expand", ["plane_value", "planes_shape"], ["planes"]),
        helper.make_node("Concat", ["images", "planes"], ["images_4"], axis=3),  # a Pad took three times as long
        helper.make_node("Transpose", ["images_4"], [_BYTES], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [_BYTES], ["images_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["images_float", "first_zero"], ["images_centred"]),
        helper.make_node("Mul", ["images_centred", "first_scale"], [SCALED]),
    ]
    position = list(graph.node).index(first)
    for number, node in enumerate(nodes):
        graph.node.insert(position + number, node)
    first.input[0], first.input[1] = SCALED, "first_weight"
    prune(graph)
    return Folded(np.asarray(step), np.asarray(zero))


def read_bytes(graph: onnx.GraphProto) -> None:
    """In a quantised graph, drop the way from bytes to numbers and back to the same bytes."""
    quantiser = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == SCALED)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == quantiser.output[0]:
            node.input[0] = _BYTES
    prune(graph)


def prune(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(reversed(kept))
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _first_convolution(graph: onnx.GraphProto) -> onnx.NodeProto:
    """Return the convolution that the picture reaches first."""
    reached = {"images"}
    for node in graph.node:  # in topological order
        if reached & set(node.input) and node.op_type != "Shape":
            if node.op_type == "Conv":
                return node
            reached |= set(node.output)
    raise TrainingError("expected a network that begins with a convolution, got another; export it without --int8")


def _affine(model: onnx.ModelProto, tensor: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find scale and offset, (3,) each, by running what lies between picture and `tensor` on black and white."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    prune(part.graph)
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[1]
    both = np.stack([np.full((side, side, 3), byte, np.uint8) for byte in (0, 255)])
    black, white = session.run(None, {"images": both})[0]  # (C, H, W) each
    offset = black[:, 0, 0]
    if len(offset) != 3 or np.ptp(black, axis=(1, 2)).any() or np.ptp(white, axis=(1, 2)).any():
        raise TrainingError(
            "expected a network that normalises every pixel alike before its first convolution, got another; "
            "export it without --int8"
        )
    return (white[:, 0, 0] - offset) / 255, offset
