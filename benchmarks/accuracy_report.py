"""The table and the curves of benchmarks.training_accuracy."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.accuracy_sets import BENCHMARKS, METHODS, OTHERS

HEADS = ("projection", "pca", "features")
Found = dict[str, list[dict[str, Any]]]  # row → one result a seed


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation (of a sample), in percent."""
    if not values:
        return "-"
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def column(found: list[dict[str, Any]], part: str, head: str) -> list[float]:
    return [result[part][head] for result in found if result.get(part, {}).get(head) is not None]


def better(found: list[dict[str, Any]], part: str = "scores") -> str:
    """Return the head that export would keep: the better mean of projection and PCA (pixels have but features)."""
    values = {head: column(found, part, head) for head in HEADS}
    heads = [head for head in ("projection", "pca") if values[head]] or ["features"]
    return max(heads, key=lambda head: statistics.mean(values[head]))


def table(dataset: str, found: Found) -> str:
    """Return the table as Markdown, percent."""
    base, (k, temperature) = BENCHMARKS[dataset].base, BENCHMARKS[dataset].also
    main = f"kNN-{base.knn_k} τ={base.knn_temperature:g}"
    titles = [
        "features",
        "seeds",
        "epochs",
        "CPU s",
        f"projection, {main}",
        f"PCA-128, {main}",
        f"features, {main}",
    ]
    lines = [[*titles, f"better head, kNN-{k} τ={temperature:g}"], ["---"] * (len(titles) + 1)]
    for row in (*OTHERS, *METHODS):
        for name, part in _parts(row, found.get(row, [])):
            seconds = [result["cpu_seconds"] for result in part if result.get("cpu_seconds")]
            cells = [
                name,
                str(len(part)),
                str(part[0].get("epochs", "-")),
                f"{statistics.mean(seconds):.0f}" if seconds else "-",
                *(spread(column(part, "scores", head)) for head in HEADS),
                spread(column(part, "also", better(part, "also"))),
            ]
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parts(row: str, found: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the lines of a row: (name, results)."""
    if not found:
        return []
    name = OTHERS.get(row, row.replace("_", " "))
    classifier = [result["classifier"] for result in found if "classifier" in result]
    return [(f"{name} (its own classifier: {spread(classifier)})" if classifier else name, found)]


def draw(dataset: str, found: Found, out: Path) -> None:
    """Draw kNN against CPU seconds: mean of the seeds, and a band from the lowest to the highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(row for row in METHODS if row in found):
        part = found[method]
        head = better(part)
        curves = [dict(map(tuple, result["curve"][head])) for result in part]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        seconds = statistics.mean([r["cpu_seconds"] for r in part if r["cpu_seconds"]] or [part[0]["epochs"]])
        times = [epoch / part[0]["epochs"] * seconds for epoch in epochs]
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        label = f"{method.replace('_', ' ')}, {head}"
        axes.plot(times, [statistics.mean(each) for each in values], f"C{number}-o", markersize=3, label=label)
        axes.fill_between(times, [min(v) for v in values], [max(v) for v in values], color=f"C{number}", alpha=0.2)
    for style, (row, name) in zip((":", "-.", "--", "-"), OTHERS.items(), strict=True):
        if row in found:
            height = statistics.mean(column(found[row], "scores", better(found[row])))
            axes.axhline(height, color="gray", linestyle=style, linewidth=1, label=name)
    base = BENCHMARKS[dataset].base
    axes.set(xlabel="CPU seconds of training", ylabel=f"kNN-{base.knn_k} τ={base.knn_temperature:g}")
    axes.set_title(f"{dataset}, {max(len(part) for part in found.values())} seeds", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(out)
