from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rnnsparse.data.corpus import TextIdentity
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.storage import checkpoint, manifest

CONFIG_YAML = "run: {name: näme, seed: 3}\ntraining: {learning_rate: 1e-3}\n"
TOKENIZER_JSON = '{"é": "\\u0000\r\n"}\n'


def model_filled_with(value: float) -> CharLM:
    model = CharLM(ModelConfig(embedding_dim=4, hidden_size=3), 5)
    for weight in model.sparse_weights().values():
        weight.connect(torch.arange(0, weight.positions, 2), torch.full(((weight.positions + 1) // 2,), value))
    return model


def save(folder: Path, step: int = 1, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "model": model_filled_with(step),
        "tokenizer_json": TOKENIZER_JSON,
        "config_yaml": CONFIG_YAML,
        "training_state": {"step": step},
    }
    checkpoint.save(folder, step=step, **{**arguments, **changed})


def value_in(loaded: checkpoint.Checkpoint) -> float:
    """The number that all values of the checkpoint's model are."""
    model = model_filled_with(-1)
    loaded.weights.apply(model)
    (value,) = {float(v) for weight in model.sparse_weights().values() for v in weight.values.detach()}
    return value


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let every write beyond this size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_knows_its_text(tmp_path: Path) -> None:
    text = TextIdentity("f00d", {"train": 90, "validation": 5, "test": 5})
    save(tmp_path / "new", text=text, training_state=None)
    save(tmp_path / "older", training_state={"corpus": "f00d"})
    save(tmp_path / "slim", training_state=None)
    known = {name: checkpoint.load(tmp_path / name).trained_text() for name in ("new", "older", "slim")}
    assert known == {"new": text, "older": TextIdentity("f00d"), "slim": None}


def test_everything_saved_comes_back(tmp_path: Path) -> None:
    state = {
        "position": 12345678901,
        "losses": [0.1, None],
        "moments": {"a": torch.tensor([1.5, -0.0]).double()},
    }
    save(tmp_path / "last", step=42, training_state=state)
    loaded = checkpoint.load(tmp_path / "last")

    assert loaded.step == 42
    assert loaded.config_yaml == CONFIG_YAML
    assert loaded.config == {"run": {"name": "näme", "seed": 3}, "training": {"learning_rate": 0.001}}
    assert loaded.tokenizer_json == TOKENIZER_JSON
    assert value_in(loaded) == 42
    found = loaded.training_state()
    moments = found.pop("moments")["a"]
    assert found == {"position": 12345678901, "losses": [0.1, None]}
    assert moments.dtype == torch.float64
    assert moments.view(torch.int64).tolist() == torch.tensor([1.5, -0.0]).double().view(torch.int64).tolist()


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    tokens = torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(0))

    def train(model: CharLM, optimizer: torch.optim.Adam) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            logits, _ = model(tokens)
            torch.nn.functional.cross_entropy(logits[:-1].flatten(0, 1), tokens[1:].flatten()).backward()
            optimizer.step()

    model = model_filled_with(0.25)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    train(model, optimizer)
    save(tmp_path / "last", model=model, training_state={"optimizer": optimizer.state_dict()})
    train(model, optimizer)

    loaded = checkpoint.load(tmp_path)
    resumed = model_filled_with(7)
    loaded.weights.apply(resumed)
    optimizer = torch.optim.Adam(resumed.parameters(), lr=0.5)
    optimizer.load_state_dict(loaded.training_state()["optimizer"])
    train(resumed, optimizer)
    for (name, expected), found in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_slim_checkpoint_has_all_but_the_training_state(tmp_path: Path) -> None:
    save(tmp_path / "best", training_state=None)
    assert sorted(os.listdir(tmp_path / "best")) == [
        "config.yaml",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    loaded = checkpoint.load(tmp_path / "best")
    assert value_in(loaded) == 1
    with pytest.raises(UserError, match=r"has no training_state\.pt, so no run can resume from it"):
        loaded.training_state()


def test_the_next_checkpoint_replaces_the_whole_folder(tmp_path: Path) -> None:
    save(tmp_path / "last", step=1)
    save(tmp_path / "last", step=2, training_state=None)
    assert os.listdir(tmp_path) == ["last"]
    assert not (tmp_path / "last" / "training_state.pt").exists()
    assert value_in(checkpoint.load(tmp_path)) == 2


def test_the_same_checkpoint_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, training_state=None)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_all_files_have_the_permissions_that_the_user_wants_for_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(tmp_path / "last")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "last").iterdir()} == {0o640}


