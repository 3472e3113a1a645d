"""From a float32 graph to an int8 one: three times faster on CPUs with VNNI, within a fraction of a point.

Static quantisation in ONNX Runtime's QDQ form: weights int8 per output channel, activations uint8 with ranges from
training pictures. That pairing is the one that VNNI multiplies (unsigned times signed); int8 with int8 ran at a
third of its speed. Convolutions, their ReLUs, the residual sums and max-pooling become integer; pooling, projection
and L2 norm stay float32, as they take no time and decide the direction of the embedding.

Two things beyond that, both measured (docs/log.md): the first convolution reads the picture's bytes themselves
(training.folding), as float32 arithmetic on every pixel took a ninth of the time; and weights are rounded so that
each output's sum is kept, as the errors of a plain area add up (`balance`).
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from index.images import Pixels
from training.folding import SCALED, fold, read_bytes

CALIBRATION = 128  # pictures; more changed neither the kNN score nor the mean cosine
_BATCH = 16
_LEVELS = 127  # int8 is used from -127 to 127
_INTEGER = ["Conv", "Relu", "Add", "MaxPool"]


class _Batches(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    def __init__(self, pixels: Pixels) -> None:
        self._parts = self._cut(pixels)

    @staticmethod
    def _cut(pixels: Pixels) -> Iterator[dict[str, Pixels]]:
        for start in range(0, len(pixels), _BATCH):
            yield {"images": pixels[start : start + _BATCH]}

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next batch, None after the last."""
        return next(self._parts, None)


def calibration_pictures(pixels: Pixels) -> Pixels:
    """Return at most CALIBRATION pictures, uint8 (M, H, W, 3), evenly spaced: all classes of a sorted folder."""
    rows = np.linspace(0, len(pixels) - 1, min(CALIBRATION, len(pixels))).round().astype(int)
    return np.ascontiguousarray(pixels[rows])


def quantise(model: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """Return the graph with integer convolutions; input and output are the same.

    Args:
        model: float32, from `training.graph.trace`.
        pixels: uint8 (M, H, W, 3), the pictures whose activations set the ranges.

    Raises:
        TrainingError: the graph does not begin with a convolution of the picture.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    scale, zero = fold(folded)
    _balance_convolutions(folded.graph)
    override = {"quant_type": QuantType.QUInt8, "scale": scale, "zero_point": zero}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises a preparation that the exporter has done
        try:
            quantize_static(
                folded,
                str(out),
                _Batches(pixels),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_INTEGER,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"TensorQuantOverrides": {SCALED: [override]}},
            )
        finally:
            logging.root.setLevel(level)
        quantised = onnx.load(out)
    read_bytes(quantised.graph)
    return quantised


def balance(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round the weights of a convolution to int8's grid so that each output channel's sum changes least.

    Nearest rounding is best for each weight alone, but over a plain area all weights see the same value, and their
    errors add up. Rounding the few nearest to the middle the other way cancels them.

    Args:
        weight: (O, …).

    Returns:
        Multiples of each output's largest weight ÷ 127, float32 (O, …).
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    step = np.maximum(np.abs(flat).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / _LEVELS
    steps = flat / step
    rounded = np.round(steps)
    errors = steps - rounded
    for row, error in enumerate(errors):
        surplus = int(np.round(error.sum()))  # steps to add; negative to take away
        chosen = np.argsort(-error * np.sign(surplus), kind="stable")[: abs(surplus)]
        rounded[row, chosen] += np.sign(surplus)
    kept: NDArray[np.float64] = np.clip(rounded, -_LEVELS, _LEVELS) * step
    return kept.reshape(weight.shape).astype(np.float32)


def _balance_convolutions(graph: onnx.GraphProto) -> None:
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    for tensor in graph.initializer:
        if tensor.name in kernels:
            tensor.CopyFrom(numpy_helper.from_array(balance(numpy_helper.to_array(tensor)), tensor.name))
