"""From a run to `encoder.onnx`: both heads measured, the better kept, parity proven.

Contract (docs/artifacts.md): `images` uint8 (B, H, W, 3) in, `embeddings` float32 (B, D) of unit length out;
scaling, normalisation, head and L2 norm are in the graph, the description is in the metadata. The accuracy is
taken through ONNX Runtime and `index.knn`, that is, exactly as a service with these pictures would answer.
"""

import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from index import images
from index.encoder import SPEC_KEY, Encoder, EncoderSpec, KnnReport, canary_png
from index.errors import CheckpointError, TrainingError
from index.files import replacing
from index.images import Pixels
from index.knn import Vectors
from training import checkpoints
from training.backbone import Network
from training.data import Pictures, load_pictures, preprocess_of
from training.evaluation.knn import Evaluation, embed
from training.evaluation.pca import Pca, unit
from training.methods import create
from training.recipes import Recipe

_OPSET = 18
_BATCH = 64
_PARITY = 1e-4  # largest difference of a component of a unit vector; float32 rounding gives about 1e-6
Head = Literal["projection", "pca"]


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


@dataclass(frozen=True)
class Exported:
    """What an export did; `str()` is the report that the command prints."""

    path: Path
    spec: EncoderSpec
    scores: Mapping[Head, float]
    difference: float
    measured: str

    def __str__(self) -> str:
        """Return the report in a few lines."""
        tried = "  ".join(f"{head} {score:.4f}" for head, score in self.scores.items())
        size = self.path.stat().st_size / 1e6
        return (
            f"{self.path}  {size:.1f} MB  {self.spec.backbone} → {self.spec.dim}-d, head: {self.spec.head}\n"
            f"{self.measured}: {tried}  → kept {self.spec.head}\n"
            f"torch against ONNX Runtime, batches of 1 and 5: largest difference {self.difference:.1e}"
        )


def export_run(
    run: Path,
    out: Path,
    *,
    data: Path | None = None,
    test: Path | None = None,
    checkpoint: Literal["last", "best"] = "last",
    name: str | None = None,
) -> Exported:
    """Export a run.

    Args:
        run: folder of the run.
        out: the file to write; it appears whole or not at all.
        data: pictures to fit and measure on instead of those of the run.
        test: the test pictures, if they moved.
        checkpoint: which weights.
        name: of the encoder; the recipe's by default.

    Raises:
        CheckpointError: no usable checkpoint, or other pictures than the run was trained on.
        TrainingError: torch and ONNX Runtime disagree.
    """
    recipe, trained_on = checkpoints.read_recipe(run)
    cache = trained_on.get("cache")
    load = partial(load_pictures, recipe=recipe, cache=Path(cache) if cache else None, overflow=run / "cache")
    pictures = load(data or trained_on["data"], labels=trained_on["labels"])
    if data is None and pictures.fingerprint() != trained_on["fingerprint"]:
        raise CheckpointError(
            f"expected the {trained_on['pictures']:,} pictures that {run} was trained on, got {len(pictures):,} "
            "that differ; give their place with --data, or others to measure on"
        )
    test_path = test or (Path(trained_on["test"]) if trained_on["test"] else None)
    evaluation = Evaluation(recipe, pictures, load(test_path) if test_path else None)
    network = load_network(run, recipe, trained_on["pictures"], checkpoint)
    spec = EncoderSpec(
        name=name or recipe.name,
        method=recipe.method,
        backbone=recipe.backbone,
        dim=recipe.dim,
        preprocess=preprocess_of(recipe),
        head="projection",
        canary=(),
        recipe=recipe.to_json(),
        trained_on={
            **{key: trained_on[key] for key in ("pictures", "classes", "fingerprint", "torch")},
            "source": Path(trained_on["data"]).name,
            "labels": "only to measure",
        },
        git_commit=_git_commit(),
    )
    try:
        return export(network, evaluation, spec, out)
    except OSError as error:
        raise TrainingError(f"expected to write {out}, got: {error.strerror}; choose another --out") from error


