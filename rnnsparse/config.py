"""A YAML file and `section.key=value` overrides -> one validated RunConfig.

What each setting is and means, its dataclass says (`settings`, and the methods of `sparsity` for their own).
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import rnnsparse.sparsity.methods  # noqa: F401  (registers them)
from rnnsparse import layered, yaml12
from rnnsparse.errors import UserError, suggest
from rnnsparse.settings.data import DataConfig
from rnnsparse.settings.marks import ChosenByRecipe
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.run import CheckpointConfig, EvaluationConfig, LoggingConfig, RunSettings
from rnnsparse.settings.setting import extended, made_of, marked, plain, settings_of, shown
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.settings.training import StartConfig, TrainingConfig
from rnnsparse.sparsity.method import METHODS, Method, method_class

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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
    # What is valid but does nothing here, each as one line, and which settings these are; they are no part of the run.
    warnings: tuple[str, ...] = field(default=(), compare=False)
    idle: frozenset[str] = field(default=frozenset(), compare=False)
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

    def parts(self, *, extended: bool = False) -> list[tuple[str, DataclassInstance]]:
        """Return all dataclasses of settings, each with its section, as written or as they are by the multiplier."""
        training, method = (self.training, self.method) if extended else (self.written_training, self.written_method)
        own: dict[str, list[DataclassInstance]] = {"sparsity": [self.budget, method], "training": [training]}
        return [(name, part) for name in SECTIONS for part in own.get(name) or [getattr(self, name)]]

    def marked(self, mark: type) -> dict[str, Any]:
        """Return, by section.key, what is written for the settings whose types have a mark."""
        return {
            f"{section}.{name}": getattr(part, name)
            for section, part in self.parts()
            for name in marked(type(part), mark)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the sections as plain data, as written; `parse_config` of it gives an equal configuration."""
        sections: dict[str, Any] = {name: {} for name in SECTIONS} | {"sparsity": {"method": self.method.name}}
        for section, part in self.parts():
            sections[section] |= plain(part)
        return sections

    def settings(self, *without: type) -> dict[str, Any]:
        """Return the same by section.key, but for settings whose types have one of these marks."""
        left_out = keys(*without)
        flat = {f"{section}.{name}": value for section, of in self.to_dict().items() for name, value in of.items()}
        return {key: value for key, value in flat.items() if key not in left_out}

    def to_yaml(self) -> str:
        return self._yaml

    @cached_property
    def _yaml(self) -> str:
        return yaml12.write(self.to_dict())  # made once: every checkpoint holds it


