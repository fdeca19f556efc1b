from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse import yaml12
from rnnsparse.config import SECTIONS, RunConfig, load_config, parse_config, parse_override
from rnnsparse.errors import UserError, one_line
from rnnsparse.settings.marks import Steps
from rnnsparse.settings.setting import marked, settings_of
from rnnsparse.sparsity.method import METHODS
from rnnsparse.training.build import empty_model
from rnnsparse.training.device import choose_device

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")


def config_of(text: str, *overrides: str) -> RunConfig:
    return parse_config(yaml12.read(text) or {}, "c.yaml", overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        config_of(text, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_empty_file_is_a_configuration_named_after_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("# nothing\n")
    config = load_config(path)
    assert (config.run.name, config.run.dir, config.folder) == ("tiny", "checkpoints/tiny", Path("checkpoints/tiny"))
    assert config.method.name == "static"
    assert config.warnings == ()


def test_the_name_decides_the_folder_unless_there_is_one() -> None:
    assert config_of("run: {name: a}").folder == Path("checkpoints/a")
    assert config_of("run: {name: a, dir: b/c}").folder == Path("b/c")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_without_warnings(path: Path) -> None:
    config = load_config(path)
    assert config.warnings == ()
    empty_model(config, 256, choose_device("cpu"))


def test_there_are_shipped_configurations() -> None:
    assert ROOT / "configs" / "quickstart.yaml" in SHIPPED


# ---- values


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("training: {learning_rate: 1e-3}", "training", "learning_rate", 0.001),
        ("training: {learning_rate: 1}", "training", "learning_rate", 1.0),
        ("training: {grad_clip: null}", "training", "grad_clip", None),
        ("training: {grad_clip: }", "training", "grad_clip", None),
        ("training: {betas: [0.5, 0.75]}", "training", "betas", (0.5, 0.75)),
        ("model: {readout_dims: [256, 128]}", "model", "readout_dims", (256, 128)),
        ("model: {readout_dims: []}", "model", "readout_dims", ()),
        ("run: {seed: 9223372036854775807}", "run", "seed", 2**63 - 1),
        ("run: {name: null}", "run", "name", "run"),
        ("run: {name: no}", "run", "name", "no"),
        ("logging: {pictures: null}", "logging", "pictures", None),
        ("evaluation: {symbols: 2}", "evaluation", "symbols", 2),
        ("data: {source: text, path: ä b.txt}", "data", "path", "ä b.txt"),
        ("sparsity: {sparsity: 0}", "budget", "sparsity", 0.0),
        ("sparsity: {dense: [embedding, 'rnn.*']}", "budget", "dense", ("embedding", "rnn.*")),
        ("sparsity: {overrides: {rnn.0.recurrent.n: 1}}", "budget", "overrides", {"rnn.0.recurrent.n": 1.0}),
        ("sparsity: {block_rows: 8}", "budget", "block_rows", 8),
        ("sparsity: {block_rows: {rnn.0: 8, output: 4}}", "budget", "block_rows", {"rnn.0": 8, "output": 4}),
        ("sparsity: {method: rigl, interval: 7}", "method", "interval", 7),
        ("sparsity: {method: snfs, momentum: 0.5}", "method", "momentum", 0.5),
    ],
)
def test_values_arrive_with_their_type(text: str, section: str, key: str, value: Any) -> None:
    found = getattr(getattr(config_of(text), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        *(("run", "dir"), ("data", "path"), ("data", "cache"), ("sparsity", "basis_from"), ("training", "teacher")),
        *(("start", "topology"), ("start", "weights"), ("start", "rewind")),
    ],
)
def test_the_home_folder_is_expanded_wherever_a_path_is_a_setting(
    section: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    for written, expanded in (
        ("~/a", "/home/x/a"),
        ("b/~", "b/~"),
        ("~nobody-of-that-name/a", "~nobody-of-that-name/a"),
    ):
        config = config_of("data: {source: text, path: x}", f"{section}.{key}={written}")
        assert config.to_dict()[section][key] == expanded


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_may_be_empty(section: str) -> None:
    assert config_of(f"{section}:") == config_of("")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "trainig: {steps: 1}",
            r"c\.yaml: trainig: unknown section \(did you mean 'training'\?\); there are run, data",
        ),
        ("null: {steps: 1}", r"c\.yaml: null: unknown section; there are run"),
        ("training: 5", r"c\.yaml: training: must hold keys, such as `steps: \.\.\.`, but is 5"),
        ("training: [steps]", r'training: must hold keys, .* but is \["steps"\]'),
        ("steps", "its top level must be sections"),
        ("[training]", "its top level must be sections"),
        ("5", "its top level must be sections"),
        (
            "training: {stepz: 1}",
            r"training\.stepz: unknown key \(did you mean 'steps'\?\); there are steps, multiplier",
        ),
        ("run: {sed: 1}", r"run\.sed: unknown key \(did you mean 'seed'\?\)"),
        ("data: {sorce: text}", r"data\.sorce: unknown key \(did you mean 'source'\?\)"),
        ("model: {hiden_size: 1}", r"model\.hiden_size: unknown key \(did you mean 'hidden_size'\?\)"),
        ("evaluation: {lane: 1}", r"evaluation\.lane: unknown key \(did you mean 'lanes'\?\)"),
        ("logging: {picture: 1}", r"logging\.picture: unknown key \(did you mean 'pictures'\?\)"),
        ("checkpoint: {intervall: 1}", r"checkpoint\.intervall: unknown key \(did you mean 'interval'\?\)"),
        (
            "sparsity: {spasity: 0.5}",
            r"sparsity\.spasity: unknown key \(did you mean 'sparsity'\?\); method static has",
        ),
        ("sparsity: {method: rigl, drop_fracton: 1}", r"sparsity\.drop_fracton: .* \(did you mean 'drop_fraction'\?\)"),
        ("training: {zzzz: 1}", r"training\.zzzz: unknown key; there are"),
        (
            "sparsity: {method: riggl}",
            r"sparsity\.method: no method is called 'riggl' \(did you mean 'rigl'\?\); there are",
        ),
        ("sparsity: {method: null}", r"sparsity\.method: null is not the name of a method; there are cht, dense"),
        ("sparsity: {method: 5}", r"sparsity\.method: 5 is not the name"),
        ("sparsity: {method: [rigl]}", r'sparsity\.method: \["rigl"\] is not the name'),
        ("training: {steps: '5'}", r'training\.steps: "5": input should be a valid integer \(optimizer steps'),
        ("training: {steps: 1.5}", r"training\.steps: 1\.5: .*integer"),
        ("training: {steps: 1e3}", r"training\.steps: 1000\.0: .*integer"),
        ("training: {steps: true}", r"training\.steps: true: .*integer"),
        ("training: {steps: null}", r"training\.steps: null: .*integer"),
        ("training: {steps: [5]}", r"training\.steps: \[5\]: .*integer"),
        ("training: {steps: 0}", r"training\.steps: 0: input should be greater than or equal to 1"),
        ("training: {learning_rate: '1e-3'}", r'training\.learning_rate: "1e-3": .*number'),
        ("training: {learning_rate: true}", r"training\.learning_rate: true: .*number"),
        ("training: {learning_rate: 0}", r"training\.learning_rate: 0: .*greater than 0"),
        ("training: {learning_rate: 1e999}", r"training\.learning_rate: Infinity: .*finite"),
        ("training: {learning_rate: !!float nan}", r"training\.learning_rate: NaN: .*finite"),
        ("training: {learning_rate: .inf}", r'training\.learning_rate: "\.inf": .*number'),
        ("training: {lr_schedule: step}", r"training\.lr_schedule: \"step\": .*'constant' or 'cosine'"),
        ("training: {grad_clip: -1}", r"training\.grad_clip: -1: .*greater than 0"),
        ("training: {betas: [0.9]}", r"training\.betas\.1: \[0\.9\]: field required"),
        ("training: {betas: [0.9, 1]}", r"training\.betas\.1: 1: .*less than 1"),
        ("training: {betas: [0.9, 0.9, 0.9]}", r"training\.betas: .*at most 2"),
        ("training: {weight_decay: -1e-5}", r"training\.weight_decay: -1e-05"),
        ("logging: {tensorboard: yes}", r'logging\.tensorboard: "yes": .*boolean'),
        ("logging: {tensorboard: 1}", r"logging\.tensorboard: 1: .*boolean"),
        ("logging: {sample_prompt: 5}", r"logging\.sample_prompt: 5: must be text; put it in quotes, such as \"5\""),
        ("model: {cell: rnnn}", r"model\.cell: \"rnnn\": .*'gru', 'lstm' or 'rnn'"),
        ("model: {dropout: 1}", r"model\.dropout: 1: .*less than 1"),
        ("model: {readout_dims: [8, 0]}", r"model\.readout_dims\.1: 0: .*greater than 0"),
        ("model: {readout_dims: 8}", r"model\.readout_dims: 8: must be a list, such as \[8\]"),
        ("model: {tie_embeddings: true}", r"c\.yaml: model\.tie_embeddings: .*hidden_size \(256\) must equal"),
        ("data: {source: text}", r"c\.yaml: data\.path: missing"),
        ("data: {path: x}", r"c\.yaml: data\.path=x: data\.source=python_docs reads no files"),
        ("data: {source: wikitext}", r"data\.source: \"wikitext\": .*'wikitext103', 'wikitext2'"),
        ("run: {seed: -1}", r"run\.seed: -1: .*greater than or equal to 0"),
        ("run: {seed: 9223372036854775808}", r"run\.seed: 9223372036854775808: .*less than"),
        ("run: {name: 5}", r"run\.name: 5: must be text; put it in quotes, such as \"5\""),
        ("evaluation: {symbols: 1}", r"evaluation\.symbols: 1: .*greater than or equal to 2"),
        ("checkpoint: {interval: 0}", r"checkpoint\.interval: 0"),
        ("sparsity: {sparsity: 1}", r"sparsity\.sparsity: 1: .*less than 1"),
        ("sparsity: {sparsity: 75%}", r'sparsity\.sparsity: "75%": .*number'),
        ("sparsity: {dense: embedding}", r"sparsity\.dense: \"embedding\": must be a list"),
        ("sparsity: {dense: [5]}", r"sparsity\.dense\.0: 5: must be text; put it in quotes, such as \"5\""),
        ("sparsity: {overrides: [embedding]}", r"sparsity\.overrides: .*object"),
        ("sparsity: {block_rows: 3}", r"sparsity\.block_rows: 3: must be 1, 2, 4, 8 or 16, or such numbers by name"),
        ("sparsity: {block_rows: true}", r"sparsity\.block_rows: true: must be 1, 2, 4, 8 or 16"),
        ("sparsity: {block_rows: {rnn: 2.0}}", r"sparsity\.block_rows: .*must be 1, 2, 4, 8 or 16"),
        ("sparsity: {overrides: {embedding: 1.1}}", r"sparsity\.overrides\.embedding: 1\.1: .*less than or equal to 1"),
        ("sparsity: {overrides: {embedding: null}}", r"sparsity\.overrides\.embedding: null"),
        ("sparsity: {method: rigl, interval: 0}", r"sparsity\.interval: 0"),
        ("sparsity: {method: rigl, skip_optimizer_step: 1}", r"sparsity\.skip_optimizer_step: 1: .*boolean"),
        ("training: {steps: " + "[" * 300 + "]" * 300 + "}", r"training\.steps: "),
    ],
)
def test_a_wrong_section_key_type_or_value_is_refused_with_the_full_key(text: str, reason: str) -> None:
    message = refusal(text)
    assert message.startswith("c.yaml: ")
    assert re.search(reason, message), message


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_in_every_section(section: str) -> None:
    assert f"{section}.colour: unknown key" in refusal(f"{section}: {{colour: red}}")


