"""What `encoder.onnx` computes, and how it is written."""

import warnings
from typing import Any, cast

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from index.encoder import SPEC_KEY, EncoderSpec
from training.backbone import Network
from training.evaluation.pca import Pca

_OPSET = 18


class Graph(nn.Module):
    """What the file computes: uint8 pictures (B, H, W, 3) → unit embeddings (B, D).

    Attributes:
        network: backbone and trained projection.
        pca: (B, G) → (B, D), the PCA of the descriptor as a layer; None takes the trained projection.
    """

    def __init__(self, network: Network, pca: nn.Linear | None = None) -> None:
        super().__init__()
        self.network = network
        self.pca = pca

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 (B, D)."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        if self.pca is None:
            return self.network.project(self.network.features(pixels))
        return F.normalize(self.pca(torch.cat(self.network.descriptor(pixels), dim=1)), dim=1)


def linear(pca: Pca) -> nn.Linear:
    """Return a PCA as the layer that computes it: x @ C - mean @ C."""
    features, dim = pca.components.shape
    layer = nn.Linear(features, dim)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(pca.components.T))
        layer.bias.copy_(torch.from_numpy(-pca.mean @ pca.components))
    return layer


def trace(graph: Graph, side: int) -> onnx.ModelProto:
    """Return the graph as ONNX, for pictures of `side` pixels in batches of any size."""
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.11's exporter calls what torch 2.11 deprecates
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["images"],
            output_names=["embeddings"],
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=2**16)}},
            verbose=False,
        )
    model: onnx.ModelProto = cast("Any", program).model_proto
    _strip(model)
    return model


def to_bytes(model: onnx.ModelProto, spec: EncoderSpec) -> bytes:
    """Return a graph with its description as one file without external data."""
    del model.metadata_props[:]
    model.metadata_props.add(key=SPEC_KEY, value=spec.to_json())
    return cast("bytes", model.SerializeToString())


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes (they hold stack traces with this machine's paths)."""
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    for entry in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        entry.doc_string = ""
        del entry.metadata_props[:]
    del graph.value_info[:]