def load_network(run: Path, recipe: Recipe, pictures: int, checkpoint: Literal["last", "best"]) -> Network:
    """Return the trained network of a run, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the run has no such checkpoint.
    """
    path = run / "best.pt" if checkpoint == "best" else checkpoints.latest(run)
    if path is None:
        raise CheckpointError(f"expected a checkpoint in {run}, got none; let `pretrain` run for a minute at least")
    method = create(recipe, pictures)
    method.load_state_dict(checkpoints.load(path)["method"])
    return method.network.eval()


def export(network: Network, evaluation: Evaluation, spec: EncoderSpec, out: Path) -> Exported:
    """Write both candidates, measure them through ONNX Runtime, keep the better."""
    pca = embed(network, evaluation.train.prepared).fit_pca(evaluation.recipe)
    heads: dict[Head, Graph] = {"projection": Graph(network).eval(), "pca": Graph(network, linear(pca)).eval()}
    models = {head: trace(graph, spec.preprocess.crop) for head, graph in heads.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        scores: dict[Head, float] = {}
        for head, model in models.items():
            write(model, replace(spec, head=head), temporary)
            scores[head] = measure(Encoder.load(temporary, check_canary=False), evaluation)
        kept = max(scores, key=lambda head: scores[head])  # a tie keeps the trained head, which comes first
        spec = replace(spec, head=kept, knn=_knn_report(evaluation, scores[kept], network))
        write(models[kept], spec, temporary)
        encoder = Encoder.load(temporary, check_canary=False)
        difference = prove_parity(heads[kept], encoder, evaluation.train)
        canary = encoder.embed(images.load(canary_png(), spec.preprocess)[None])[0]
        spec = replace(spec, canary=tuple(float(value) for value in canary))
        write(models[kept], spec, temporary)
        Encoder.load(temporary)  # recomputes the canary: the file is proven before it gets its name
    return Exported(out, spec, scores, difference, evaluation.describe())


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


def write(model: onnx.ModelProto, spec: EncoderSpec, path: Path) -> None:
    """Write a graph with its description, in one file without external data."""
    del model.metadata_props[:]
    model.metadata_props.add(key=SPEC_KEY, value=spec.to_json())
    path.write_bytes(model.SerializeToString())


def measure(encoder: Encoder, evaluation: Evaluation) -> float:
    """Return the kNN score (0 to 1) of an exported encoder on the run's split."""
    train = _embed(encoder, evaluation.train.prepared)
    other = None
    if not evaluation.train.labelled:
        other = _embed(encoder, evaluation.view_pixels())
    elif evaluation.test is not None:
        other = _embed(encoder, evaluation.test.prepared)
    return evaluation.score(train, other)


def prove_parity(graph: Graph, encoder: Encoder, pictures: Pictures) -> float:
    """Return the largest difference between torch and ONNX Runtime on real pictures, in batches of 1 and 5.

    Raises:
        TrainingError: it is more than rounding.
    """
    worst = 0.0
    for batch in (1, 5):
        pixels = pictures.prepared[:batch]
        with torch.inference_mode():
            expected: NDArray[np.float32] = graph(torch.from_numpy(pixels)).numpy()
        worst = max(worst, float(np.abs(expected - encoder.embed(pixels)).max()))
    if not worst <= _PARITY:
        raise TrainingError(
            f"expected ONNX Runtime to agree with torch within {_PARITY:g}, got {worst:.2e}; nothing was written. "
            "Use the versions of constraints.txt"
        )
    return worst


def _embed(encoder: Encoder, pixels: Pixels) -> Vectors:
    parts = [encoder.embed(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return np.concatenate(parts)


def _knn_report(evaluation: Evaluation, top1: float, network: Network) -> KnnReport | None:
    if not evaluation.train.labelled:
        return None
    features = unit(embed(network, evaluation.train.prepared).features)
    tested = evaluation.test
    other = unit(embed(network, tested.prepared).features) if tested is not None else None
    judged = evaluation.train if tested is None else tested
    return KnnReport(
        k=evaluation.protocol.k,
        temperature=evaluation.protocol.temperature,
        top1=top1,
        feature_top1=evaluation.score(features, other),
        split=evaluation.split,
        items=int((judged.labels >= 0).sum()),
    )


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes (they hold stack traces with this machine's paths)."""
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    for entry in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        entry.doc_string = ""
        del entry.metadata_props[:]
    del graph.value_info[:]


def _git_commit() -> str:
    """Return the commit of the code, or "unknown" outside a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