def test_a_long_value_is_shortened_in_the_error() -> None:
    assert len(refusal(f"training: {{steps: {'x' * 10_000}}}")) < 250


# ---- methods


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_configuration_with_its_own_fields(name: str) -> None:
    config = config_of(f"sparsity: {{method: {name}}}")
    assert type(config.method) is METHODS[name]
    written = config.to_dict()["sparsity"]
    assert written["method"] == name
    assert set(settings_of(METHODS[name])) <= set(written)


def test_every_setting_has_a_help_text() -> None:
    for cls in [*SECTIONS.values(), *METHODS.values()]:
        for name, setting in settings_of(cls).items():
            assert setting.help, f"{cls.__name__}.{name}"


def test_fields_of_other_methods_only_warn_so_that_one_file_serves_all() -> None:
    config = config_of("sparsity: {method: static, interval: 10, momentum: 0.5, sparsity: 0.5}")
    assert config.warnings == (
        "sparsity.interval has no effect with method static",
        "sparsity.momentum has no effect with method static",
    )
    assert config_of("sparsity: {method: snfs, interval: 10, momentum: 0.5}").warnings == ()


def test_settings_without_effect_warn() -> None:
    assert config_of("model: {dropout: 0.5}").warnings == (
        "model.dropout has no effect with one layer: it acts between recurrent layers",
    )
    assert config_of("model: {dropout: 0.5, num_layers: 2}").warnings == ()
    assert config_of("model: {readout_activation: tanh}").warnings == (
        "model.readout_activation has no effect without model.readout_dims",
    )
    assert config_of(
        "training: {teacher_weight: 0.5, teacher_temperature: 2, momentum: 0.5, nonmonotone: 3}"
    ).warnings == (
        "training.momentum has no effect with training.optimizer=adam",
        "training.nonmonotone has no effect with training.optimizer=adam",
        "training.teacher_weight has no effect without training.teacher",
        "training.teacher_temperature has no effect without training.teacher",
    )
    assert config_of("sparsity: {method: kd_ticket, sparsity: 0.5}\ntraining: {teacher_weight: 0.5}").warnings == ()
    assert config_of("sparsity: {method: rigl, interval: 50}\ntraining: {steps: 40, warmup: 40}").warnings == (
        "sparsity.interval: 50: no update comes before sparsity.stop, step 30; the connections stay those of the start",
        "training.warmup: the 40 steps end before the whole learning rate",
    )