# The three limits stop the writing of the tokenizer, of the weights and of the training state.
@pytest.mark.parametrize("limit", [8, 400, 100_000])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk_fails_in_one_line_and_keeps_the_earlier_checkpoint(
    tmp_path: Path, limit: int, earlier: bool
) -> None:
    folder = tmp_path / "run" / "last"
    if earlier:
        save(folder, step=1)
    with files_limited_to(limit), pytest.raises(RunFailed) as error:
        save(folder, step=2, training_state={"moments": torch.zeros(100_000)})
    message = str(error.value)
    assert message.startswith(f"{folder}: the checkpoint of step 2 cannot be written: ")
    assert "File too large" in message
    assert "\n" not in message
    if earlier:
        assert "the previous one is intact" in message
        assert value_in(checkpoint.load(folder)) == 1
        assert os.listdir(tmp_path / "run") == ["last"]
    else:
        assert "there is no earlier one" in message
        assert os.listdir(tmp_path / "run") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_fails_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFailed, match="Permission denied"):
        save(tmp_path / "last")
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunFailed, match=r"cannot be written: File exists \(.*run\); there is no earlier one"):
        save(tmp_path / "run" / "last")
    with pytest.raises(RunFailed, match="cannot be written: Not a directory"):
        save(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "a file"


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    save(tmp_path / "last")
    (tmp_path / "last" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"also holds 'thesis\.tex'; move that elsewhere"):
        save(tmp_path / "last")
    assert (tmp_path / "last" / "thesis.tex").read_text() == "years of work"


def test_state_that_cannot_be_saved_is_a_programming_error_and_leaves_the_old_checkpoint(
    tmp_path: Path,
) -> None:
    save(tmp_path / "last", step=1)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save(tmp_path / "last", step=2, training_state={"lock": threading.Lock()})
    assert checkpoint.load(tmp_path).step == 1
    assert os.listdir(tmp_path) == ["last"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.yaml", "training_state.pt"])
def test_damage_to_any_file_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / "last")
    path = tmp_path / "last" / name
    content = path.read_bytes()

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert refusal(tmp_path).startswith(f"{path}: its sha256 is not the one in manifest.json")
    path.write_bytes(content[: len(content) // 2])
    assert refusal(tmp_path).startswith(f"{path}: has {len(content) // 2} bytes instead of {len(content)}")
    path.unlink()
    assert refusal(tmp_path).startswith(f"{path}: is missing")


class Explosive:
    """Pickles to code that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_pickle_in_a_foreign_checkpoint_is_never_executed(tmp_path: Path, container: str) -> None:
    save(tmp_path / "last")
    path, trace = tmp_path / "last" / "training_state.pt", tmp_path / "executed"
    if container == "torch":
        torch.save({"state": Explosive(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"state": Explosive(trace)}))
    sign(tmp_path / "last")
    loaded = checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="is not a torch file, or holds more than tensors and plain values"):
        loaded.training_state()
    assert not trace.exists()


def sign(folder: Path) -> None:
    """Write a fitting manifest for a folder changed by hand, as a foreign program could."""
    (folder / "manifest.json").unlink()
    manifest.write(folder, step=1)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("model.safetensors", b"not tensors", "is no safetensors file"),
        ("config.yaml", b"a: [", "is not YAML"),
        ("config.yaml", b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("config.yaml", b"- a", "holds no keys"),
        ("config.yaml", b"a: \xff", "is not UTF-8"),
        ("tokenizer.json", b"\xff", "is not UTF-8"),
    ],
)
def test_foreign_content_with_a_fitting_manifest_is_refused(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    save(tmp_path / "last")
    (tmp_path / "last" / name).write_bytes(content)
    sign(tmp_path / "last")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'last' / name}: {complaint}")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
def test_a_foreign_training_state_is_refused_when_it_is_needed(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "last")
    (tmp_path / "last" / "training_state.pt").write_bytes(content)
    sign(tmp_path / "last")
    loaded = checkpoint.load(tmp_path)
    assert value_in(loaded) == 1
    with pytest.raises(UserError, match="is not a torch file"):
        loaded.training_state()


def test_a_training_state_must_be_a_dictionary(tmp_path: Path) -> None:
    save(tmp_path / "last")
    torch.save([1, 2], tmp_path / "last" / "training_state.pt")
    sign(tmp_path / "last")
    with pytest.raises(UserError, match="holds no dictionary"):
        checkpoint.load(tmp_path).training_state()


def test_a_run_stands_for_its_last_checkpoint_and_a_checkpoint_for_itself(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run / "last", step=2)
    save(run / "best", step=1)
    assert checkpoint.resolve(run) == run / "last"
    assert checkpoint.resolve(run / "last") == run / "last"
    assert checkpoint.resolve(run / "best") == run / "best"


@pytest.mark.parametrize("given", [".", "last"])
def test_a_stop_between_two_renames_costs_no_checkpoint(tmp_path: Path, given: str) -> None:
    save(tmp_path / "last", step=1)
    (tmp_path / "last").rename(tmp_path / ".last.previous")
    shutil.copytree(tmp_path / ".last.previous", tmp_path / ".last.new-12345678")
    assert checkpoint.resolve(tmp_path / given) == tmp_path / ".last.previous"
    assert value_in(checkpoint.load(tmp_path / given)) == 1

    save(tmp_path / "last", step=2)
    assert value_in(checkpoint.load(tmp_path / given)) == 2
    assert os.listdir(tmp_path) == ["last"]


def test_what_is_no_checkpoint_is_refused_with_the_way_out(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    save(run / "last")
    assert "no such folder (did you mean 'first'?)" in refusal(tmp_path / "runs" / "frist")
    assert "no such folder; give" in refusal(tmp_path / "nothing" / "here")
    assert "neither a run" in refusal(tmp_path / "runs")
    assert f"is a file; give the folder of a run or of a checkpoint, such as {run / 'last'}" in refusal(
        run / "last" / "model.safetensors"
    )
    (run / "last" / "manifest.json").unlink()
    assert "has no manifest.json, so it is incomplete" in refusal(run)
    assert "has no manifest.json, so it is incomplete" in refusal(run / "last")
    shutil.rmtree(run / "last")
    (run / "config.yaml").write_text("")
    assert "this run has no checkpoint yet" in refusal(run)
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 300))


def test_a_checkpoint_read_while_the_run_replaces_it_is_never_a_mixture(tmp_path: Path) -> None:
    save(tmp_path / "last", step=1)
    done = threading.Event()

    def save_again_and_again() -> None:
        step = 1
        while not done.is_set():
            step += 1
            save(tmp_path / "last", step=step)

    writer = threading.Thread(target=save_again_and_again)
    writer.start()
    steps: set[int] = set()
    try:
        while len(steps) < 10 and writer.is_alive():
            loaded = checkpoint.load(tmp_path)
            assert value_in(loaded) == loaded.step
            steps.add(loaded.step)
    finally:
        done.set()
        writer.join()
    assert len(steps) == 10


def test_a_checkpoint_stays_readable_after_it_was_replaced_but_is_not_resumed_from(tmp_path: Path) -> None:
    save(tmp_path / "last", step=1)
    loaded = checkpoint.load(tmp_path)
    save(tmp_path / "last", step=2)
    assert value_in(loaded) == 1
    with pytest.raises(UserError, match="was replaced since it was verified; run the command again"):
        loaded.training_state()


def test_the_weights_file_is_readable_without_rnnsparse(tmp_path: Path) -> None:
    save(tmp_path / "last")
    names = set(load_file(tmp_path / "last" / "model.safetensors"))
    assert {"embedding.values", "rnn.0.input.r.columns", "rnn.0.bias_hh", "output.row_pointers"} <= names