SECTIONS: dict[str, type[DataclassInstance]] = {
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


def keys(*marks: type) -> set[str]:
    """Return, by section.key, the settings whose types have one of these marks, of all methods."""
    parts = [*SECTIONS.items(), *(("sparsity", method) for method in METHODS.values())]
    return {f"{section}.{name}" for section, cls in parts for name in marked(cls, *marks)}


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
            example = next(iter(settings_of(SECTIONS[key])))
            raise UserError(f"{file}: {key}: must hold keys, such as `{example}: ...`, but is {shown(value)}")
    sections: dict[str, dict[str, Any]] = {section: dict(data.get(section) or {}) for section in SECTIONS}
    for override in overrides:
        _apply(sections, override)
    idle: dict[str, str] = {}
    try:
        typed_keys = frozenset(parse_override(override)[0] for override in overrides)
        quiet = {key.removeprefix("sparsity.") for key in inherited.keys() - typed_keys if key.startswith("sparsity.")}
        budget, method = _sparsity(sections.pop("sparsity"), idle, quiet)
        parsed: dict[str, Any] = {
            section: made_of(SECTIONS[section], values, section) for section, values in sections.items()
        }
        run: RunSettings = parsed["run"]
        run = dataclasses.replace(run, name=run.name or name)
        parsed["run"] = dataclasses.replace(run, dir=run.dir or f"checkpoints/{run.name}")
        parsed |= {"budget": budget, "written_method": method, "written_training": parsed.pop("training")}
        config = RunConfig(typed=typed_keys, **parsed)
        _require_momenta(config)
        if config.method.recipe:
            _require_a_plain_run(config)
    except UserError as error:
        raise UserError(_blamed(str(error), source, overrides, inherited)) from None
    idle |= _idle(config)
    warnings = [f"{key} has no effect {reason}" for key, reason in idle.items()]
    warnings += config.method.warnings(config.training.steps)
    if config.training.warmup >= config.training.steps > 0:
        warnings.append(f"training.warmup: the {config.training.steps} steps end before the whole learning rate")
    return dataclasses.replace(config, warnings=tuple(warnings), idle=frozenset(idle))


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
    for key, value in config.marked(ChosenByRecipe).items():
        if value is not None:
            raise UserError(
                f"{key}: {shown(value)}: method {config.method.name} trains several runs, all to their end, "
                f"and decides itself what they start and learn from; set it to null, or use another sparsity.method"
            )


def _idle(config: RunConfig) -> dict[str, str]:
    """Return, by section.key, why a setting does nothing beside the others."""
    settings, values = {}, {}
    for section, part in config.parts(extended=True):
        for name, setting in settings_of(type(part)).items():
            key = f"{section}.{name}"
            settings[key], values[key] = setting, getattr(part, name)
    values |= dict.fromkeys(config.method.provides, True)
    return {key: reason for key, setting in settings.items() if (reason := setting.why_idle(key, values))}


def _require_momenta(config: RunConfig) -> None:
    training = config.training
    without = training.optimizer == "sntasgd" or (training.optimizer == "sgd" and training.momentum == 0)
    if config.method.needs_momenta and without:
        raise UserError(
            f"sparsity.redistribute: momentum: training.optimizer={training.optimizer} keeps none as it is set; use "
            "adam, adamw, or sgd with training.momentum above 0, or redistribute by gradient or weight"
        )
    if config.method.needs_second_moments and training.optimizer not in ("adam", "adamw"):
        raise UserError(
            f"sparsity.drop_score: saliency: training.optimizer={training.optimizer} keeps no second moments; use adam "
            "or adamw, or drop by magnitude"
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
    """Set one `section.key=value`; behind `sparsity.overrides.` and `.block_rows.` all is a group, dots included."""
    path, value = parse_override(override)
    section, _, key = path.partition(".")
    by_group, dot, group = key.partition(".")
    if section == "sparsity" and dot and by_group in ("overrides", "block_rows"):
        groups = sections[section].get(by_group)
        sections[section][by_group] = (groups if isinstance(groups, dict) else {}) | {group: value}
    else:
        sections[section][key] = value


def _sparsity(values: dict[str, Any], idle: dict[str, str], quiet: Set[str]) -> tuple[BudgetConfig, Method]:
    """Split the section into what any method has and what this one has.

    Keys that are `quiet` are those of another file, made for its own method; they may have no effect here.
    """
    name = values.pop("method", "static")
    if not isinstance(name, str):
        raise UserError(
            f"sparsity.method: {shown(name)} is not the name of a method; there are {', '.join(sorted(METHODS))}"
        )
    method = method_class(name)
    known = [*settings_of(BudgetConfig), *settings_of(method)]
    foreign = {key for other in METHODS.values() for key in settings_of(other)}.difference(known)
    # One file serves for comparing methods: what another method would use is not an error here.
    idle |= {f"sparsity.{key}": f"with method {name}" for key in values if key in foreign - quiet}
    values = {key: value for key, value in values.items() if key not in foreign}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(
            f"sparsity.{unknown[0]}: unknown key{suggest(unknown[0], ['method', *known, *foreign])}; method {name} has "
            f"{', '.join(known)}"
        )
    if name == "dense" and values.get("sparsity") and "sparsity" not in quiet:
        idle["sparsity.sparsity"] = "with method dense"
    own = {key: values.pop(key) for key in settings_of(method) if key in values}
    return made_of(BudgetConfig, values, "sparsity"), made_of(method, own, "sparsity")