def test_settings_of_samples_and_candidates_that_are_never_drawn_warn() -> None:
    of_samples = "sample_prompt: the, sample_length: 9"
    for without in ("tensorboard: false", "pictures: null"):
        key = f"logging.{without.partition(':')[0]}{'=true' if 'false' in without else ''}"
        assert config_of(f"logging: {{{of_samples}, {without}}}").warnings == (
            f"logging.sample_length has no effect without {key}",
            f"logging.sample_prompt has no effect without {key}",
        )
    assert config_of(f"logging: {{{of_samples}}}").warnings == ()
    grabo = "sparsity: {method: gse, candidates: grabo"
    assert config_of(f"{grabo}}}").warnings == ()
    idle = "sparsity.candidates has no effect"
    assert config_of(f"{grabo}, pool: null}}").warnings == (f"{idle} without sparsity.pool",)
    assert config_of(f"{grabo}, basis: dct}}").warnings == (f"{idle} with sparsity.basis=dct",)
    assert config_of("sparsity: {method: srigl, spared: [rnn.0], ablation: 0}").warnings == (
        "sparsity.spared has no effect without sparsity.ablation",
    )


def test_a_method_that_never_updates_warns() -> None:
    def warnings(sparsity: str) -> tuple[str, ...]:
        return config_of(f"sparsity: {{{sparsity}}}\ntraining: {{steps: 800}}").warnings

    for never in ("interval: 600", "interval: 700, stop: 0.8", "stop: 0"):  # the last step before `stop` is too early
        (warning,) = warnings(f"method: rigl, {never}")
        assert "no update comes before sparsity.stop, step " in warning
    (warning,) = warnings("method: set, drop_fraction: 0")
    assert warning.startswith("sparsity.drop_fraction: 0: updates replace nothing")
    assert warnings("method: rigl, interval: 599") == ()
    for method in ("prune", "granet"):  # which have an update at `stop` in any case
        assert warnings(f"method: {method}, interval: 900") == ()
    (warning,) = warnings("method: scout, window: 101")
    assert warning == "sparsity.window has no effect beyond sparsity.interval, 100"
    assert warnings("method: scout, window: 100") == ()


