"""What does each method teach on a small budget, beside what needs no training and what had labels?

    python -m benchmarks.training_accuracy cifar10 --train cifar10-train.parquet --test cifar10-test.parquet
    python -m benchmarks.training_accuracy fashion-mnist --train /usr/share/datasets/fashion-mnist
    python -m benchmarks.training_accuracy gallery --train examples/gallery

Fashion-MNIST is Debian's package dataset-fashion-mnist. Every row of the table is measured with the same kNN on
the same pictures: 10,000 training and 5,000 test pictures of CIFAR-10 and Fashion-MNIST, evenly spaced in their
files; the whole gallery, leave-one-out.

The four methods and the supervised network have the same network, picture size, optimiser and schedule, and, on
the machine where the epochs were chosen, the same CPU seconds: that is what a user spends. A rotation costs four
encodes a picture and relative location nine small ones, so they see fewer pictures. What was really spent is in
the table.

Each run is a process with one thread and a folder of its own below --work; results are JSON, and those that exist
are not computed again, so a benchmark that was stopped goes on. With --report nothing is computed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import accuracy_report, accuracy_sets
from benchmarks.accuracy_sets import BENCHMARKS, METHODS, recipe_of


def train(dataset: str, method: str, seed: int, work: Path, share: float) -> dict[str, Any]:
    """Train and measure one method; a run that was stopped goes on."""
    from training import checkpoints, metrics
    from training.evaluation.knn import Evaluation, Scores
    from training.loop import Training

    class Timed(Evaluation):
        """Keeps account of the time that measuring takes."""

        spent = 0.0

        def measure(self, *arguments: Any) -> Scores:  # noqa: ANN401
            start = time.process_time()
            scores = super().measure(*arguments)
            self.spent += time.process_time() - start
            return scores

    recipe = recipe_of(dataset, method, seed, share)
    pictures, test = accuracy_sets.load(work, dataset, recipe)
    folder = work / dataset / f"{method}-{seed}"
    fresh = checkpoints.latest(folder) is None
    evaluation = Timed(recipe, pictures, test)
    training = Training(recipe, evaluation, folder)
    start = time.process_time()
    if not training.run() or training.scores is None:
        raise SystemExit(130)
    seconds = time.process_time() - start - evaluation.spent
    written = metrics.read(folder)
    k, temperature = BENCHMARKS[dataset].also
    also = Evaluation(replace(recipe, knn_k=k, knn_temperature=temperature), pictures, test)
    return {
        "epochs": recipe.epochs,
        "cpu_seconds": seconds if fresh else None,
        "scores": vars(training.scores),
        "also": vars(also.measure(training.method.network)),
        "curve": {head: list(written.curve(f"knn_{head}").items()) for head in accuracy_report.HEADS},
        "loss": list(written.curve("loss").items()),
    }


def run_one(options: argparse.Namespace, row: str, seed: int) -> None:
    """Compute one result and write it."""
    import torch

    from benchmarks import accuracy_baselines as baselines
    from index.files import write_atomically

    torch.set_num_threads(1)
    dataset, work = options.dataset, options.work
    recipe = recipe_of(dataset, row, seed, options.share)
    if row in METHODS:
        result = train(dataset, row, seed, work, options.share)
    else:
        pictures, test = accuracy_sets.load(work, dataset, recipe)
        judge = baselines.Judge(recipe, pictures, test, BENCHMARKS[dataset].also)
        result = judge.lite0(BENCHMARKS[dataset].lite0) if row == "lite0" else getattr(judge, row)()
    folder = work / dataset / f"{row}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "result.json", json.dumps(result, indent=1).encode())


def jobs(options: argparse.Namespace) -> list[tuple[str, int]]:
    """List (row, seed) in the order of computing: a whole table of the first seed comes first."""
    rows = [*options.methods, "supervised", "random"]
    once = [(row, 0) for row in ("pixels", "lite0")]
    return [*once, *((row, seed) for seed, row in product(options.seeds, rows))]


def run_all(options: argparse.Namespace) -> None:
    """Compute all results that are missing, some at a time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    waiting = [job for job in jobs(options) if not result_file(options, *job).exists()]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    start, count = time.monotonic(), len(waiting)
    while waiting or running:
        while waiting and len(running) < options.parallel:
            row, seed = job = waiting.pop(0)
            command = [sys.executable, "-m", "benchmarks.training_accuracy", *sys.argv[1:], "--one", row, str(seed)]
            log = options.work / options.dataset / f"{row}-{seed}.log"
            with log.open("ab") as output:
                running[job] = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        time.sleep(0.5)
        for job, process in list(running.items()):
            if process.poll() is not None:
                del running[job]
                done = count - len(waiting) - len(running)
                state = "done" if process.returncode == 0 else f"exit {process.returncode}, see its .log"
                minutes = (time.monotonic() - start) / 60
                print(f"{minutes:5.1f} min  {done}/{count}  {job[0]}, seed {job[1]}: {state}", file=sys.stderr)


def result_file(options: argparse.Namespace, row: str, seed: int) -> Path:
    return Path(options.work / options.dataset / f"{row}-{seed}" / "result.json")


def results(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Read what there is: row → one result a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row, seed in jobs(options):
        file = result_file(options, row, seed)
        if file.exists():
            found.setdefault(row, []).append(json.loads(file.read_text()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=BENCHMARKS)
    parser.add_argument(
        "--train", type=Path, required=True, help="Parquet, class folders, or the idx files' folder"
    )
    parser.add_argument("--test", type=Path, help="Parquet")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder for runs and results")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs; below 1 for a quick look")
    parser.add_argument("--report", action="store_true", help="only print the table and draw the curves")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options, options.one[0], int(options.one[1]))
        return
    (options.work / options.dataset).mkdir(parents=True, exist_ok=True)
    if not options.report:
        accuracy_sets.prepare(options.work, options.dataset, options.train, options.test)
        run_all(options)
    found = results(options)
    print(accuracy_report.table(options.dataset, found))
    picture = options.work / f"{options.dataset}.png"
    accuracy_report.draw(options.dataset, found, picture)
    print(f"\n{picture}")


if __name__ == "__main__":
    main()
