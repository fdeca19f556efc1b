"""A YAML file and `section.key=value` overrides -> one validated RunConfig.

Every section is the small dataclass of the component that uses it. A field's type carries its range and its help text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import pydantic
from annotated_types import Ge, Lt
from typing_extensions import Doc

import rnnsparse.sparsity.methods  # noqa: F401  (registers them)
from rnnsparse import layered, yaml12
from rnnsparse.data.corpus import DataConfig
from rnnsparse.errors import UserError, suggest
from rnnsparse.evaluation import EvaluationConfig
from rnnsparse.nn.language_model import ModelConfig
from rnnsparse.paths import PathName
from rnnsparse.sparsity.allocation import BudgetConfig
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.method import METHODS, Method, Moment, method_class
from rnnsparse.steps import extended
from rnnsparse.training.settings import CheckpointConfig, LoggingConfig, StartConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the run is called, where it goes, and its seed."""

    name: Annotated[str | None, Doc("name of the run; the configuration's file name by default")] = None
    dir: Annotated[PathName | None, Doc("folder of the run; checkpoints/NAME by default")] = None
    seed: Annotated[int, Ge(0), Lt(2**63), Doc("decides topology, initial values and everything random")] = 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run.

    `method` and `training` are what runs: their steps are those that were written, times `training.multiplier`.
    """

    run: RunSettings
    data: DataConfig
    model: ModelConfig
    budget: BudgetConfig
    written_method: Method
    start: StartConfig
    written_training: TrainingConfig
    evaluation: EvaluationConfig
    logging: LoggingConfig
    checkpoint: CheckpointConfig
    # Settings that are valid but do nothing here, each as one line; they are no part of the run.
    warnings: tuple[str, ...] = field(default=(), compare=False)
    # What was typed, by section.key, and not only written in a file; no part of the run either.
    typed: frozenset[str] = field(default=frozenset(), compare=False)
    method: Method = field(init=False, compare=False)
    training: TrainingConfig = field(init=False, compare=False)

    def __post_init__(self) -> None:
        multiplier = self.written_training.multiplier
        object.__setattr__(self, "method", extended(self.written_method, multiplier))
        object.__setattr__(self, "training", extended(self.written_training, multiplier))

    @property
    def folder(self) -> Path:
        if self.run.dir is None:
            raise ValueError("run.dir: is null; name a folder (parse_config gives every run one)")
        return Path(self.run.dir)

    def to_dict(self) -> dict[str, Any]:
        """Return the sections as plain data, as written; `parse_config` of it gives an equal configuration."""
        written = {
            "sparsity": {"method": self.method.name} | _plain(self.budget) | _plain(self.written_method),
            "training": _plain(self.written_training),
        }
        return {name: written[name] if name in written else _plain(getattr(self, name)) for name in SECTIONS}

    def to_yaml(self) -> str:
        return yaml12.write(self.to_dict())


SECTIONS: dict[str, type] = {
    "run": RunSettings,
    "data": DataConfig,
    "model": ModelConfig,
    "sparsity": BudgetConfig,
    "start": StartConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "logging": LoggingConfig,
    "checkpoint": CheckpointConfig,
}

# Settings that are any text, and whether they may be null.
_TEXTS = {
    f"{section}.{name}": hint is not str
    for section, cls in SECTIONS.items()
    for name, hint in get_type_hints(cls).items()
    if hint in (str, str | None)
}


def is_text(key: str) -> bool:
    """Return whether a setting is any text, of which a number is the one that is written."""
    return key in _TEXTS


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and what it builds on (`base`), apply overrides such as "training.steps=100", and validate.

    Raises:
        UserError: anything wrong in the file or the overrides; one line.
    """
    try:
        layers = layered.read(path, pipes=True, is_text=is_text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; name a YAML file; `rnnsparse new FILE` writes one"
        ) from None
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; a configuration is a YAML file") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    data = {} if layers.data is None else layers.data
    inherited = {key: str(file) for key, file in layers.origins.items() if file != path}
    return parse_config(data, str(path), overrides, name=path.stem, inherited=inherited)