def test_settings_of_another_schedule_or_optimizer_warn() -> None:
    settings = "{lr_schedule: constant, final_learning_rate: 0.2, optimizer: sgd, betas: [0.8, 0.9], epsilon: 1e-6}"
    assert config_of(f"training: {settings}").warnings == (
        "training.final_learning_rate has no effect with training.lr_schedule=constant",
        "training.betas has no effect with training.optimizer=sgd",
        "training.epsilon has no effect with training.optimizer=sgd",
    )


def test_a_resolved_configuration_repeats_no_warning_of_defaults() -> None:
    config = config_of("sparsity: {method: rigl, sparsity: 0.5}")
    assert parse_config(config.to_dict(), "c.yaml").warnings == ()


def test_what_was_typed_is_not_blamed_on_the_file() -> None:
    with pytest.raises(UserError, match=r"^training\.stpes: unknown key \(did you mean 'steps'\?\)"):
        parse_config({}, "c.yaml", ["training.stpes=10"])
    with pytest.raises(UserError, match=r"^c\.yaml: training\.stpes: unknown key"):
        parse_config({"training": {"stpes": 10}}, "c.yaml", ["training.steps=10"])
    with pytest.raises(UserError, match=r"^sparsity\.metod: unknown key \(did you mean 'method'\?\)"):
        parse_config({}, "c.yaml", ["sparsity.metod=set"])
    for file, typed in (
        ({"sparsity": {"basis_from": ["x"]}}, "sparsity.basis=svd"),
        ({"training": {"teacher_weight": 2}}, "training.teacher=run"),
    ):
        with pytest.raises(UserError, match=r"^c\.yaml: "):
            parse_config(file, "c.yaml", [typed])
    with pytest.raises(UserError, match=r"^training\.betas\.1: 2"):
        parse_config({}, "c.yaml", ["training.betas=[0.9, 2]"])


