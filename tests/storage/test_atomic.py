from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rnnsparse
from rnnsparse.storage.atomic import existing, replacing

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two folders in one step")

# Replaces a folder, but is gone without a trace at the n-th time it touches the file system.
STOPPED_WRITER = """
import os, sys
from pathlib import Path
from rnnsparse.storage.atomic import replacing

folder, stop_at, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
touched = 0

def count(event, arguments):
    global touched
    if event == "open" or event.startswith(("os.", "shutil.")):
        touched += 1
        if touched == stop_at:
            os._exit(9)

sys.addaudithook(count)
with replacing(folder, exchange=exchange) as new:
    for name in ("a", "b"):
        (new / name).write_text("new")
"""


def write(folder: Path, text: str, exchange: bool = True) -> None:
    with replacing(folder, exchange=exchange) as new:
        for name in ("a", "b"):
            (new / name).write_text(text)


def read(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a", "b")]


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_folder_takes_the_place_of_the_old_and_nothing_else_stays(tmp_path: Path, exchange: bool) -> None:
    for text in ("first", "second", "third"):
        write(tmp_path / "runs" / "last", text, exchange)
        assert read(tmp_path / "runs" / "last") == [text, text]
        assert os.listdir(tmp_path / "runs") == ["last"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", ["old", None])
def test_a_writer_killed_anywhere_leaves_a_complete_folder_and_a_clean_way_on(
    tmp_path: Path, exchange: bool, before: str | None
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnsparse.__file__).parents[1])}
    found = set()
    for stop_at in itertools.count(1):
        folder = tmp_path / str(stop_at) / "last"
        folder.parent.mkdir()
        if before:
            write(folder, before)
        command = [sys.executable, "-c", STOPPED_WRITER, str(folder), str(stop_at), str(exchange)]
        status = subprocess.run(command, env=environment, check=False).returncode

        complete = existing(folder)
        text = None if complete is None else read(complete)[0]
        assert text in {before, "new"}
        assert complete is None or read(complete) == [text, text]
        found.add(text)

        write(folder, "after", exchange)
        assert read(folder) == ["after", "after"]
        assert os.listdir(folder.parent) == ["last"]
        if status == 0:
            break
        assert status == 9
    assert found == {before, "new"}
    assert stop_at > 8


def test_what_a_stop_between_two_renames_left_is_found_and_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    write(folder, "old")
    folder.rename(tmp_path / ".last.previous")

    assert existing(folder) == tmp_path / ".last.previous"
    with pytest.raises(ZeroDivisionError), replacing(folder) as new:
        (new / "a").write_text(str(1 / 0))
    assert read(folder) == ["old", "old"]


def test_a_failing_body_leaves_the_old_folder_alone(tmp_path: Path) -> None:
    write(tmp_path / "last", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "last") as new:
        (new / "a").write_text(str(1 / 0))
    assert read(tmp_path / "last") == ["old", "old"]
    assert os.listdir(tmp_path) == ["last"]


def test_folders_with_similar_names_are_left_alone(tmp_path: Path) -> None:
    others = [".last.new", ".best.new-01", ".last2.previous", "last.previous"]
    for name in others:
        (tmp_path / name).mkdir()
    write(tmp_path / "last", "text")
    assert set(os.listdir(tmp_path)) == {"last", *others}


@pytest.mark.parametrize("exchange", [True, False])
def test_the_old_folder_takes_the_place_of_the_one_kept_before(tmp_path: Path, exchange: bool) -> None:
    last, kept = tmp_path / "last", tmp_path / "kept"
    for number in range(4):
        with replacing(last, keep=kept, exchange=exchange) as new:
            for name in ("a", "b"):
                (new / name).write_text(str(number))
        assert read(last) == [str(number)] * 2
        assert not kept.exists() if number == 0 else read(kept) == [str(number - 1)] * 2
        assert sorted(os.listdir(tmp_path)) == (["kept", "last"] if number else ["last"])


@linux
def test_the_old_folder_comes_back_when_the_new_one_may_not_be_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "last", "old")

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "last", "new")
    assert read(tmp_path / "last") == ["old", "old"]
    assert os.listdir(tmp_path) == ["last"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, exchange: bool) -> None:
    target, link = tmp_path / "disk" / "there", tmp_path / "last"
    write(target, "old")
    link.symlink_to(target)
    write(link, "new", exchange)
    assert link.is_symlink()
    assert read(target) == ["new", "new"]
    assert os.listdir(tmp_path / "disk") == ["there"]


@linux
def test_on_linux_a_reader_never_finds_the_folder_missing(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    write(folder, "0")
    done = threading.Event()

    def replace_often() -> None:
        for i in range(100):
            write(folder, str(i))
        done.set()

    writer = threading.Thread(target=replace_often)
    writer.start()
    looks = missing = 0
    while not done.is_set():
        looks += 1
        missing += not folder.is_dir()
    writer.join()
    assert looks > 100
    assert missing == 0


def test_no_folder_and_no_predecessor_is_none(tmp_path: Path) -> None:
    assert existing(tmp_path / "last") is None
    (tmp_path / "last").write_text("a file")
    assert existing(tmp_path / "last") is None