def parse_config(
    data: Any, source: str, overrides: Sequence[str] = (), name: str = "run", inherited: Mapping[str, str] | None = None
) -> RunConfig:
    """Validate plain data as a configuration.

    Args:
        source: what errors call it.
        name: the run's default name.
        inherited: sections and settings that stand in other files, on which this one builds, and what to call these.
    """
    inherited = inherited or {}
    if not isinstance(data, dict):
        raise UserError(
            f"{source}: is not a configuration: its top level must be sections such as `model:` and `training:`"
        )
    if "grid" in data:
        raise UserError(f"{source}: is a sweep, which makes many runs; start it with `rnnsparse sweep`")
    for key, value in data.items():
        file = inherited.get(key, source)
        if key not in SECTIONS:
            raise UserError(f"{file}: {key}: unknown section{suggest(key, SECTIONS)}; there are {', '.join(SECTIONS)}")
        if value is not None and not isinstance(value, dict):
            raise UserError(
                f"{file}: {key}: must hold keys, such as `{_fields(SECTIONS[key])[0]}: ...`, but is {_shown(value)}"
            )
    sections: dict[str, dict[str, Any]] = {section: dict(data.get(section) or {}) for section in SECTIONS}
    for override in overrides:
        _apply(sections, override)
    warnings: list[str] = []
    try:
        typed_keys = frozenset(parse_override(override)[0] for override in overrides)
        quiet = {key.removeprefix("sparsity.") for key in inherited.keys() - typed_keys if key.startswith("sparsity.")}
        budget, method = _sparsity(sections.pop("sparsity"), warnings, quiet)
        parsed: dict[str, Any] = {
            section: _build(SECTIONS[section], values, section) for section, values in sections.items()
        }
        run: RunSettings = parsed["run"]
        run = dataclasses.replace(run, name=run.name or name)
        parsed["run"] = dataclasses.replace(run, dir=run.dir or f"checkpoints/{run.name}")
        model: ModelConfig = parsed["model"]
        if model.dropout > 0 and model.num_layers == 1:
            warnings.append("model.dropout has no effect with one layer: it acts between recurrent layers")
        if not model.readout_dims and model.readout_activation != ModelConfig.readout_activation:
            warnings.append("model.readout_activation has no effect without model.readout_dims")
        warnings += _idle(parsed["training"], method)
        _require_momenta(method, parsed["training"])
        if parsed["data"].vocabulary is not None and parsed["data"].tokenizer == "byte":
            warnings.append("data.vocabulary has no effect with data.tokenizer=byte")
        if budget.basis_from is not None and budget.basis != "svd":
            warnings.append(f"sparsity.basis_from has no effect with sparsity.basis={budget.basis}")
        parsed |= {"budget": budget, "written_method": method, "written_training": parsed.pop("training")}
        config = RunConfig(warnings=tuple(warnings), typed=typed_keys, **parsed)
        if config.method.recipe:
            _require_a_plain_run(config)
    except UserError as error:
        raise UserError(_blamed(str(error), source, overrides, inherited)) from None
    if max(config.checkpoint.keep, default=0) > config.training.steps:
        warnings.append(f"checkpoint.keep has no effect beyond the last step, {config.training.steps}")
    warnings += _never_updated(config.method, config.training.steps)
    if config.training.warmup >= config.training.steps > 0:
        warnings.append(f"training.warmup: the {config.training.steps} steps end before the whole learning rate")
    return dataclasses.replace(config, warnings=tuple(warnings))


def _blamed(error: str, source: str, overrides: Sequence[str], inherited: Mapping[str, str]) -> str:
    """Return what is wrong with a setting behind the file that it stands in, if it was not typed."""

    def is_of(key: str) -> bool:
        # Of sparsity.basis, an error about sparsity.basis_from is none.
        return re.match(rf"{re.escape(key)}(?!\w)", error) is not None

    if any(is_of(parse_override(override)[0]) for override in overrides):
        return error
    files = {key: file for key, file in inherited.items() if is_of(key)}
    return f"{files[max(files, key=len)] if files else source}: {error}"