def test_a_sweep_is_no_configuration_and_says_what_runs_it() -> None:
    with pytest.raises(UserError, match=r"c\.yaml: is a sweep, .* `rnnsparse sweep`"):
        parse_config({"config": "a.yaml", "grid": {"run.seed": [1]}}, "c.yaml")


def test_a_single_value_in_the_place_of_a_list_is_shown_as_one() -> None:
    with pytest.raises(UserError, match=r"model\.readout_dims: 32: must be a list, such as \[32\]"):
        parse_config({"model": {"readout_dims": 32}}, "c.yaml")


def test_step_counts_per_connection_are_for_adam_and_their_warmup_needs_them() -> None:
    assert config_of("training: {connection_steps: true, connection_warmup: 5}").warnings == ()
    assert config_of("training: {optimizer: sgd, connection_steps: true}").warnings == (
        "training.connection_steps has no effect with training.optimizer=sgd",
    )
    assert config_of("training: {connection_warmup: 5}").warnings == (
        "training.connection_warmup has no effect without training.connection_steps=true",
    )
    assert config_of("sparsity: {method: dense, sparsity: 0.5}").warnings == (
        "sparsity.sparsity has no effect with method dense",
    )


# ---- extended training


def test_extended_training_scales_the_steps_of_training_and_of_the_method_and_no_others() -> None:
    text = "training: {steps: 1000, warmup: 10}\nsparsity: {method: rigl, interval: 50}"
    plain, config = config_of(text), config_of(text, "training.multiplier=2.5")
    assert (config.training.steps, config.training.warmup, config.method.interval) == (2500, 25, 125)
    assert dataclasses.replace(config.training, steps=1000, warmup=10, multiplier=1.0) == plain.training
    assert dataclasses.replace(config.method, interval=50) == plain.method
    for section in ("evaluation", "logging", "checkpoint"):
        assert getattr(config, section) == getattr(plain, section)


