from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnsparse.data.corpus import TextIdentity
from rnnsparse.errors import UserError
from rnnsparse.storage import manifest

Content = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.joinpath("needed").write_bytes(b"abc")
    folder.joinpath("optional").write_bytes(b"")
    manifest.write(folder, step=7)
    return folder


def verify(folder: Path) -> manifest.Manifest:
    return manifest.verify(folder, required={"needed"}, optional={"optional", "absent"})


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        verify(folder)
    message = str(error.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


def rewrite(folder: Path, change: Callable[[Content], object]) -> None:
    """Change a manifest as a foreign program would: with a sha256 of its own that is right."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content))


def test_an_unchanged_folder_is_verified(folder: Path) -> None:
    found = verify(folder)
    assert (found.step, found.text) == (7, None)
    assert found.sha256 == {
        "needed": hashlib.sha256(b"abc").hexdigest(),
        "optional": hashlib.sha256(b"").hexdigest(),
    }


@pytest.mark.parametrize("text", [TextIdentity("f00d", {"train": 12, "test": 3}), TextIdentity("f00d")])
def test_what_a_manifest_says_of_the_text_comes_back(folder: Path, text: TextIdentity) -> None:
    folder.joinpath("manifest.json").unlink()
    manifest.write(folder, step=7, text=text)
    assert verify(folder).text == text


def test_a_changed_bit_in_any_byte_of_any_file_is_noticed(folder: Path) -> None:
    for path in folder.iterdir():
        content = path.read_bytes()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            refusal(folder)
        path.write_bytes(content)
    verify(folder)


def test_every_truncation_and_an_added_byte_is_noticed(folder: Path) -> None:
    for path in folder.iterdir():
        content = path.read_bytes()
        # Without its last character, a line end, the manifest still says all it said.
        for length in range(len(content) - (path.name == manifest.NAME)):
            path.write_bytes(content[:length])
            refusal(folder)
        path.write_bytes(content + b"x")
        refusal(folder)
        path.write_bytes(content)
    verify(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    folder.joinpath("needed").unlink()
    assert "needed: is missing" in refusal(folder)


def test_an_additional_file_is_named_and_not_called_damage(folder: Path) -> None:
    folder.joinpath("notes.txt").write_text("mine")
    message = refusal(folder)
    assert "notes.txt: does not belong to the checkpoint; move it elsewhere" in message
    assert "damaged" not in message


def test_links_and_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    folder.joinpath("needed").rename(tmp_path / "elsewhere")
    folder.joinpath("needed").symlink_to(tmp_path / "elsewhere")
    assert "needed: is a link" in refusal(folder)
    folder.joinpath("needed").unlink()
    folder.joinpath("needed").mkdir()
    assert "needed: is no plain file" in refusal(folder)
    folder.joinpath("needed").rmdir()
    os.mkfifo(folder / "needed")
    assert "needed: is no plain file" in refusal(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file", "manifest.json", "unknown"])
def test_a_manifest_cannot_name_other_files(folder: Path, name: str) -> None:
    rewrite(folder, lambda content: content["files"].update({name: content["files"]["needed"]}))
    assert "lists other files than a checkpoint has" in refusal(folder)


def test_a_required_file_cannot_be_left_out(folder: Path) -> None:
    rewrite(folder, lambda content: content["files"].pop("needed"))
    assert "lists other files than a checkpoint has" in refusal(folder)


def test_a_flipped_bit_in_the_format_version_is_damage(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 3'))
    assert "does not match its own sha256: damaged" in refusal(folder)


@pytest.mark.parametrize("version", [0, 2, 999])
def test_another_format_version_says_which_rnnsparse_is_needed(folder: Path, version: int) -> None:
    rewrite(folder, lambda content: content.update(format_version=version, rnnsparse_version="9.8.7\n"))
    message = refusal(folder)
    assert f"format version {version}, but" in message
    assert "install the rnnsparse that wrote it ('9.8.7\\n')" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format_version=True),
        lambda content: content.update(format_version="1"),
        lambda content: content.pop("format_version"),
        lambda content: content.update(step="7"),
        lambda content: content.update(step=7.0),
        lambda content: content.update(files=["needed"]),
        lambda content: content.pop("files"),
        lambda content: content.update(text=None),
        lambda content: content.update(text={"fingerprint": 5, "bytes": {}}),
        lambda content: content.update(text={"fingerprint": "f00d"}),
        lambda content: content.update(text={"fingerprint": "f00d", "bytes": {"train": "12"}}),
        lambda content: content["files"].update(needed=None),
        lambda content: content["files"]["needed"].pop("sha256"),
        lambda content: content["files"]["needed"].update(bytes=None),
        lambda content: content["files"]["needed"].update(bytes=4),
        lambda content: content["files"]["needed"].update(sha256="0" * 64),
    ],
)
def test_a_foreign_manifest_is_refused(folder: Path, change: Callable[[Content], object]) -> None:
    rewrite(folder, change)
    assert "damaged, or not written by rnnsparse" in refusal(folder)


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "1", "{}", "{", "[" * 50_000, "\ud800", "NaN"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    folder.joinpath("manifest.json").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    assert "damaged, or not written by rnnsparse" in refusal(folder)
