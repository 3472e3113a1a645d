"""Learning curves of one or more runs as a picture."""

from pathlib import Path

from index.errors import ExtraMissingError, ParameterError
from index.files import replacing
from training.metrics import read

_FORMATS = (".png", ".svg", ".pdf")


def plot(runs: list[Path], out: Path) -> None:
    """Draw kNN (with the lines to rise above) and loss against the epoch, one colour a run.

    Args:
        runs: folders of runs.
        out: the picture; its suffix decides the format.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and no window system is touched this way
    except ImportError as error:
        raise ExtraMissingError("plotting needs matplotlib: pip install 'lookalike[training]'") from error
    if out.suffix not in _FORMATS:
        raise ParameterError(f"expected --out to end in {', '.join(_FORMATS)}, got {out.name!r}")
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        metrics = read(run)
        colour, name = f"C{number}", run.resolve().name
        for head, style in (("pca", "-"), ("projection", "--")):
            curve = metrics.curve(f"knn_{head}")
            if not curve:
                continue
            accuracy.plot(curve.keys(), curve.values(), colour + style, label=f"{name}, {head}")
        for baseline, style in (("raw_pixels", ":"), ("untrained", "-.")):
            if baseline in metrics.baselines:
                height = metrics.baselines[baseline]
                label = f"{name}, {baseline.replace('_', ' ')}"
                accuracy.axhline(height, color=colour, linestyle=style, linewidth=1, label=label)
        curve = metrics.curve("loss")
        loss.plot(curve.keys(), curve.values(), colour, label=name)
    accuracy.set(xlabel="epoch", ylabel="kNN top-1")
    loss.set(xlabel="epoch", ylabel="loss")
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    try:
        with replacing(out) as temporary:
            figure.savefig(temporary, format=out.suffix[1:])
    except OSError as error:
        raise ParameterError(f"expected to write {out}, got: {error.strerror}; choose another --out") from error
