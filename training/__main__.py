"""`python -m training`: recipes, pretrain, export, import, plot."""

import argparse
import os
import sys
from pathlib import Path

from index.errors import LookalikeError, RecipeError

_PLACES = (
    "folder of pictures; .csv or .parquet of paths or pictures; .tar shards, a folder or a pattern of them "
    "(shard-{000..010}.tar); cifar10:ROOT, cifar100:, stl10:, fashionmnist:, imagenet:, with :test and the like"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0 done, 2 bad input (one sentence on stderr), 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except LookalikeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Self-supervised pretraining: pictures in, encoder.onnx out."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    recipes = commands.add_parser("recipes", help="list the recipes, or show one with its keys")
    recipes.add_argument("recipe", nargs="?", metavar="RECIPE")
    recipes.set_defaults(run=_recipes)

    pretrain = commands.add_parser("pretrain", help="train a network, or go on with a run that was stopped")
    pretrain.add_argument("recipe", metavar="RECIPE")
    pretrain.add_argument("--data", type=Path, required=True, metavar="PLACE", help=_PLACES)
    pretrain.add_argument(
        "--test", type=Path, metavar="PLACE", help="labelled pictures to classify; default: leave-one-out"
    )
    pretrain.add_argument(
        "--labels",
        choices=("none", "folders"),
        default="folders",
        help="labels only measure, they are never trained on; default: class folders, or the table's label column",
    )
    pretrain.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    pretrain.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="decoded pictures go there; default: into memory, or into RUN/cache if they need more than half of it",
    )
    pretrain.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a recipe's value")
    pretrain.add_argument("--threads", type=int, metavar="N", help="default: the cores this process may use")
    pretrain.set_defaults(run=_pretrain)

    export = commands.add_parser("export", help="write encoder.onnx from a run: the better head, parity proven")
    export.add_argument("run_folder", type=Path, metavar="RUN")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.add_argument("--data", type=Path, metavar="PATH", help="pictures to measure on; default: the run's")
    export.add_argument("--test", type=Path, metavar="PATH", help="default: where the run's test pictures were")
    export.add_argument("--checkpoint", choices=("last", "best"), default="last")
    export.add_argument("--name", help="of the encoder; default: the recipe's")
    export.add_argument("--int8", action="store_true", help="write it quantised: smaller, faster on CPUs")
    export.set_defaults(run=_export)

    foreign = commands.add_parser("import", help="write encoder.onnx from another library's checkpoint of a ResNet")
    foreign.add_argument("file", type=Path, metavar="FILE", help="what torch.save wrote; no code in it is run")
    foreign.add_argument("--out", type=Path, required=True, metavar="FILE")
    foreign.add_argument("--data", type=Path, required=True, metavar="PLACE", help="pictures to fit and measure on")
    foreign.add_argument("--test", type=Path, metavar="PLACE", help="labelled pictures; default: leave-one-out")
    foreign.add_argument("--backbone", default="auto", metavar="NAME", help="default: what the shapes say")
    foreign.add_argument("--image-size", type=int, metavar="PIXELS", help="default: 224, or 32 with a 3×3 stem")
    foreign.add_argument("--resize", type=int, metavar="PIXELS", help="default: 256 for 224, 32 for 32")
    foreign.add_argument("--whiten", type=float, default=0.5, metavar="0…1", help="of the PCA head; default: 0.5")
    foreign.add_argument("--name", help="of the encoder; default: the file's")
    foreign.add_argument("--int8", action="store_true", help="write it quantised: smaller, faster on CPUs")
    foreign.set_defaults(run=_import)

    plot = commands.add_parser("plot", help="draw the learning curves of runs")
    plot.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    plot.add_argument("--out", type=Path, required=True, metavar="PNG")
    plot.set_defaults(run=_plot)
    return parser


def _recipes(options: argparse.Namespace) -> int:
    from training.overrides import find, keys
    from training.recipes import RECIPES

    if options.recipe is None:
        for recipe in RECIPES.values():
            first, _, rest = recipe.about.partition("\n")
            print(f"{recipe.name:<26} {first}")
            print("".join(f"{'':<26} {line.strip()}\n" for line in rest.splitlines()))
        return 0
    recipe = find(options.recipe)
    print("\n".join(line.strip() for line in recipe.about.splitlines()), end="\n\n")
    for key in keys(recipe):
        value: object = recipe
        for part in key.split("."):
            value = getattr(value, part)
        print(f"{key:<28} {value}")
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from training.overrides import find, override

    settings = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"expected --set KEY=VALUE, got {text!r}")
        settings[key] = value
    recipe = override(find(options.recipe), settings)

    # Threads wait asleep: on shared cores, spinning ones take the time of the very threads they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.runs import start  # torch: only once the command line is known to be good

    finished = start(
        recipe,
        data=options.data,
        test=options.test,
        labels=options.labels == "folders",
        folder=options.out,
        cache=options.cache,
        threads=options.threads,
    )
    return 0 if finished else 130


def _export(options: argparse.Namespace) -> int:
    from training.export import export_run

    report = export_run(
        options.run_folder,
        options.out,
        data=options.data,
        test=options.test,
        checkpoint=options.checkpoint,
        name=options.name,
        int8=options.int8,
    )
    print(report)
    return 0


def _import(options: argparse.Namespace) -> int:
    from training.importing import Choices, import_checkpoint

    choices = Choices(
        backbone=None if options.backbone == "auto" else options.backbone,
        image_size=options.image_size,
        resize=options.resize,
        whiten=options.whiten,
        name=options.name,
    )
    print(
        import_checkpoint(
            options.file,
            options.out,
            data=options.data,
            test=options.test,
            choices=choices,
            int8=options.int8,
        )
    )
    return 0


def _plot(options: argparse.Namespace) -> int:
    from training.plots import plot

    plot(options.runs, options.out)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