def _require_a_plain_run(config: RunConfig) -> None:
    """Refuse settings that a recipe has to choose itself for the runs that it makes.

    Raises:
        UserError: there is one.
    """
    chosen = {
        "start.topology": config.start.topology,
        "start.weights": config.start.weights,
        "start.rewind": config.start.rewind,
        "training.teacher": config.training.teacher,
        "training.early_stopping": config.training.early_stopping,
    }
    for key, value in chosen.items():
        if value is not None:
            raise UserError(
                f"{key}: {_shown(value)}: method {config.method.name} trains several runs, all to their end, "
                f"and decides itself what they start and learn from; set it to null, or use another sparsity.method"
            )


def _idle(training: TrainingConfig, method: Method) -> Iterator[str]:
    """Yield a line for each training setting that does nothing."""
    if training.teacher is None and method.name != "kd_ticket":
        for key in ("teacher_weight", "teacher_temperature"):
            if getattr(training, key) != getattr(TrainingConfig, key):
                yield f"training.{key} has no effect without training.teacher"
    for key, optimizer in (("momentum", "sgd"), ("nonmonotone", "sntasgd")):
        if training.optimizer != optimizer and getattr(training, key) != getattr(TrainingConfig, key):
            yield f"training.{key} has no effect with training.optimizer={training.optimizer}"
    if training.lr_schedule == "constant" and training.final_learning_rate != TrainingConfig.final_learning_rate:
        yield "training.final_learning_rate has no effect with training.lr_schedule=constant"
    for key in ("betas", "epsilon"):
        if training.optimizer not in ("adam", "adamw") and getattr(training, key) != getattr(TrainingConfig, key):
            yield f"training.{key} has no effect with training.optimizer={training.optimizer}"
    if training.connection_steps and training.optimizer not in ("adam", "adamw"):
        yield f"training.connection_steps has no effect with training.optimizer={training.optimizer}"
    if training.connection_warmup and not training.connection_steps:
        yield "training.connection_warmup has no effect without training.connection_steps=true"


def _never_updated(method: Method, steps: int) -> Iterator[str]:
    """Yield a line for what keeps a method that is made of updates from all of them."""
    if not isinstance(method, DropGrow) or method.makes_up_updates:
        return
    if not method.updates_at(Moment(method.interval, steps, seed=0)):
        yield (
            f"sparsity.interval: {method.interval}: no update comes before sparsity.stop, step "
            f"{method.stop * steps:g}; the connections stay those of the start"
        )
    elif method.drop_fraction == 0:
        yield "sparsity.drop_fraction: 0: updates replace nothing; the connections stay those of the start"
    if (getattr(method, "window", None) or 0) > method.interval:
        yield f"sparsity.window has no effect beyond sparsity.interval, {method.interval}"


def _require_momenta(method: Method, training: TrainingConfig) -> None:
    without = training.optimizer == "sntasgd" or (training.optimizer == "sgd" and training.momentum == 0)
    if method.needs_momenta and without:
        raise UserError(
            f"sparsity.redistribute: momentum: training.optimizer={training.optimizer} keeps none as it is set; use "
            "adam, adamw, or sgd with training.momentum above 0, or redistribute by gradient or weight"
        )


