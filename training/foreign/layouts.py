"""How other libraries name a residual network's weights, as a table: recognise, then rename.

Each layout maps a key of the file to torchvision's name of a weight of the backbone (`layer1.0.conv1.weight`), or
to a place in the head (`2.weight`: of the head's third layer), or to neither. A further library is a further row.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from index.errors import CheckpointError
from training.backbone import MEAN, STD

Rename = Callable[[str], str | None]
Channels = tuple[float, float, float]
_IMAGENET = (MEAN, STD)
# Mean as measured; the first deviation is the mean of the pictures' own, as the old CIFAR code has it.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR_SOLO = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_BODY = re.compile(r"(conv1|bn1|layer[1-4])\.")
_TORCHVISION = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_NO_POOL = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4"}
_NO_RELU = {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"}


@dataclass(frozen=True)
class Layout:
    """A row of the table.

    Attributes:
        name: it becomes the encoder's method, "import:NAME".
        telltales: patterns of keys; a file has this layout if each is found among its keys.
        backbone: key → torchvision's name.
        head: key → place in the sequence of the head's layers.
        top: a key of the file's top level that must be there as well.
        normalisation: mean and deviation of the channels, 0…1, that the pictures had.
        small: the same where the network has the CIFAR stem.
        stem_relu: whether a ReLU follows the first BatchNorm.
    """

    name: str
    telltales: tuple[str, ...]
    backbone: Rename
    head: Rename
    top: str | None = None
    normalisation: tuple[Channels, Channels] = _IMAGENET
    small: tuple[Channels, Channels] = _IMAGENET
    stem_relu: bool = True

    def matches(self, keys: list[str], top: frozenset[str]) -> bool:
        """Whether a file with these keys has this layout."""
        found = all(any(re.match(pattern, key) for key in keys) for pattern in self.telltales)
        return found and (self.top is None or self.top in top)


@dataclass(frozen=True)
class Weights:
    """A file's weights, sorted.

    Attributes:
        layout: whose file it is.
        backbone: torchvision's names.
        head: "INDEX.weight" and the like, in the order of a sequence.
        ignored: how many keys of each prefix are of no use to an encoder.
    """

    layout: Layout
    backbone: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    ignored: Mapping[str, int] = field(default_factory=dict)


def sort_weights(document: Any) -> Weights:  # noqa: ANN401 - whatever a file holds
    """Recognise what a checkpoint holds.

    Raises:
        CheckpointError: no residual network under any of the known names.
    """
    top = frozenset(map(str, document)) if isinstance(document, Mapping) else frozenset[str]()
    flat = _without(_flatten(document), "module.")
    keys = list(flat)
    for layout in LAYOUTS:
        if not layout.matches(keys, top):
            continue
        backbone: dict[str, Tensor] = {}
        head: dict[str, Tensor] = {}
        ignored: Counter[str] = Counter()
        for key, tensor in flat.items():
            if name := layout.backbone(key):
                backbone[name] = tensor
            elif name := layout.head(key):
                head[name] = tensor
            else:
                ignored[_prefix(key)] += 1
        return Weights(layout, backbone, head, dict(ignored))
    shown = ", ".join(keys[:3]) or ", ".join(sorted(top)[:5]) or type(document).__name__
    raise CheckpointError(
        f"expected the weights of a residual network in one of the layouts {', '.join(names())}, got {shown}, …; "
        "save the network's state_dict under torchvision's names"
    )


def names() -> list[str]:
    """Return the layouts' names in the order in which they are tried."""
    return list(dict.fromkeys(layout.name for layout in LAYOUTS))