def test_extended_training_is_written_as_it_was_asked_for() -> None:
    written = config_of("sparsity: {method: set, interval: 7}", "training.steps=10", "training.multiplier=3").to_dict()
    assert (written["training"]["steps"], written["training"]["multiplier"]) == (10, 3.0)
    assert written["sparsity"]["interval"] == 7


@pytest.mark.parametrize("multiplier", ["0", "-1", "1e7", "true", "2x", "null"])
def test_a_multiplier_is_a_positive_number(multiplier: str) -> None:
    assert "training.multiplier: " in refusal("", f"training.multiplier={multiplier}")


@pytest.mark.parametrize("cls", [*SECTIONS.values(), *METHODS.values()], ids=lambda cls: cls.__name__)
def test_what_extended_training_scales_is_what_counts_steps_of_training(cls: type) -> None:
    of_training = cls is SECTIONS["training"] or cls in METHODS.values()
    counts = [
        name
        for name, setting in settings_of(cls).items()
        if type(setting.default) in (int, type(None)) and re.search(r"\bsteps\b", setting.help) and of_training
    ]
    assert marked(cls, Steps) == counts


# ---- overrides


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=7", "training", "steps", 7),
        ("training.learning_rate=1e-3", "training", "learning_rate", 0.001),
        ("training.grad_clip=null", "training", "grad_clip", None),
        ("training.grad_clip=", "training", "grad_clip", None),
        ("training.betas=[0.5, 0.5]", "training", "betas", (0.5, 0.5)),
        ("run.name=a=b", "run", "name", "a=b"),
        ("run.name=no", "run", "name", "no"),
        ('run.name="5"', "run", "name", "5"),
        ("sparsity.method=set", "method", "name", "set"),
        ("sparsity.overrides.rnn.0.recurrent.n=0.5", "budget", "overrides", {"rnn.0.recurrent.n": 0.5, "output": 0.25}),
        ("sparsity.overrides.output=0.5", "budget", "overrides", {"output": 0.5}),
        ("sparsity.overrides.rnn.*.input=0.5", "budget", "overrides", {"rnn.*.input": 0.5, "output": 0.25}),
        ("sparsity.overrides={}", "budget", "overrides", {}),
        ("sparsity.block_rows.rnn.0.input=8", "budget", "block_rows", {"rnn.0.input": 8}),
        ("sparsity.dense=[embedding]", "budget", "dense", ("embedding",)),
    ],
)
def test_an_override_replaces_one_value(override: str, section: str, key: str, value: Any) -> None:
    text = "training: {steps: 5, grad_clip: 1}\nsparsity: {method: rigl, overrides: {output: 0.25}}"
    config = config_of(text, override)
    assert getattr(getattr(config, section), key) == value
    if section != "training":
        assert config.training.steps == 5


@pytest.mark.parametrize(
    ("value", "path"),
    [("a#1.txt", "a#1.txt"), ('"a #1.txt"', "a #1.txt"), ("'#1'", "#1"), ("|\n  a #1", "a #1"), ("", None)],
)
def test_a_hash_within_a_value_is_part_of_it(value: str, path: str | None) -> None:
    assert config_of("data: {source: wikitext2}", f"data.path={value}").data.path == path


@pytest.mark.parametrize(
    "text", ["1984", "0x1F", "1e5", "1_000", "007", "+5", "-.5", "true", "No", "2001-01-01", "a=b", "~x"]
)
@pytest.mark.parametrize("key", ["logging.sample_prompt", "data.cache", "run.name"])
def test_a_setting_that_is_text_takes_a_number_as_it_is_written(key: str, text: str, tmp_path: Path) -> None:
    section, _, name = key.partition(".")
    assert getattr(getattr(config_of("", f"{key}={text}"), section), name) == text
    (tmp_path / "c.yaml").write_text(f"{section}: {{{name}: {text}}}")
    assert getattr(getattr(load_config(tmp_path / "c.yaml"), section), name) == text