def parse_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of one `section.key=value`.

    Raises:
        UserError: it is none, there is no such section, or YAML reads something else than what is written.
    """
    path, equals, text = override.partition("=")
    section, _, key = path.partition(".")
    if not equals or not key:
        raise UserError(f"{override}: an override looks like training.steps=1000")
    if section not in SECTIONS:
        raise UserError(
            f"{override}: unknown section {section!r}{suggest(section, SECTIONS)}; there are {', '.join(SECTIONS)}"
        )
    quoted = f"quote the value: {shlex.quote(f'{path}={yaml12.quoted(text)}')}"
    try:
        value = yaml12.read(text)
    except ValueError as error:
        way_out = f"; {quoted}" if is_text(path) else ""
        raise UserError(f"{override}: the value is not YAML: {error}{way_out}") from None
    if yaml12.ends_in_comment(text):
        raise UserError(f"{override}: to YAML, a comment begins at the #; leave it out, or {quoted}")
    if is_text(path):
        try:
            value = yaml12.read_text(text, null=_TEXTS[path])
        except ValueError as error:
            raise UserError(f"{override}: {error}, and not the text that was typed; {quoted}") from None
    return path, value


def _apply(sections: dict[str, dict[str, Any]], override: str) -> None:
    """Set one `section.key=value`; everything behind `sparsity.overrides.` is a block name, dots included."""
    path, value = parse_override(override)
    section, _, key = path.partition(".")
    if section == "sparsity" and key.startswith("overrides."):
        blocks = sections[section].setdefault("overrides", {})
        if isinstance(blocks, dict):
            sections[section]["overrides"] = blocks | {key.removeprefix("overrides."): value}
    else:
        sections[section][key] = value


def _sparsity(values: dict[str, Any], warnings: list[str], quiet: Set[str]) -> tuple[BudgetConfig, Method]:
    """Split the section into what any method has and what this one has.

    Keys that are `quiet` are those of another file, made for its own method; they may have no effect here.
    """
    name = values.pop("method", "static")
    if not isinstance(name, str):
        raise UserError(
            f"sparsity.method: {_shown(name)} is not the name of a method; there are {', '.join(sorted(METHODS))}"
        )
    method = method_class(name)
    known = [*_fields(BudgetConfig), *_fields(method)]
    foreign = {key for other in METHODS.values() for key in _fields(other)}.difference(known)
    # One file serves for comparing methods: what another method would use is not an error here.
    warnings += [f"sparsity.{key} has no effect with method {name}" for key in values if key in foreign - quiet]
    values = {key: value for key, value in values.items() if key not in foreign}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(
            f"sparsity.{unknown[0]}: unknown key{suggest(unknown[0], ['method', *known, *foreign])}; method {name} has "
            f"{', '.join(known)}"
        )
    if name == "dense" and values.get("sparsity") and "sparsity" not in quiet:
        warnings.append("sparsity.sparsity has no effect with method dense")
    own = {key: values.pop(key) for key in _fields(method) if key in values}
    return _build(BudgetConfig, values, "sparsity"), _build(method, own, "sparsity")


C = TypeVar("C")


def _build(cls: type[C], values: Mapping[str, Any], section: str) -> C:
    """Validate the values of one section against the types of a dataclass, strictly, and make it."""
    names = _fields(cls)
    for key in values:
        if key not in names:
            raise UserError(f"{section}.{key}: unknown key{suggest(key, names)}; there are {', '.join(names)}")
    return cls(**{key: _validated(cls, key, value, f"{section}.{key}") for key, value in values.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@functools.cache
def _adapter(cls: type, name: str) -> pydantic.TypeAdapter[Any]:
    # Kept: making one takes longer than all the rest of reading a key, and a sweep reads each key for every run.
    return pydantic.TypeAdapter(_hints(cls)[name], config=pydantic.ConfigDict(allow_inf_nan=False))


def _validated(cls: type, name: str, value: Any, key: str) -> Any:
    adapter = _adapter(cls, name)
    try:
        # YAML has the data model of JSON; in JSON mode lists may become tuples, while "5" still is no number.
        return adapter.validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f".{part}" for part in first["loc"] if not str(part).startswith("function"))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("list_type", "tuple_type"):
            reason = f"must be a list, such as [{_shown(first['input'])}]"
        if first["type"] == "string_type":
            reason = f"must be text; put it in quotes, such as {yaml12.quoted(_shown(first['input']))}"
        raise UserError(
            f"{key}{inner}: {_shown(first['input'])}: {reason[0].lower()}{reason[1:]} ({help_text(_hints(cls)[name])})"
        ) from None


def help_text(hint: Any) -> str:
    """Return the Doc of an annotated type, or ""."""
    return next((part.documentation for part in get_args(hint) if isinstance(part, Doc)), "")


def _fields(cls: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init]


def _plain(component: Any) -> dict[str, Any]:
    """Return a dataclass's settings as plain data."""
    values = {name: getattr(component, name) for name in _fields(component)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def describe_fields(cls: type) -> list[tuple[str, Any, str]]:
    """Return (name, default, help) of each setting of a component's dataclass."""
    hints = _hints(cls)
    rows = []
    for f in dataclasses.fields(cls):
        if f.init:
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            rows.append((f.name, default, help_text(hints[f.name])))
    return rows
