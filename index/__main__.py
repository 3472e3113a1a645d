"""python -m index build | search | info | verify: a memory bank from the command line."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import LookalikeError, SourceError

if TYPE_CHECKING:
    from index.retriever import Neighbor


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; an expected failure is one line on standard error and exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except LookalikeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` closed the pipe
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m index", description="Build, search and check a memory bank.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="embed pictures into a bank; the same command resumes")
    build.add_argument("--encoder", type=Path, required=True, help="encoder.onnx")
    build.add_argument(
        "--images",
        type=Path,
        required=True,
        help="folder of pictures; .csv or .parquet of paths or pictures; .tar shards; cifar10:ROOT and its like",
    )
    build.add_argument("--out", type=Path, required=True, help="the bank's directory")
    build.add_argument(
        "--labels", choices=["folders", "none"], default="folders", help="label = class folder or column (default)"
    )
    build.add_argument(
        "--store", choices=["auto", "float32", "float16"], default="auto", help="how vectors are kept"
    )
    build.add_argument("--index", choices=["auto", "flat", "ivf"], default="auto", help="how they are searched")
    build.add_argument("--batch-size", type=int, default=64, help="pictures an embedding call (default 64)")
    build.add_argument("--threads", type=int, help="cores to use (default: all that this process may)")
    build.set_defaults(run=_build)

    search = commands.add_parser("search", help="show the nearest pictures of a picture")
    search.add_argument("query", nargs="+", type=Path, help="picture files")
    search.add_argument("--encoder", type=Path, required=True)
    search.add_argument("--bank", type=Path, required=True)
    search.add_argument("-k", type=int, default=10, help="neighbours (default 10)")
    search.add_argument("--exact", action="store_true", help="search every vector instead of the index")
    search.add_argument("--montage", type=Path, help="write the query and its neighbours as one PNG")
    search.add_argument("--images", type=Path, help="folder that the bank was built from, for the montage")
    search.set_defaults(run=_search)

    info = commands.add_parser("info", help="what a bank holds")
    info.add_argument("--bank", type=Path, required=True)
    info.add_argument("--json", action="store_true", help="the manifest as JSON")
    info.set_defaults(run=_info)

    verify = commands.add_parser("verify", help="check counts, ids, checksums and norms")
    verify.add_argument("--bank", type=Path, required=True)
    verify.set_defaults(run=_verify)
    return parser


def _build(arguments: argparse.Namespace) -> int:
    from index.cores import available_cores
    from index.encoder import Encoder
    from index.indexer import build
    from index.memory_bank import EncoderIdentity, MemoryBank
    from index.sources import open_source

    source = open_source(arguments.images, arguments.labels)
    threads = arguments.threads or available_cores()
    encoder = Encoder.load(arguments.encoder, threads=threads)
    identity = EncoderIdentity.of(encoder)
    exists = (arguments.out / "manifest.json").exists() or (arguments.out / "catalog.sqlite").exists()
    opened = (
        MemoryBank.open(arguments.out, encoder=identity)
        if exists
        else MemoryBank.create(arguments.out, encoder=identity, store=arguments.store)
    )
    with opened as bank:
        skipped_csv = arguments.out / "skipped.csv"
        report = build(
            source,
            encoder,
            bank,
            batch_size=arguments.batch_size,
            threads=threads,
            skipped_csv=skipped_csv,
        )
        if bank.pending:
            print("building the index …", file=sys.stderr)
            bank.compact(index=arguments.index)
        print(
            f"{arguments.out}: {bank.count:,} items, {len(bank.class_names)} classes, generation {bank.generation}"
        )
        print(
            f"added {report.added:,}, already there {report.already:,}, "
            f"same bytes as another {len(report.copies):,}"
        )
        if report.skipped:
            print(f"skipped {len(report.skipped):,}, listed with reasons in {skipped_csv}")
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from index.encoder import Encoder
    from index.memory_bank import EncoderIdentity, MemoryBank
    from index.retriever import Retriever

    encoder = Encoder.load(arguments.encoder)
    with MemoryBank.open(arguments.bank, encoder=EncoderIdentity.of(encoder), read_only=True) as bank:
        retriever = Retriever(encoder, bank)
        pictures = [_read(path) for path in arguments.query]
        vectors = retriever.embed(pictures)
        found = retriever.search(vectors, k=arguments.k, exact=arguments.exact)
        answers = retriever.classify(vectors) if bank.class_names else [None] * len(found)
    for path, neighbors, answer in zip(arguments.query, found, answers, strict=True):
        verdict = f"  →  {answer.label} ({answer.confidence:.0%} of the vote)" if answer else ""
        print(f"{path}{verdict}")
        for rank, neighbor in enumerate(neighbors, 1):
            print(f"{rank:4}  {neighbor.similarity:.4f}  {neighbor.item.label or '-':<20}  {neighbor.item.id}")
    if arguments.montage:
        from index.files import write_atomically
        from index.montage import montage_png

        rows = [
            [(picture, f"query\n{path.name}"), *(_cell(neighbor, arguments.images) for neighbor in neighbors)]
            for path, picture, neighbors in zip(arguments.query, pictures, found, strict=True)
        ]
        write_atomically(arguments.montage, montage_png(rows))
        print(f"montage: {arguments.montage}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from index.memory_bank import MemoryBank

    with MemoryBank.open(arguments.bank, read_only=True) as bank:
        if arguments.json:
            print(json.dumps(json.loads(bank.manifest.to_json()), indent=2))
            return 0
        manifest = bank.manifest
        print(f"bank        {arguments.bank}, format {manifest.format_version}, generation {bank.generation}")
        print(f"encoder     {bank.encoder.name}, {bank.encoder.dim}-d, sha256 {bank.encoder.sha256}")
        print(f"items       {bank.count:,}, of them {bank.pending:,} not yet compacted")
        for segment in manifest.segments:
            print(f"segment     {segment.name}: {segment.count:,} vectors")
        if manifest.tuning:
            print(f"search      {manifest.tuning}")
        counts = bank.label_counts()
        print(f"labels      {len(counts)} classes" + "".join(f"\n{n:9,}   {name}" for name, n in counts.items()))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from index.memory_bank import MemoryBank

    with MemoryBank.open(arguments.bank, read_only=True) as bank:
        problems = bank.verify()
    for problem in problems:
        print(problem)
    print(f"{arguments.bank}: " + (f"{len(problems)} problems" if problems else "sound"))
    return 1 if problems else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"expected a picture at {path}, got: {error.strerror}") from error


def _cell(neighbor: "Neighbor", root: Path | None) -> tuple[bytes | None, str]:
    """Return a neighbour's picture, if its file is there, and its caption."""
    item = neighbor.item
    path = root / item.uri if root is not None and item.uri else None
    picture = path.read_bytes() if path is not None and path.is_file() else None
    return picture, f"{neighbor.similarity:.3f}  {item.label or ''}\n{item.id.rsplit('/', 1)[-1]}"


if __name__ == "__main__":
    sys.exit(main())
