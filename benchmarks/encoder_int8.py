"""How much faster is an int8 encoder than the float32 one it was made of, and what does it cost?

    python -m benchmarks.encoder_int8 [--data examples/gallery] [--pictures 1024] [--seconds 10]

Two encoders: the demo's (examples/encoder.onnx), and a full ResNet-18 at 224 px whose weights are random, with
BatchNorm statistics and a PCA head of the pictures: its speed is that of any ResNet-18, its accuracy only says how
much of it survives. Both precisions are timed in turns, so that a busy moment hits both; medians are printed.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch

from index import images
from index.cores import available_cores
from index.encoder import Encoder, EncoderSpec
from index.images import Pixels, Preprocess
from index.knn import Integers, KnnProtocol, leave_one_out
from index.sources import open_source
from training.backbone import build
from training.evaluation.knn import embed
from training.graph import Graph, linear, to_bytes, trace
from training.proof import embed_all, time_beside
from training.quantize import calibration_pictures, quantise
from training.recipes import Npid, Recipe

DEMO = Path("examples/encoder.onnx")
PROTOCOL = KnnProtocol(10, 0.07)


def load_pictures(data: Path, preprocess: Preprocess, count: int) -> tuple[Pixels, Integers]:
    """Return at most `count` pictures, evenly spaced, and their labels."""
    records = [record for record in open_source(data, "folders") if record.label]
    records = records[:: max(1, len(records) // count)][:count]
    classes = sorted({record.label for record in records if record.label})
    pixels = np.stack([images.load(record.read(), preprocess) for record in records])
    return pixels, np.array([classes.index(record.label or "") for record in records])


def random_resnet18(pixels: Pixels) -> tuple[onnx.ModelProto, EncoderSpec]:
    """Return an untrained ResNet-18 whose BatchNorm and PCA head know the pictures."""
    torch.manual_seed(0)
    recipe = Recipe(name="resnet18 at 224, random", about="", options=Npid(), whiten=0.5)
    network = build(recipe).train()
    with torch.no_grad():
        for start in range(0, min(len(pixels), 320), 32):
            network(torch.from_numpy(pixels[start : start + 32]).permute(0, 3, 1, 2) / 255)
    pca = embed(network.eval(), pixels).fit_pca(recipe)
    preprocess = Preprocess(resize=224, crop=224, fit="pad")
    spec = EncoderSpec(recipe.name, "none", "resnet18", recipe.dim, preprocess, "pca", ())
    return trace(Graph(network, linear(pca)).eval(), 224), spec


def open_encoder(model: onnx.ModelProto, spec: EncoderSpec, path: Path) -> Encoder:
    """Return a graph as an encoder; a canary of another graph would not fit."""
    path.write_bytes(to_bytes(model, replace(spec, canary=())))
    return Encoder.load(path, check_canary=False)


def compare(
    model: onnx.ModelProto, spec: EncoderSpec, pixels: Pixels, labels: Integers, seconds: float, folder: Path
) -> None:
    """Print one encoder's table."""
    smaller = quantise(model, calibration_pictures(pixels))
    single = open_encoder(model, spec, folder / "float32.onnx")
    integer = open_encoder(smaller, spec, folder / "int8.onnx")
    before, after = embed_all(single, pixels), embed_all(integer, pixels)
    old, new = (100 * leave_one_out(PROTOCOL, v, labels, int(labels.max()) + 1) for v in (before, after))
    cosine = float((before * after).sum(axis=1).mean())
    print(f"\n{spec.name}, {spec.backbone}, {spec.preprocess.crop} px, head: {spec.head}")
    print(f"{PROTOCOL}, leave-one-out, {len(pixels)} pictures: {old:.2f} → {new:.2f} ({new - old:+.2f} points)")
    print(f"mean cosine of int8 to float32: {cosine:.5f}")
    for batch in (1, 32):
        print(time_beside(single, integer, pixels, batch, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("examples/gallery"))
    parser.add_argument("--pictures", type=int, default=1024, help="at 224 px; the demo's encoder takes all")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each batch size")
    options = parser.parse_args()
    print(f"{available_cores()} threads, load {os.getloadavg()[0]:.1f}, ONNX Runtime on the CPU")
    with TemporaryDirectory() as folder:
        demo = Encoder.load(DEMO).spec
        compare(
            onnx.load(DEMO),
            demo,
            *load_pictures(options.data, demo.preprocess, 10**6),
            options.seconds,
            Path(folder),
        )
        pixels, labels = load_pictures(options.data, Preprocess(resize=224, crop=224, fit="pad"), options.pictures)
        model, spec = random_resnet18(pixels)
        compare(model, spec, pixels, labels, options.seconds, Path(folder))
    print(f"\nload afterwards {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