def test_null_is_null_where_that_is_allowed() -> None:
    for text in ("null", "~", "", " "):
        assert config_of("data: {cache: x}", f"data.cache={text}").data.cache is None
    assert re.search("to YAML this is null, and not the text", refusal("", "logging.sample_prompt=null"))


@pytest.mark.parametrize(
    ("value", "reads"),
    [
        ("ROMEO:", 'to YAML this is {"ROMEO": null}, and not the text that was typed'),
        ("Alice: x.txt", 'to YAML this is {"Alice": "x.txt"}'),
        ("The ", 'to YAML this is "The"'),
        (" The", 'to YAML this is "The"'),
        ("a\nb", 'to YAML this is "a b"'),
        ("- a", 'to YAML this is ["a"]'),
        ("&a b", 'to YAML this is "b"'),
        ("@home", "is not YAML: line 1, column 1"),
        ('"a" b', "is not YAML: line 1"),
        ("1984 ", "to YAML this is 1984"),
        ("Où  êtes\u00a0-vous ?  ", 'to YAML this is "Où'),
    ],
)
def test_what_yaml_would_change_in_a_text_is_refused_with_what_to_type(value: str, reads: str) -> None:
    with pytest.raises(UserError) as error:
        config_of("", f"logging.sample_prompt={value}")
    reason = one_line(error.value)
    assert reads in reason
    (typed,) = shlex.split(reason.partition("; quote the value: ")[2])
    assert config_of("", typed).logging.sample_prompt == value


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12))
def test_any_text_is_taken_as_it_was_typed_or_refused_with_what_to_type(text: str) -> None:
    try:
        _, value = parse_override(f"logging.sample_prompt={text}")
    except UserError as error:
        (typed,) = shlex.split(one_line(error).rpartition("quote the value: ")[2])
        assert parse_override(typed)[1] == text
    else:
        assert value == text or text.lstrip()[0] in "\"'|>!"


def test_a_file_whose_text_is_no_yaml_or_no_text_says_to_quote_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for value in ("Alice: x.txt", "@home", "*a.txt", "*.txt"):
        path.write_text(f"data:\n  cache: {value}\n")
        with pytest.raises(
            UserError, match=r"c\.yaml: line \d, .*; if that is a part of a text, put the text in quotes$"
        ):
            load_config(path)
    path.write_text("data:\n  cache:\n    ROMEO:\n")
    with pytest.raises(UserError, match=r'data\.cache: {"ROMEO": null}: must be text; put it in quotes, such as "'):
        load_config(path)


def test_overrides_also_reach_sections_that_the_file_leaves_out_or_empty() -> None:
    assert config_of("", "training.steps=3").training.steps == 3
    assert config_of("sparsity:", "sparsity.overrides.output=0.5").budget.overrides == {"output": 0.5}


def test_the_last_override_wins_and_the_data_given_stays_as_it_was() -> None:
    data = {"sparsity": {"overrides": {"output": 0.25}}, "training": {"steps": 1}}
    overrides = ["training.steps=2", "training.steps=3", "sparsity.overrides.embedding=0.5"]
    config = parse_config(data, "c.yaml", overrides)
    assert config.training.steps == 3
    assert config.budget.overrides == {"output": 0.25, "embedding": 0.5}
    assert data == {"sparsity": {"overrides": {"output": 0.25}}, "training": {"steps": 1}}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("steps=5", "an override looks like training.steps=1000"),
        ("training.steps", "an override looks like"),
        ("training=5", "an override looks like"),
        ("training.=5", "an override looks like"),
        ("=5", "an override looks like"),
        ("", "an override looks like"),
        ("trainin.steps=5", r"trainin\.steps=5: unknown section 'trainin' \(did you mean 'training'\?\)"),
        ("training.stepz=5", r"training\.stepz: unknown key \(did you mean 'steps'\?\)"),
        ("training.steps.x=5", r"training\.steps\.x: unknown key"),
        ("training.steps=five", r'training\.steps: "five"'),
        ("training.steps=[", "the value is not YAML: line 1"),
        ("training.steps={a: 1, a: 2}", "appears twice"),
        ("training.steps=&a [*a]", "aliases"),
        ("training.steps=\udcff", "the value is not YAML"),
        (
            "data.path=a #1.txt",
            r"""comment begins at the #; leave it out, or quote the value: 'data\.path="a #1\.txt"'$""",
        ),
        ("data.path=#1.txt", r"""'data\.path="#1\.txt"'$"""),
        ("training.steps=5 # five", "comment begins at the #"),
        ("sparsity.dense=[embedding] #, output]", "comment begins at the #"),
        ("sparsity.overrides.output=x", r'sparsity\.overrides\.output: "x"'),
        ("sparsity.overrides=5", r"sparsity\.overrides: 5: .*object"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override: str, reason: str) -> None:
    assert re.search(reason, refusal("training: {steps: 5}", override))