def _flatten(document: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Return the tensors by key: of the innermost table of weights that the known wrappers hold."""
    if not isinstance(document, Mapping):
        return {}
    for outer in ("classy_state_dict", "base_model", "model_state_dict", "state_dict", "model", "net"):
        if isinstance(document.get(outer), Mapping):
            return _flatten(document[outer])
    parts = {part: document[part] for part in ("trunk", "heads") if isinstance(document.get(part), Mapping)}
    if parts:  # VISSL keeps backbone and head apart
        return {f"{part}.{key}": t for part, table in parts.items() for key, t in _flatten(table).items()}
    return {str(key): value.detach() for key, value in document.items() if isinstance(value, Tensor)}


def _without(flat: dict[str, Tensor], wrapper: str) -> dict[str, Tensor]:
    """Drop the prefix that DataParallel puts before every key."""
    if flat and all(key.startswith(wrapper) for key in flat):
        return {key.removeprefix(wrapper): tensor for key, tensor in flat.items()}
    return flat


def _prefix(key: str) -> str:
    """Return what to call a group of ignored keys: "encoder_k.layer1.0.conv1.weight" is "encoder_k"."""
    return key.split(".", maxsplit=1)[0]


def _named(prefix: str) -> Rename:
    """The backbone's names are torchvision's, behind a prefix; some say shortcut for downsample."""

    def rename(key: str) -> str | None:
        rest = key.removeprefix(prefix)
        if not key.startswith(prefix) or not _BODY.match(rest):
            return None
        return rest.replace(".shortcut.", ".downsample.")

    return rename


def _numbered(prefix: str, stages: Mapping[str, str]) -> Rename:
    """The backbone is a sequence of torchvision's parts: numbers stand for names."""

    def rename(key: str) -> str | None:
        number, _, rest = key.removeprefix(prefix).partition(".")
        if not key.startswith(prefix) or number not in stages:
            return None
        return f"{stages[number]}.{rest}".replace(".shortcut.", ".downsample.")

    return rename


def _head(pattern: str) -> Rename:
    """The head's keys match a pattern with up to two groups of digits, its place; without any, it is one layer."""
    whole = re.compile(pattern + r"(weight|bias|running_mean|running_var|num_batches_tracked)")

    def rename(key: str) -> str | None:
        found = whole.fullmatch(key)
        if not found:
            return None
        *places, what = found.groups()
        # Two numbers: VISSL's sequence of sequences, between which there is a ReLU, as at any number left out.
        place = 0
        for digits in places:
            place = 10 * place + int(digits or 0)
        return f"{place}.{what}"

    return rename


# The order matters: a layout whose telltales another one shares comes first.
LAYOUTS = (
    Layout(
        "vissl",
        (r"(trunk\.)?_feature_blocks\.conv1\.weight",),
        lambda key: _named("_feature_blocks.")(key.removeprefix("trunk.")),
        _head(r"heads\.(\d+)\.clf\.(\d+)\."),
    ),
    Layout("moco", (r"encoder_q\.conv1\.weight",), _named("encoder_q."), _head(r"encoder_q\.fc\.(?:(\d+)\.)?")),
    Layout(
        "moco-cifar10",
        (r"encoder_q\.net\.0\.weight",),
        _numbered("encoder_q.net.", _NO_POOL),
        _head(r"encoder_q\.net\.9\."),
        normalisation=_CIFAR,
        small=_CIFAR,
    ),
    Layout(
        "lightly",
        (r"backbone\.0\.weight", r"backbone\.2\.0\.conv1\.weight"),  # its CIFAR network, cut up: ReLU is lost
        _numbered("backbone.", _NO_RELU),
        _head(r"projection_head\.layers\.(\d+)\."),
        stem_relu=False,
    ),
    Layout(
        "lightly",
        (r"backbone\.0\.weight", r"backbone\.4\.0\.conv1\.weight"),
        _numbered("backbone.", _TORCHVISION),
        _head(r"projection_head\.layers\.(\d+)\."),
    ),
    Layout(
        "lightly",
        (r"backbone\.conv1\.weight", r"projection_head\."),
        _named("backbone."),
        _head(r"projection_head\.layers\.(\d+)\."),
    ),
    Layout(
        "solo-learn",
        (r"backbone\.conv1\.weight", r"(projector|momentum_backbone|classifier)\."),
        _named("backbone."),
        _head(r"projector\.(\d+)\."),
        small=_CIFAR_SOLO,
    ),
    Layout(
        "mmselfsup", (r"backbone\.conv1\.weight",), _named("backbone."), _head(r"neck\.(?:fc|mlp)\.(?:(\d+)\.)?")
    ),
    Layout("pycontrast", (r"encoder\.conv1\.weight",), _named("encoder."), _head(r"head\.(\d+)\.")),
    Layout(
        "lemniscate-cifar10",
        (r"conv1\.weight", r"linear\.weight"),
        _named(""),
        _head(r"linear\."),
        top="net",
        normalisation=_CIFAR,
        small=_CIFAR,
    ),
    Layout("lemniscate", (r"conv1\.weight", r"fc\.weight"), _named(""), _head(r"fc\."), top="lemniscate"),
    Layout("torchvision", (r"conv1\.weight", r"layer1\.0\."), _named(""), _head(r"fc\.(?:(\d+)\.)?")),
)
