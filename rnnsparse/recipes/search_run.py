"""Running a search: each rung is a sweep of its own, and the best of it are trained anew, longer, on the next.

Anew, and not on from their checkpoints: the decay of the learning rate and the end of topology updates are shares of a
run's length, so a run that is cut off at a fraction of them is no measure of what that length can do. Steps and warm-up
are scaled, so that the schedule of every rung is complete; what a run counts in single steps otherwise, such as the
interval between updates, stays, and with it what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rnnsparse import __version__, files
from rnnsparse.config import RunConfig, load_config
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.recipes.search import Rung, Search
from rnnsparse.recipes.sweep import Run, Sweep, overrides_of, placed, shard
from rnnsparse.recipes.sweep_run import Outcome, run_sweep, typed_for
from rnnsparse.recipes.sweep_status import Estimator, Fingerprints, VocabularySizes, aligned, status
from rnnsparse.training.build import vocabulary_size
from rnnsparse.training.run.record import write_json
from rnnsparse.training.speed import Speeds, steps_in

RESULTS, SPEEDS, FAILURES = "search.json", "speeds.jsonl", "failures.jsonl"
Part = tuple[int, int]


@dataclass(frozen=True)
class Finished:
    """A run of a rung and its summary."""

    run: Run
    summary: dict[str, Any]

    @property
    def bits(self) -> float:
        bits: float = self.summary["bits_per_character"]
        return bits


@dataclass(frozen=True)
class Standing:
    """How far a rung is: what has finished, best first, what has failed and why, and the trials that are to come."""

    finished: list[Finished]
    failed: dict[str, str]
    to_come: list[Run]


def run_search(sweep: Sweep, part: Part, say: Callable[[str], None]) -> Outcome:
    """Train the rungs of a search, one after the other; go on where one was interrupted.

    A rung is decided when all its trials have finished or failed, those of other parts too. One whose loss or gradients
    are no numbers, as with a learning rate that is too high, is out, and stays so. Whatever else keeps a trial from its
    end, such as a signal or a full disk, keeps the next rung from beginning.

    Args:
        part: train the trials of this part only (index from 1, count).
        say: gets one line per event, and at the end the table of the last rung.

    Raises:
        UserError: a text or the device is not there, or a trial whose speed is measured cannot be trained.
        RunFailed: no trial of a rung has finished.
    """
    search = _search(sweep)
    outcome, ladder, trials = Outcome(), _Ladder(sweep), list(sweep.runs)
    decided: list[Standing] = []
    for rung in search.ladder():
        say(f"rung {rung.number} of {search.rungs}: {len(trials)} trials, {_length(search, rung)} each")
        failed = ladder.failures(rung)
        own = shard(trials, *part)
        runs = [ladder.timed(rung, trial, say) for trial in own if trial.name not in failed]
        for trial in [trial for trial in own if trial.name in failed]:
            say(f"out before   {trial.name}: {failed[trial.name]}")
        result = run_sweep(replace(sweep, folder=ladder.folder(rung)), runs, say, ladder.fingerprints)
        outcome.done += result.done
        outcome.elsewhere += result.elsewhere
        ladder.take_out(rung, result)
        outcome.failed |= result.failed
        outcome.interrupted = result.interrupted
        if outcome.failed or outcome.interrupted:
            return outcome
        standing = ladder.standing(rung, trials)
        if standing.to_come:
            say(
                f"rung {rung.number} is not decided: {len(standing.to_come)} of its {len(trials)} trials are trained "
                "by others, or still to be; when they are done, the same command goes on"
            )
            return outcome
        if not standing.finished:
            raise RunFailed(
                f"{ladder.folder(rung)}: no trial of rung {rung.number} has finished; see {sweep.folder / FAILURES}"
            )
        decided.append(standing)
        trials = ladder.survivors(rung, standing, trials)
    path = sweep.folder / RESULTS
    write_json(path, _results(sweep, ladder, decided))
    for line in [*_table(decided[-1]), f"all rungs, with what repeats each run: {path}"]:
        say(line)
    return outcome


class _Ladder:
    """The rungs of a search, as they are in its folder."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._search = sweep, _search(sweep)
        self.speeds, self.fingerprints = Speeds(sweep.folder / SPEEDS), Fingerprints()

    def folder(self, rung: Rung) -> Path:
        return self._sweep.folder / f"rung_{rung.number}" if self._search.rungs > 1 else self._sweep.folder

    def timed(self, rung: Rung, trial: Run, say: Callable[[str], None]) -> Run:
        """Return a trial as it is trained on a rung; measure its speed if that decides its steps.

        Raises:
            UserError: it cannot be trained.
        """
        if self._search.minutes is not None and self.speeds.known(trial.config) is None:
            try:
                seconds = self.speeds.of(trial.config)
            except UserError as error:
                raise UserError(f"{self._sweep.path}: run {trial.name}: {error}") from None
            say(f"measured     {trial.name}: {seconds:.3g} seconds of processor time per step")
        run = self.known(rung, trial)
        assert run is not None
        return run

    def known(self, rung: Rung, trial: Run) -> Run | None:
        """Return the same, or None if its speed is not measured."""
        steps = self._steps(rung, trial.config)
        if steps is None:
            return None
        settings: dict[str, Any] = {**placed(self.folder(rung), trial.name), "training.steps": steps}
        if warmup := trial.config.written_training.warmup:
            settings["training.warmup"] = max(1, round(warmup * rung.share))
        overrides = (*trial.overrides, *overrides_of(settings))
        return Run(trial.name, overrides, load_config(self._sweep.base, overrides))

    def _steps(self, rung: Rung, config: RunConfig) -> int | None:
        if self._search.minutes is None:
            return max(1, round(config.written_training.steps * rung.share))
        seconds = self.speeds.known(config)
        return None if seconds is None else steps_in(self._search.minutes * rung.share, seconds)

    def standing(self, rung: Rung, trials: Sequence[Run]) -> Standing:
        finished, failed, to_come = [], {}, []
        out = self.failures(rung)
        for trial in trials:
            run = self.known(rung, trial)
            if run and (summary := status(run, self.fingerprints).summary):
                finished.append(Finished(run, summary))
            elif trial.name in out:
                failed[trial.name] = out[trial.name]
            else:
                to_come.append(trial)
        return Standing(sorted(finished, key=lambda one: one.bits), failed, to_come)

    def survivors(self, rung: Rung, standing: Standing, trials: Sequence[Run]) -> list[Run]:
        """Return which of the trials of a decided rung go on to the next, in the order in which they were drawn."""
        number = self._search.trials // (self._search.halving or 1) ** rung.number
        best = {one.run.name for one in standing.finished[:number]}
        return [trial for trial in trials if trial.name in best]

    # ---- trials that have failed

    def failures(self, rung: Rung) -> dict[str, str]:
        """Return why trials of a rung are out, by name."""
        found = [one for one in files.records(self._sweep.folder / FAILURES) if one.get("rung") == rung.number]
        return {str(one.get("run")): str(one.get("reason")) for one in found}

    def take_out(self, rung: Rung, result: Outcome) -> None:
        """Record, and take from what has failed, the runs whose training has lost its numbers."""
        for name in sorted(result.lost):
            record = {"rung": rung.number, "run": name, "reason": result.failed.pop(name)}
            files.append_record(self._sweep.folder / FAILURES, record)


