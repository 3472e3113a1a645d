"""From a run to `encoder.onnx`: both heads measured, the better kept, parity proven.

Contract (docs/artifacts.md): `images` uint8 (B, H, W, 3) in, `embeddings` float32 (B, D) of unit length out;
scaling, normalisation, head and L2 norm are in the graph, the description is in the metadata.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from index import images
from index.encoder import Encoder, EncoderSpec, canary_png
from index.errors import CheckpointError, TrainingError
from index.files import replacing
from training import checkpoints
from training.backbone import Network
from training.data import load_pictures, preprocess_of
from training.evaluation.knn import Evaluation, embed
from training.graph import Graph, linear, to_bytes, trace
from training.methods import create
from training.proof import Comparison, compare, knn_report, measure, prove_parity
from training.quantize import calibration_pictures, quantise
from training.recipes import Recipe

Head = Literal["projection", "pca"]


@dataclass(frozen=True)
class Exported:
    """What an export did; `str()` is the report that the command prints."""

    path: Path
    spec: EncoderSpec
    scores: Mapping[Head, float]
    difference: float
    measured: str
    int8: Comparison | None = None

    def __str__(self) -> str:
        """Return the report in a few lines."""
        tried = "  ".join(f"{head} {score:.4f}" for head, score in self.scores.items())
        size = self.path.stat().st_size / 1e6
        what = f"{self.spec.backbone} → {self.spec.dim}-d, head: {self.spec.head}, {self.spec.precision}"
        lines = [
            f"{self.path}  {size:.1f} MB  {what}",
            f"{self.measured}: {tried}  → kept {self.spec.head}",
            f"torch against ONNX Runtime, batches of 1 and 5: largest difference {self.difference:.1e}",
        ]
        return "\n".join([*lines, str(self.int8)] if self.int8 else lines)


def export_run(
    run: Path,
    out: Path,
    *,
    data: Path | None = None,
    test: Path | None = None,
    checkpoint: Literal["last", "best"] = "last",
    name: str | None = None,
    int8: bool = False,
) -> Exported:
    """Export a run.

    Args:
        run: folder of the run.
        out: the file to write; it appears whole or not at all.
        data: pictures to fit and measure on instead of those of the run.
        test: the test pictures, if they moved.
        checkpoint: which weights.
        name: of the encoder; the recipe's by default.
        int8: write the quantised encoder instead.

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
        git_commit=git_commit(),
    )
    return export(network, evaluation, spec, out, int8=int8)


def load_network(run: Path, recipe: Recipe, pictures: int, checkpoint: Literal["last", "best"]) -> Network:
    """Return the trained network of a run, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the run has no such checkpoint.
    """
    path = run / "best.pt" if checkpoint == "best" else checkpoints.latest(run)
    if path is None:
        raise CheckpointError(f"expected a checkpoint in {run}, got none; let `pretrain` run for a minute at least")
    method = create(replace(recipe, compile=False), pictures)
    method.load_state_dict(checkpoints.load(path)["method"])
    return method.network.eval()


def export(
    network: Network, evaluation: Evaluation, spec: EncoderSpec, out: Path, *, int8: bool = False
) -> Exported:
    """Write the candidates, measure them through ONNX Runtime, keep the better.

    Args:
        network: in evaluation mode; without a projection, the PCA head is the only candidate.
        evaluation: the pictures to fit and measure on.
        spec: what is known already; head, precision, accuracy and canary are filled in.
        out: the file to write; it appears whole or not at all.
        int8: write the kept one quantised.

    Raises:
        TrainingError: torch and ONNX Runtime disagree, or the file cannot be written.
    """
    train = embed(network, evaluation.train.prepared)
    pca = train.fit_pca(evaluation.recipe)
    trained: dict[Head, Graph] = {} if network.projection is None else {"projection": Graph(network)}
    graphs: dict[Head, Graph] = {**trained, "pca": Graph(network, linear(pca))}
    models = {head: trace(graph.eval(), spec.preprocess.crop) for head, graph in graphs.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:

            def load(model: ModelProto, spec: EncoderSpec) -> Encoder:
                temporary.write_bytes(to_bytes(model, spec))
                return Encoder.load(temporary, check_canary=bool(spec.canary))

            scores = {head: measure(load(model, spec), evaluation) for head, model in models.items()}
            kept = max(scores, key=lambda head: scores[head])  # a tie keeps the trained head, which comes first
            model, score = models[kept], scores[kept]
            encoder = load(model, spec)
            difference = prove_parity(graphs[kept], encoder, evaluation.train)
            comparison = None
            if int8:
                calibrating = calibration_pictures(evaluation.train.prepared)
                model = quantise(model, calibrating)
                smaller = load(model, spec)
                comparison = compare(encoder, score, smaller, evaluation, len(calibrating))
                encoder, score = smaller, comparison.after
            canary = encoder.embed(images.load(canary_png(), spec.preprocess)[None])[0]
            spec = replace(
                spec,
                head=kept,
                precision="int8" if int8 else "float32",
                knn=knn_report(evaluation, score, network, train),
                canary=tuple(float(value) for value in canary),
            )
            load(model, spec)  # recomputes the canary: the file is proven before it gets its name
    except OSError as error:
        raise TrainingError(f"expected to write {out}, got: {error.strerror}; choose another --out") from error
    return Exported(out, spec, scores, difference, evaluation.describe(), comparison)


def git_commit() -> str:
    """Return the commit of the code, or "unknown" outside a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