# ---- files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: \xff", "is not UTF-8 text; a configuration is a YAML file"),
        (b"a: \x00", "special characters are not allowed"),
        (b"training: {steps: 1\n", "line 2, column 1"),
        (b"training: {steps: 1}\ntraining: {steps: 2}\n", "line 2, column 1: key 'training' appears twice"),
        (b"training: {steps: 1, steps: 2}\n", "line 1, column 22: key 'steps' appears twice"),
        (b"a: &a [x]\nb: [*a, *a]\n", r"line 2, column 5: aliases \(\*name\) are not supported"),
        (b"training: " + b"[" * 20_000, "nested too deeply"),
        (b"training: !!python/object/apply:os.system [echo]\n", "could not determine a constructor"),
        (b"PK\x03\x04", "special characters are not allowed"),
        (b"once upon a time", "is not a configuration"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file or directory; name a YAML file"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbftraining:\r\n  steps: 5\r\n")
    assert load_config(path).training.steps == 5


# ---- writing


def test_the_resolved_configuration_has_every_setting_and_no_tags() -> None:
    config = config_of("training: {learning_rate: 5e-5}")
    text = config.to_yaml()
    assert "!!" not in text
    written = yaml12.read(text)
    assert list(written) == list(SECTIONS)
    for section, cls in SECTIONS.items():
        assert {field.name for field in dataclasses.fields(cls)} <= set(written[section])


WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
POSITIVE = st.floats(1e-12, 1e6)
STEP_COUNT = st.integers(1, 999)
UNIT = st.floats(0, 1)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "run": st.fixed_dictionaries({}, optional={"name": WORD, "dir": WORD, "seed": st.integers(0, 2**63 - 1)}),
        "data": st.fixed_dictionaries({"source": st.just("text"), "path": WORD.filter(bool)}, optional={"cache": WORD}),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "cell": st.sampled_from(["lstm", "gru"]),
                "readout_dims": st.lists(st.integers(1, 999), max_size=3),
                "dropout": st.floats(0, 0.99),
            },
        ),
        "sparsity": st.fixed_dictionaries(
            {"method": st.sampled_from(sorted(METHODS))},
            optional={
                "sparsity": st.floats(0, 0.999),
                "dense": st.lists(WORD, max_size=2),
                "overrides": st.dictionaries(WORD, UNIT, max_size=3),
                "interval": STEP_COUNT,
                "drop_fraction": UNIT,
                "momentum": st.floats(0, 0.99),
            },
        ),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "steps": STEP_COUNT,
                "warmup": st.integers(0, 99),
                "multiplier": POSITIVE,
                "learning_rate": POSITIVE,
                "epsilon": POSITIVE,
                "betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).map(list),
                "grad_clip": st.none() | POSITIVE,
            },
        ),
        "logging": st.fixed_dictionaries({}, optional={"sample_prompt": WORD, "tensorboard": st.booleans()}),
    },
)


@given(CONFIGS)
def test_a_written_configuration_is_read_as_an_equal_one(data: dict[str, Any]) -> None:
    config = parse_config(data, "c.yaml", name="run")
    again = parse_config(yaml12.read(config.to_yaml()), "config.yaml", name="other")
    assert again == config
    assert (again.training, again.method) == (config.training, config.method), "nothing is scaled twice"
    assert again.to_yaml() == config.to_yaml()