def _search(sweep: Sweep) -> Search:
    assert sweep.search is not None
    return sweep.search


def _length(search: Search, rung: Rung) -> str:
    if search.minutes is not None:
        return f"{search.minutes * rung.share:.3g} core minutes"
    return "training.steps" if rung.share == 1 else f"{rung.share:.3g} of training.steps"


# ---- what it tells


def _table(standing: Standing) -> list[str]:
    """Return the finished runs of a rung as lines, best first."""
    rows = [["bits per character", "steps", "characters", "connections", "seconds", "run"]]
    for one in standing.finished:
        s = one.summary
        counts = [f"{s[key]:,}" for key in ("steps", "characters_seen", "connections")]
        rows.append([f"{one.bits:.4f}", *counts, f"{s['seconds']:.1f}", one.run.name])
    return aligned(rows, left=[5])


def _results(sweep: Sweep, ladder: _Ladder, decided: Sequence[Standing]) -> dict[str, Any]:
    """Return what the search came to, rung by rung, with all that makes its runs again: base and overrides."""
    search = _search(sweep)
    rungs = []
    for rung, standing in zip(search.ladder(), decided, strict=True):
        rungs.append(
            {
                "rung": rung.number,
                "minutes": None if search.minutes is None else search.minutes * rung.share,
                "runs": [_result(one, ladder) for one in standing.finished],
                "failed": standing.failed,
            }
        )
    return {
        "sweep": str(sweep.path),
        "search": asdict(search),
        "rnnsparse": __version__,
        "torch": torch.__version__,
        "base": load_config(sweep.base).to_dict(),
        "rungs": rungs,
    }


def _result(one: Finished, ladder: _Ladder) -> dict[str, Any]:
    told = ("bits_per_character", "bits_per_byte", "steps", "characters_seen", "connections", "seconds", "seed", "text")
    return {
        "run": one.run.name,
        "folder": str(one.run.config.folder),
        **{key: one.summary[key] for key in told},
        "seconds_per_step": ladder.speeds.known(one.run.config),
        "overrides": typed_for(one.run),
    }


def search_plan(sweep: Sweep, part: Part) -> list[str]:
    """Return a table of what a search does and has done, as lines; nothing is trained, measured or written.

    Raises:
        UserError: a text is not there, whose characters are the symbols of a run.
    """
    search, ladder, trials = _search(sweep), _Ladder(sweep), list(sweep.runs)
    lines, columns = [], []
    for rung in search.ladder():
        in_all = "" if search.minutes is None else f", {search.minutes * rung.share * rung.trials:.3g} in all"
        lines.append(f"rung {rung.number}: {rung.trials} trials, {_length(search, rung)} each{in_all}")
        columns.append(_states(ladder, rung, trials))
        standing = ladder.standing(rung, trials)
        trials = [] if standing.to_come else ladder.survivors(rung, standing, trials)
    own = shard(sweep.runs, *part)
    estimator = Estimator(VocabularySizes(own, vocabulary_size))
    rows = [["trial", "connections", *(f"rung {rung.number}" for rung in search.ladder())]]
    rows += [[t.name, _connections(estimator, t), *(column.get(t.name, "") for column in columns)] for t in own]
    return [*lines, *aligned(rows, left=[0])]


def _states(ladder: _Ladder, rung: Rung, trials: Sequence[Run]) -> Mapping[str, str]:
    """Return, by name, the bits per character of each trial of a rung, or what else there is to say of it."""
    failed, found = ladder.failures(rung), {}
    for trial in trials:
        run = ladder.known(rung, trial)
        state = status(run, ladder.fingerprints) if run else None
        if state and state.summary:
            found[trial.name] = f"{state.summary['bits_per_character']:.4f}"
        else:
            found[trial.name] = "failed" if trial.name in failed else state.state if state else "new"
    return found


def _connections(estimator: Estimator, trial: Run) -> str:
    try:
        return f"{estimator.cost(trial.config).connections:,}"
    except UserError:
        return "?"
