"""From somebody else's checkpoint to `encoder.onnx`: recognised, built, measured, exported like a run of ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from index.encoder import EncoderSpec
from index.errors import RecipeError
from index.files import sha256_file
from training.data import load_pictures, preprocess_of
from training.evaluation.knn import Evaluation
from training.export import Exported, export, git_commit
from training.foreign.layouts import sort_weights
from training.foreign.network import architecture_of, network_of
from training.foreign.reading import read
from training.recipes import Options, Recipe


@dataclass(frozen=True)
class Foreign(Options):
    """No method of ours: the weights exist, and with them the head, if there is one."""

    method: ClassVar[str] = "import"

    @property
    def projection(self) -> Literal["linear", "mlp", "none"]:
        """None is built; the file's own is put in its place."""
        return "none"


@dataclass(frozen=True)
class Choices:
    """What a file of weights does not say. None takes the default.

    Attributes:
        backbone: the architecture; by default what the shapes say.
        image_size: side that the network sees; by default 224, or 32 for a network with the CIFAR stem.
        resize: length of the short side before the centre is cut out; by default 8/7 of `image_size`, or the same
            for the CIFAR stem.
        whiten: of the PCA head, 0 to 1 (see training.evaluation.pca).
        name: of the encoder; the file's by default.
    """

    backbone: str | None = None
    image_size: int | None = None
    resize: int | None = None
    whiten: float = 0.5
    name: str | None = None


@dataclass(frozen=True)
class Imported:
    """What an import did; `str()` is the report that the command prints."""

    file: Path
    layout: str
    exported: Exported
    backbone: int
    head: str
    ignored: Mapping[str, int]

    def __str__(self) -> str:
        """Return the report in a few lines."""
        groups = ", ".join(f"{prefix} ({count})" for prefix, count in sorted(self.ignored.items())) or "none"
        return (
            f"{self.file}: layout {self.layout}, {self.exported.spec.backbone}\n"
            f"used {self.backbone} tensors of the backbone; {self.head}\n"
            f"ignored: {groups}\n"
            f"{self.exported}"
        )


def import_checkpoint(
    file: Path,
    out: Path,
    *,
    data: Path,
    test: Path | None = None,
    choices: Choices = Choices(),
    int8: bool = False,
) -> Imported:
    """Make an encoder of a public checkpoint.

    Args:
        file: what `torch.save` wrote, in one of the layouts of `training.foreign.layouts`.
        out: the file to write; it appears whole or not at all.
        data: pictures that the PCA head is fitted on and, if they have labels, both heads are measured on.
        test: labelled pictures to classify; leave-one-out by default.
        choices: what the file does not say.
        int8: write the quantised encoder instead.

    Raises:
        CheckpointError: not a file of `torch.save`, no residual network, or other shapes than its own.
        RecipeError: impossible sizes.
    """
    weights = sort_weights(read(file))
    found = architecture_of(weights.backbone)
    small = found.stem == "full"
    side = choices.image_size or (32 if small else 224)
    resize = choices.resize or (side if small else side * 8 // 7)
    if resize < side:
        raise RecipeError(f"expected --resize of at least --image-size {side}, got {resize}")
    recipe = Recipe(
        name=choices.name or file.name.split(".")[0],
        about="",
        options=Foreign(),
        image_size=side,
        cache_size=resize,
        backbone=choices.backbone or found.backbone,
        width=found.width,
        stem=found.stem,
        knn_k=20,
        whiten=choices.whiten,
    )
    network, head = network_of(weights, recipe)
    pictures = load_pictures(data, recipe)
    evaluation = Evaluation(recipe, pictures, load_pictures(test, recipe) if test else None)
    spec = EncoderSpec(
        name=recipe.name,
        method=f"import:{weights.layout.name}",
        backbone=recipe.backbone,
        dim=recipe.dim,
        preprocess=preprocess_of(recipe),
        head="projection",
        canary=(),
        recipe={**asdict(found), "backbone": recipe.backbone, "image_size": side, "whiten": choices.whiten},
        trained_on={
            "file": file.name,
            "sha256": sha256_file(file),
            "measured on": data.name,
            "pictures": len(pictures),
            "labels": "only to measure",
        },
        git_commit=git_commit(),
    )
    exported = export(network, evaluation, spec, out, int8=int8)
    return Imported(file, weights.layout.name, exported, len(weights.backbone), head, weights.ignored)
