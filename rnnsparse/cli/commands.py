"""What each command does. Each takes the parsed arguments and returns an exit code.

Importing torch takes seconds, so each command imports what it needs: `--help` and typing errors answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnsparse import files
from rnnsparse.errors import RunFailed, UserError, one_line
from rnnsparse.streams import lasting_output

if TYPE_CHECKING:
    from rnnsparse.config import RunConfig
    from rnnsparse.data.tokenizer import Tokenizer
    from rnnsparse.evaluation import Evaluation, Record
    from rnnsparse.sparsity.method import Method
    from rnnsparse.training.measured_text import MeasuredText
    from rnnsparse.training.step.distributed import Ranks

LONGEST_PROMPT = 1 << 20  # bytes of a file


def train(arguments: argparse.Namespace) -> int:
    from rnnsparse.training.run.interrupts import interrupts_for_all_signals
    from rnnsparse.training.run.lifeline import follow_parent

    follow_parent()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lasting_output("stdout"))
        if "LOCAL_RANK" not in os.environ:  # torchrun ends ranks by SIGTERM, also those that wait for others
            stack.enter_context(interrupts_for_all_signals())
        from rnnsparse.training.step.distributed import join_ranks

        return _train_on(stack.enter_context(join_ranks()), arguments)


def _train_on(ranks: Ranks, arguments: argparse.Namespace) -> int:
    from rnnsparse.config import load_config
    from rnnsparse.recipes import lottery
    from rnnsparse.training.run.interrupts import Interrupted
    from rnnsparse.training.trainer import Trainer

    def tell(text: str) -> None:
        print(text, flush=True)

    config = load_config(arguments.config, arguments.overrides)
    if ranks.is_first:
        _warn(config.warnings)
    try:
        with writer_errors_told_once():
            if config.method.recipe:
                if ranks.several:
                    raise UserError(
                        f"sparsity.method: {config.method.name} is a recipe of several runs, for one process alone; "
                        "start it without torchrun"
                    )
                summary = lottery.train(config, resume=arguments.resume, tell=tell)
            else:
                trainer = Trainer(config, resume=arguments.resume, ranks=ranks)
                if ranks.is_first:
                    tell("\n".join(trainer.banner()))
                    if trainer.step >= config.training.steps:
                        tell(
                            f"finished before: all {trainer.step:,} steps are taken; to train longer, raise "
                            "training.steps with --resume"
                        )
                summary = trainer.train()
    except Interrupted as stopped:
        if ranks.is_first:
            again = [*_program(), "train", str(arguments.config), *arguments.overrides, "--resume"]
            print(f"{stopped}; continue with\n  {' '.join(map(_quoted, again))}", file=sys.stderr)
        return 130
    if not ranks.is_first:
        return 0
    print(closing_lines(summary, config))
    return 0


def closing_lines(summary: dict[str, Any], config: RunConfig) -> str:
    """Return what a run says at its end."""
    rate, steps, planned = summary["characters_per_second"], summary["steps"], config.training.steps
    # A method that prunes gradually may then be far from the sparsity that it was to end with.
    early = f"stopped early, after step {steps} of {planned}, with a sparsity of {summary['sparsity']:.4f}\n"
    return (
        f"{early if steps < planned else ''}"
        f"validation: {summary['bits_per_character']:.4f} bits per character, {summary['bits_per_byte']:.4f} per byte, "
        f"best {summary['best_bits_per_character']:.4f}\n"
        f"training: {summary['characters_seen']:,} characters in {summary['seconds']:,.0f} s"
        + (f", {rate:,.0f} per second" if rate else "")
        + f"\n{config.folder / 'summary.json'}"
    )


@contextlib.contextmanager
def writer_errors_told_once() -> Iterator[None]:
    """Keep the traceback of TensorBoard's writer thread off the terminal: it raises the same OSError in ours."""
    previous = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if not issubclass(raised.exc_type, OSError):
            previous(raised)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous


def evaluate(arguments: argparse.Namespace) -> int:
    from rnnsparse import code_lengths

    wanted = {"--per-character": arguments.per_character, "--per-line": arguments.per_line}
    outs = {key: path for key, path in wanted.items() if path is not None}
    for key, path in outs.items():
        code_lengths.require_writable(path, key)
    if len({os.path.abspath(path) for path in outs.values()}) < len(outs):
        raise UserError(f"--per-line: {arguments.per_line}: is that of --per-character as well; choose another name")
    # On the disk that must have room for what comes of them.
    with code_lengths.Recorder(next(iter(outs.values())).parent) if outs else contextlib.nullcontext() as recorder:
        record = recorder.record if recorder else None
        step, text, result = _measure(arguments.checkpoint, arguments.device, arguments.split, arguments.data, record)
        _tell(arguments, step, text, result)
        for key, path in outs.items():
            assert recorder is not None
            write = code_lengths.write_characters if key == "--per-character" else code_lengths.write_lines
            write(path, text.text, text.tokenizer, recorder)
            if not arguments.json:
                print(path)
    return 0


def _tell(arguments: argparse.Namespace, step: int, text: MeasuredText, result: Evaluation) -> None:
    """Print what was measured."""
    report = {
        "split": text.split or text.path,
        # Without --data it is the text of the run, without --split it stands above.
        **({"text": text.path} if arguments.data and arguments.split else {}),
        "bits_per_character": result.bits_per_character,
        "bits_per_byte": result.bits_per_byte,
        "characters": result.characters,
        "bytes": result.bytes,
        "nats": result.nats,
        "seconds": result.seconds,
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(
            f"{text.name}: {result.bits_per_character:.4f} bits per character, {result.bits_per_byte:.4f} per byte, "
            f"{result.characters:,} characters in {result.seconds:.1f} s (step {step})"
        )


def _measure(
    checkpoint: Path, device: str, split: str | None = None, path: Path | None = None, record: Record | None = None
) -> tuple[int, MeasuredText, Evaluation]:
    """Return the step of a checkpoint, a text, and how well it predicts it."""
    from rnnsparse.evaluation import evaluate
    from rnnsparse.training.assembly import choose_device, restore
    from rnnsparse.training.measured_text import other_text, own_text

    restored = restore(checkpoint, choose_device(device))
    measured = own_text(restored, split or "test") if path is None else other_text(restored, str(path), split)
    text = measured.text
    _warn([measured.warning] if measured.warning else [])
    if text.unknown_bytes:
        share = f"{text.unknown_bytes:,} of {text.bytes:,} bytes"
        _warn(
            [
                f"{checkpoint}: {measured.name}: {share} are characters that its training text has not; they all count "
                "as one symbol, which is easier to predict than they are"
            ]
        )
    result = evaluate(restored.model, text, restored.tokenizer, restored.config.evaluation, record=record)
    if not math.isfinite(result.nats):
        raise RunFailed(f"{checkpoint}: its predictions are not numbers: the training diverged; use another")
    return restored.step, measured, result


def sample(arguments: argparse.Namespace) -> int:
    from rnnsparse.sampling import Sampler, SamplingConfig
    from rnnsparse.training.assembly import choose_device, restore

    restored = restore(arguments.checkpoint, choose_device(arguments.device))
    prompt = _prompt(arguments.prompt)
    config = SamplingConfig(
        length=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
    )
    _warn(_never_written(arguments.stop, restored.tokenizer))
    sampler = Sampler(restored.model, restored.tokenizer, prompt)
    for number in range(arguments.num_samples):
        if number:
            print(f"\n--- sample {number + 1} ---")
        print(prompt, end="")
        for text in sampler.stream(config, number):
            print(text, end="", flush=True)
        print()
    return 0


def _never_written(stop: Sequence[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a line for each stop string that a model cannot write."""
    for text in stop:
        try:
            tokenizer.encode(text)
        except UserError as error:
            yield f"--stop {text!r}: never comes: {error}"


def _prompt(text: str) -> str:
    """Return the prompt itself, or the text of the file that `@FILE` names; `@@` stands for an @ that names none."""
    if not text.startswith("@"):
        return text
    if text.startswith("@@"):
        return text[1:]
    try:
        return files.read(Path(text[1:]), LONGEST_PROMPT, pipes=True).decode("utf-8")
    except OSError as error:
        raise UserError(
            f"--prompt: {text[1:]}: cannot be read: {error.strerror}; name a text file, or, for a prompt that begins "
            "with an @, type two: @@"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt: {text[1:]}: is not UTF-8 at byte {error.start}; convert it") from None


def inspect(arguments: argparse.Namespace) -> int:
    from rnnsparse.config import load_config
    from rnnsparse.training.assembly import (
        choose_device,
        named_device,
        named_teacher,
        require_execution,
        restore,
        vocabulary_size,
    )
    from rnnsparse.training.inspection import inspect, table
    from rnnsparse.training.run.stretches import planned_in
    from rnnsparse.training.start import final_model

    device = choose_device("cpu")
    if arguments.target.is_dir():
        if arguments.overrides:
            raise UserError(f"{arguments.overrides[0]}: overrides apply to a configuration, not to {arguments.target}")
        restored = restore(arguments.target, device)
        config, model, budgets = restored.config, restored.model, restored.budgets
        planned = planned_in(restored.saved, config)
    else:
        config = load_config(arguments.target, arguments.overrides)
        planned = config.training.steps
        _warn(config.warnings)
        model, budgets = final_model(config, vocabulary_size(config.data), device)
        require_execution(config, named_device(config.training))
    try:
        teacher = named_teacher(config, device)
    except UserError as error:
        teacher = None
        _warn([f"{error}; training FLOPs are shown without it"])
    report = inspect(config, model, budgets, teacher, device=named_device(config.training), planned=planned)
    print(json.dumps(report) if arguments.json else "\n".join(table(report)))
    return 0


def validate(arguments: argparse.Namespace) -> int:
    from rnnsparse.config import load_config
    from rnnsparse.recipes.sweep import is_sweep, load_sweep
    from rnnsparse.training.assembly import NOWHERE, choose_device, empty_model, require_execution

    failed = 0
    for path in arguments.configs:
        try:
            if is_sweep(path):
                print(f"{path}: valid, {len(load_sweep(path).runs)} runs")
                continue
            config = load_config(path)
            _warn([f"{path}: {warning}" for warning in config.warnings])
            # Budgets depend on the vocabulary only where characters are symbols; 256 stands for any there.
            empty_model(config, 256, NOWHERE)
            require_execution(config, choose_device("cpu"))
        except UserError as error:
            named = str(error).startswith(f"{path}: ")
            print(f"rnnsparse: {one_line(error if named else f'{path}: {error}')}", file=sys.stderr)
            failed += 1
        else:
            print(f"{path}: valid")
    return 2 if failed else 0


def sweep(arguments: argparse.Namespace) -> int:
    from rnnsparse.training.run.interrupts import interrupts_for_all_signals

    if arguments.dry_run:
        return _sweep(arguments)
    with lasting_output("stdout"), interrupts_for_all_signals():
        return _sweep(arguments)


def _sweep(arguments: argparse.Namespace) -> int:
    from rnnsparse.recipes.sweep import load_sweep, shard
    from rnnsparse.recipes.sweep_run import run_sweep
    from rnnsparse.recipes.sweep_status import plan

    sweep = load_sweep(arguments.sweep, arguments.overrides)
    runs = shard(sweep.runs, *arguments.shard)
    if arguments.dry_run:
        print("\n".join(plan(runs, sweep.pack)))
        return 0
    outcome = run_sweep(sweep, runs, say=lambda line: print(line, flush=True))
    told = [f"{len(outcome.done)} of {len(runs)} runs are done, in {sweep.folder}"]
    told += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    told += [f"{len(outcome.elsewhere)} run elsewhere"] if outcome.elsewhere else []
    print("; ".join(told))
    for name, reason in outcome.failed.items():
        print(f"rnnsparse: {name}: {one_line(reason)}", file=sys.stderr)
    if outcome.interrupted:
        print("rnnsparse: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 1 if outcome.failed else 0


def methods(arguments: argparse.Namespace) -> int:
    import rnnsparse.sparsity.methods  # noqa: F401  (registers them)
    from rnnsparse.config import describe_fields
    from rnnsparse.sparsity.method import METHODS

    for name, method in sorted(METHODS.items()):
        print(name)
        print(f"    {(method.__doc__ or '').splitlines()[0]}" + (f" ({method.paper})" if method.paper else ""))
        print(f"    dense memory: {_dense_memory(method)}")
        for field, default, help_text in describe_fields(method):
            shown = default if isinstance(default, str) else json.dumps(default)
            print(f"    {field}: {shown}  # {help_text}")
    return 0


def _dense_memory(method: type[Method]) -> str:
    """Return what a method needs of the size of whole matrices, with its settings as they are by default."""
    from rnnsparse.sparsity.method import Method

    needs = []
    if method.stays_dense:
        needs.append("all connections throughout")
    elif method.recipe:
        needs.append("all connections in the first run")
    elif method.initial_connections is not Method.initial_connections:
        needs.append("up to all connections at first")
    if method.dense_gradient == "at updates":
        needs.append("gradients at updates, in sparse execution some rows at a time")
    elif method.dense_gradient == "always":
        needs.append("gradients and their averages at every step")
    return "; ".join(needs) or "none"


def export(arguments: argparse.Namespace) -> int:
    from rnnsparse.export import export_safetensors, export_torch
    from rnnsparse.training.assembly import choose_device, restore

    restored = restore(arguments.checkpoint, choose_device("cpu"))
    if arguments.format == "torch":
        export_torch(restored.model, restored.tokenizer, arguments.out)
    else:
        export_safetensors(restored.model, restored.tokenizer.to_json(), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    from rnnsparse.reporting.compare import ABOUT_TABLE, as_markdown, as_text, group, table
    from rnnsparse.reporting.reading import read_runs

    def test(run: Path) -> float:
        return _measure(run, "auto")[-1].bits_per_character

    runs, left_out = read_runs(arguments.runs, test if arguments.test else None)
    for line in left_out:
        print(f"rnnsparse: {one_line(line)}", file=sys.stderr)
    if not runs:
        raise UserError(f"{arguments.runs[0]}: no run here is finished; compare them when they are")
    settings = group(runs)
    rows = table(settings)
    print(as_markdown(rows) if arguments.markdown else f"{as_text(rows)}\n\n{ABOUT_TABLE}")
    if arguments.out:
        from rnnsparse.reporting.comparison_folder import write  # brings the drawing, which takes a second

        for path in write(arguments.out, settings, left_out):
            print(path, file=sys.stderr if arguments.markdown else sys.stdout)
    return 0


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"rnnsparse: warning: {one_line(warning)}", file=sys.stderr)


def _program() -> list[str]:
    """Return how this program was called: by torchrun, as the script, or as a module."""
    if ranks := os.environ.get("LOCAL_WORLD_SIZE"):
        return ["torchrun", f"--nproc-per-node={ranks}", "-m", "rnnsparse"]
    called = Path(sys.argv[0])
    return [str(called)] if called.stem == "rnnsparse" else [sys.executable, "-m", "rnnsparse"]


def _quoted(word: str) -> str:
    return (
        word
        if word and all(c.isalnum() or c in "._-/=,+:@" for c in word)
        else "'" + word.replace("'", "'\"'\"'") + "'"
    )
