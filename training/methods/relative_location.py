"""Relative location: which neighbour of the middle is this patch? Doersch, Gupta, Efros 2015 (arXiv:1505.05192).

A picture is cut into 3×3 cells and one patch is taken from a random place in each:

    0 1 2
    3 c 4      eight pairs (neighbour, centre), and a classifier of eight places
    5 6 7

The random places keep lines and textures from simply running on from one patch to the next (§3). The layout is that
of Kolesnikov et al. 2019 (arXiv:1901.09005) and MMSelfSup: all eight pairs of a picture, features joined as
(neighbour, centre). Those encode both patches of every pair, 16 a picture; here each of the nine is encoded once,
so neighbours and centres share their BatchNorm statistics.

Shapes: B pictures a batch, S side of a picture, P side of a patch, F features.
"""

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from index.errors import RecipeError
from training.augment import view
from training.backbone import MEAN, STD, Network
from training.draws import Draw
from training.methods.method import Batch, Loss, Method
from training.recipes import Recipe, RelativeLocation

PATCHES, PLACES, CENTRE = 9, 8, 4
_MAGENTA_GREEN = (-1.0, 2.0, -1.0)  # "Avoiding trivial solutions", §3


class RelativeLocationPrediction(Method):
    """Relative location. Nothing is remembered between steps, so there is nothing to commit."""

    note: ClassVar[str] = (
        "loss starts at ln 8 = 2.079 and accuracy, of places, at 0.125; the middle stages learn what a "
        "search can use, so look at the PCA head, which pools them"
    )

    def __init__(self, network: Network, recipe: Recipe, pictures: int) -> None:
        super().__init__(network, recipe, pictures)
        self.options = cast("RelativeLocation", recipe.options)
        _check_sizes(recipe.cache_size, self.options)
        self.head = _classifier(network.feature_dim, self.options)

    def views(self, images: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """Return the nine patches of each picture, float32 (9·B, 3, P, P), picture by picture."""
        options, side = self.options, self.recipe.cache_size
        pixels = view(images, side, self.recipe.augment, draw)
        if options.project_colours:
            pixels = project_colours(pixels)
        cell = options.crop // 3
        corners = draw.integers(side - options.crop + 1, 2)
        jitter = draw.integers(cell - options.patch + 1, PATCHES, 2)
        cut = patches(pixels, corners[:, None] + cell * _grid(jitter.device) + jitter, options.patch)
        if options.standardise:
            cut = standardise(cut)
        return (cut.flatten(0, 1),)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy over the eight places, ln 8 at the start.

        Dropout draws from torch's global generator, which the loop seeds before every step: the loss is the same
        when it is computed again from the same seed.
        """
        encoded = self.network.features(batch.views[0])  # (9·B, F)
        features = encoded.reshape(-1, PATCHES, self.network.feature_dim)
        logits = self.head(pairs(features))  # (8·B, 8)
        labels = torch.arange(PLACES, device=logits.device).repeat(len(features))
        metrics = {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}
        centres = features[:, CENTRE].detach()
        return Loss(F.cross_entropy(logits, labels), metrics, F.normalize(centres, dim=1))


def patches(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Cut square patches out of pictures, all at once.

    Args:
        images: (B, 3, S, S).
        corners: int64 (B, K, 2), row and column of each patch's upper left pixel.
        side: P.

    Returns:
        (B, K, 3, P, P).
    """
    steps = torch.arange(side, device=images.device)
    rows = (corners[:, :, 0, None] + steps)[:, :, :, None]  # (B, K, P, 1)
    columns = (corners[:, :, 1, None] + steps)[:, :, None, :]  # (B, K, 1, P)
    picture = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images[picture, :, rows, columns].permute(0, 1, 4, 2, 3)  # indexed: (B, K, P, P, 3)


def pairs(features: Tensor) -> Tensor:
    """Join each neighbour's features with the centre's: (B, 9, F) → (8·B, 2·F), row i being place i mod 8."""
    neighbours = torch.cat([features[:, :CENTRE], features[:, CENTRE + 1 :]], dim=1)
    centres = features[:, CENTRE, None].expand_as(neighbours)
    return torch.cat([neighbours, centres], dim=2).flatten(0, 1)


def standardise(cut: Tensor) -> Tensor:
    """Give each patch mean 0 and standard deviation 1 where the network sees it: (B, K, 3, P, P).

    The network subtracts ImageNet's mean and divides by its standard deviation, so both are put on here. A patch of
    one colour has no deviation and becomes 0.
    """
    mean = cut.mean(dim=(2, 3, 4), keepdim=True)
    deviation = cut.std(dim=(2, 3, 4), keepdim=True, correction=0)
    floor = cut[0, 0].numel() ** -0.5  # Kolesnikov et al.: noise in a flat patch shall not become a pattern
    scale, shift = (torch.tensor(each, device=cut.device)[:, None, None] for each in (STD, MEAN))
    return (cut - mean) / deviation.clamp(min=floor) * scale + shift


def project_colours(images: Tensor) -> Tensor:
    """Remove from colours (B, 3, H, W) what lies along a = (-1, 2, -1): x - a (a·x) / (a·a) (§3).

    Lenses focus green and magenta differently towards the corners, and a network reads a patch's place off the
    fringes. Grey stays as it is. Results may leave 0…1 a little: clipping them would bring the axis back.
    """
    axis = torch.tensor(_MAGENTA_GREEN, device=images.device)
    keep = torch.eye(3, device=images.device) - torch.outer(axis, axis) / axis.square().sum()
    return torch.einsum("dc,bchw->bdhw", keep, images)


def _grid(device: torch.device) -> Tensor:
    """Return row and column of the nine cells, int64 (9, 2), row by row."""
    places = torch.arange(PATCHES, device=device)
    return torch.stack([places // 3, places % 3], dim=1)


def _classifier(features: int, options: RelativeLocation) -> nn.Sequential:
    """Return pair (·, 2·F) → logits (·, 8), with MMSelfSup's initial weights and BatchNorm momentum."""
    first, last = nn.Linear(2 * features, options.hidden), nn.Linear(options.hidden, PLACES)
    for layer, deviation in ((first, 0.01), (last, 0.005)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    norm = nn.BatchNorm1d(options.hidden, momentum=0.003)
    return nn.Sequential(first, norm, nn.ReLU(inplace=True), nn.Dropout(options.dropout), last)


def _check_sizes(cached: int, options: RelativeLocation) -> None:
    if cached < options.crop:
        raise RecipeError(
            f"expected cache_size of at least options.crop, {options.crop} px, got {cached}; "
            f"set options.crop={cached} or cache_size={options.crop}"
        )
    if options.crop // 3 < options.patch:
        raise RecipeError(
            f"expected cells of at least options.patch, {options.patch} px, got {options.crop // 3} from "
            f"options.crop={options.crop}; set options.patch={max(1, options.crop // 4)}"
        )
