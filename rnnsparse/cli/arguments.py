"""What can be typed: the commands with their arguments, and what these may be."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, get_args

from rnnsparse import __version__
from rnnsparse.cli.new import LIKE
from rnnsparse.errors import one_line
from rnnsparse.storage.exports import FORMATS, Rounding


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, allowing overrides on both sides of options, which argparse by itself does not."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(arguments, "overrides")]
    if strange:
        parser.error(f"{strange[0]!r} is not known here")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rnnsparse", description="Sparse character-level recurrent language models.")
    parser.add_argument("--version", action="version", version=f"rnnsparse {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(command=name)
        return sub

    def add_checkpoint(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "checkpoint",
            type=Path,
            metavar="RUN|CHECKPOINT",
            help="a run folder (its last checkpoint) or a checkpoint folder",
        )

    def add_overrides(sub: argparse.ArgumentParser) -> None:
        help_text = "settings that replace those of the file"
        sub.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=help_text)

    def add_device(sub: argparse.ArgumentParser) -> None:
        help_text = "where to compute; auto: on a CUDA device if there is one"
        sub.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=help_text)

    start = add("new", "Write a commented YAML file to start from.")
    start.add_argument("path", type=Path, metavar="NEW.yaml", help="the file to write; none is overwritten")
    help_text = "what to begin with: two minutes on a CPU, WikiText-103 in an hour, or a comparison of methods"
    start.add_argument("--like", choices=list(LIKE), default="quickstart", help=f"{help_text} (default: quickstart)")

    train = add("train", "Train a model as a YAML file says.")
    train.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    add_overrides(train)
    train.add_argument("--resume", action="store_true", help="continue the run's last checkpoint")

    evaluate = add("evaluate", "Measure bits per character.")
    add_checkpoint(evaluate)
    help_text = "the part to measure on (default: test); of --data, if given, found or divided as in training"
    evaluate.add_argument("--split", choices=["validation", "test"], help=help_text)
    help_text = "a text file or folder to measure on instead of the run's own text; all of it, unless --split is given"
    evaluate.add_argument("--data", type=Path, metavar="PATH", help=help_text)
    help_text = "also write the bits of every character to a new .jsonl or .csv file"
    evaluate.add_argument("--per-character", type=Path, metavar="OUT", help=help_text)
    help_text = "also write the bits of every line to a new .jsonl or .csv file"
    evaluate.add_argument("--per-line", type=Path, metavar="OUT", help=help_text)
    help_text = "dynamic evaluation: the network learns from each segment once it is scored; nothing is written"
    evaluate.add_argument("--dynamic", action="store_true", help=help_text)
    help_text = "with --dynamic: how fast it learns (default: 0.0005)"
    evaluate.add_argument("--dynamic-rate", type=_non_negative, metavar="X", help=help_text)
    help_text = "with --dynamic: stretches of the text that are read side by side, faster and worse (default: 1)"
    evaluate.add_argument("--dynamic-lanes", type=_positive_int, metavar="N", help=help_text)
    evaluate.add_argument("--json", action="store_true", help="print one line of JSON")
    add_device(evaluate)

    sample = add("sample", "Write text.")
    add_checkpoint(sample)
    help_text = "what the text continues; for one that begins with an @, type two"
    sample.add_argument("--prompt", default="", metavar="TEXT|@FILE", help=help_text)
    help_text = (
        "end before the first of these in what is written; may be given several times; \\n, \\t, \\r and \\\\ are line "
        "end, tab, carriage return and backslash"
    )
    sample.add_argument("--stop", type=_unescaped, action="append", default=[], metavar="TEXT", help=help_text)
    sample.add_argument(
        "--length", type=_positive_int, default=500, metavar="N", help="symbols to write at most (default: 500)"
    )
    sample.add_argument(
        "--temperature",
        type=_non_negative,
        default=1.0,
        metavar="X",
        help="below 1 safer, above 1 wilder; 0 takes the likeliest symbol each time (default: 1)",
    )
    sample.add_argument("--top-k", type=_positive_int, metavar="K", help="choose among the K likeliest symbols")
    sample.add_argument(
        "--top-p", type=_share, metavar="P", help="choose among the likeliest symbols that hold probability P"
    )
    sample.add_argument(
        "--seed", type=_seed, default=0, metavar="S", help="another one writes another text (default: 0)"
    )
    sample.add_argument("--num-samples", type=_positive_int, default=1, metavar="M", help="texts to write (default: 1)")
    add_device(sample)

    inspect = add("inspect", "Show blocks, connections, FLOPs and memory without training.")
    inspect.add_argument("target", type=Path, metavar="CONFIG|RUN|CHECKPOINT", help="what to look at")
    add_overrides(inspect)
    inspect.add_argument("--json", action="store_true", help="print one line of JSON")

    validate = add("validate", "Check YAML files.")
    validate.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")

    sweep = add("sweep", "Train every combination of settings in a grid, or search it; again to go on.")
    sweep.add_argument("sweep", type=Path, metavar="SWEEP.yaml")
    add_overrides(sweep)
    sweep.add_argument("--dry-run", action="store_true", help="list the runs with FLOPs and times; start none")
    sweep.add_argument(
        "--shard",
        type=_part,
        default=(1, 1),
        metavar="I/N",
        help="only part I of N, from 1/N to N/N: together they are the whole sweep",
    )

    add("methods", "List the methods with their settings.")

    compare = add("compare", "Compare finished runs: a table, and with --out plots and a report.")
    help_text = "run folders, folders with runs below them, or results.json files of earlier comparisons"
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=help_text)
    help_text = "folder for results.csv, results.json, plots and report.html"
    compare.add_argument("--out", type=Path, metavar="DIR", help=help_text)
    help_text = "also measure each run's last checkpoint on its test text; results.json keeps the numbers"
    compare.add_argument("--test", action="store_true", help=help_text)
    compare.add_argument("--markdown", action="store_true", help="print the table as Markdown")

    between = add(
        "interpolate", "Measure the straight line between two runs' matrices, and what connections they share."
    )
    help_text = "two runs or checkpoints of one shape on one text; of more, every two are joined"
    between.add_argument("runs", type=Path, nargs="+", metavar="RUN|CHECKPOINT", help=help_text)
    help_text = "where to measure, at even distances, both ends included (default: 11)"
    between.add_argument("--points", type=_points, default=11, metavar="N", help=help_text)
    help_text = "measure on the first N symbols of the validation text only"
    between.add_argument("--symbols", type=_points, metavar="N", help=help_text)
    between.add_argument("--out", type=Path, metavar="PNG", help="also draw the lines into a new picture")
    between.add_argument("--json", action="store_true", help="print one line of JSON")
    add_device(between)

    export = add("export", "Write a model for use elsewhere.")
    add_checkpoint(export)
    export.add_argument("out", type=Path, metavar="OUT")
    export.add_argument(
        "--format",
        choices=list(FORMATS),
        required=True,
        help="; ".join(f"{name}: {format.about}" for name, format in FORMATS.items()),
    )
    rounding = [name for name, format in FORMATS.items() if format.rounds]
    help_text = f"how {' and '.join(rounding)} stores weights (default: fp16)"
    export.add_argument("--weights", choices=get_args(Rounding), help=help_text)
    return parser


def _number(kind: Callable[[str], float], valid: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with contextlib.suppress(ValueError, OverflowError):
            if valid(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    # isdecimal alone would let through the digits of every script.
    if (
        index.isascii()
        and count.isascii()
        and index.isdecimal()
        and count.isdecimal()
        and 1 <= int(index) <= int(count)
    ):
        return int(index), int(count)
    raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 1/4, from 1/N to N/N")


ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        if match[1] in ESCAPES:
            return ESCAPES[match[1]]
        raise argparse.ArgumentTypeError(f"{text!r}: {match[0]} stands for nothing; write a backslash as two")

    if not text:
        raise argparse.ArgumentTypeError("an empty text would end everything before it begins")
    return re.sub(r"\\(.?)", character, text, flags=re.DOTALL)


_positive_int = _number(int, lambda n: n > 0, "a whole number above 0")
_points = _number(int, lambda n: n > 2, "a whole number above 2")
_seed = _number(int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1")
_non_negative = _number(float, lambda x: 0 <= x < float("inf"), "a number from 0 on")
_share = _number(float, lambda x: 0 < x <= 1, "a number above 0 and up to 1")
