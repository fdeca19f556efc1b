"""Texts as users have them: names of splits, links, packed files and archives, pipes. What is left out is said."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnsparse.data.corpus import Corpus, cached_where_asked, load_corpus, load_text_split
from rnnsparse.data.sources import text_source
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.settings.data import DataConfig

BYTES = Tokenizer.byte()
TEXT = "A text of some words, ünd ein ß.\n" * 10
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bz2": bz2.compress,
}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNSPARSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder_of(root: Path, *names: str) -> Path:
    """A folder of files that hold their own names, a line each."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")
    return root


def zip_of(path: Path, *names: str, **content: str) -> Path:
    """The same in a zip archive; `content` is by other names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, f"{name}\n")
        for name, text in content.items():
            archive.writestr(name, text)
    return path


def tar_of(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(TEXT.encode())
        archive.addfile(entry, io.BytesIO(TEXT.encode()))
    return file.getvalue()


def corpus_of(path: Path, **options: Any) -> Corpus:
    return load_corpus(DataConfig(source="text", path=str(path), **options), minimum=0)


def names_of(corpus: Corpus) -> dict[str, list[str]]:
    """The files in each split, where they hold their names."""
    return {
        split: BYTES.decode(getattr(corpus, split).tokens.tolist()).splitlines()
        for split in ("train", "validation", "test")
    }


def whole(path: Path) -> str:
    return BYTES.decode(load_text_split(path, BYTES).tokens.tolist())


def refusal(path: Path) -> str:
    """What is said of a text, the same for training and for evaluation."""
    with pytest.raises(UserError) as trained:
        corpus_of(path)
    with pytest.raises(UserError) as evaluated:
        load_text_split(path, BYTES)
    assert str(evaluated.value).replace("--data", "data.path") == str(trained.value)
    assert "\n" not in str(trained.value)
    return str(trained.value)


# Names of splits


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
        ("wikitext-2/wiki.train.tokens", "wikitext-2/wiki.valid.tokens", "wikitext-2/wiki.test.tokens"),
        ("corpus/train/a.txt", "corpus/dev/a.txt", "corpus/test/a.txt"),
        ("en-train-1.txt.d", "enwik8_val.txt", "enwik8_test.txt"),
        ("ptbTrain.txt", "ptbValidation.txt", "ptbTest2.txt"),
        ("TRAIN", "DEV", "TEST"),
        ("my training data", "my validation data", "testing (new)"),
        ("train.txt", "dev.txt", "eval.txt"),
        ("train.txt", "held-out.txt", "eval/test.txt"),
    ],
)
def test_splits_are_found_by_a_word_wherever_it_stands(train: str, validation: str, test: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", train, validation, test, "LICENSE")
    expected = {"train": [train], "validation": [validation], "test": [test]}
    assert names_of(corpus_of(folder)) == expected
    assert names_of(corpus_of(zip_of(tmp_path / "packed", train, validation, test, "LICENSE"))) == expected


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["train/a.txt", "train/test.txt", "valid.txt"], r"train/test\.txt: is for test and for train by the words"),
        (["train-valid.txt", "test.txt"], r"train-valid\.txt: is for train and for validation by"),
        (["train/heldout.txt", "valid.txt", "test.txt"], r"train/heldout\.txt: is for held out and for train by"),
        (["train.txt", "eval.txt"], r"eval\.txt: may be for validation or for test by its name"),
        (["books.txt", "held_out.txt"], r"held_out\.txt: may be for validation or for test by its name"),
        (["books.txt", "deep/down/test.txt"], r"deep/down/test\.txt: is for validation or test .*, and no file is for"),
        (["novel.txt", "training.txt"], r"has files for train \(training\.txt\) but none for validation and test"),
    ],
)
def test_names_that_do_not_say_clearly_which_split_are_refused(names: list[str], reason: str, tmp_path: Path) -> None:
    for path in (folder_of(tmp_path / "folder", *names), zip_of(tmp_path / "texts.zip", *names)):
        with pytest.raises(UserError, match=reason) as error:
            corpus_of(path)
        assert str(error.value).startswith(f"data.path={path}: ")
        assert whole(path).splitlines() == sorted(names)  # as evaluation text, names do not matter


@pytest.mark.parametrize("name", ["training.txt", "test.txt", "train.test.valid"])
def test_one_file_alone_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TEXT)
    corpus = corpus_of(tmp_path / name)
    assert corpus.train.bytes + corpus.validation.bytes + corpus.test.bytes == len(TEXT.encode())
    packed = zip_of(tmp_path / "one.zip", **{name: TEXT, ".hidden": "no"})
    assert corpus_of(packed).train.bytes == corpus.train.bytes


def test_what_was_taken_as_which_split_and_what_was_left_out_is_said(tmp_path: Path) -> None:
    names = ("a.train", "b.train", "dev/x", "dev/y", "z.test", "README", ".git/config")
    for path in (folder_of(tmp_path / "folder", *names), zip_of(tmp_path / "texts.zip", *names)):
        corpus = corpus_of(path)
        hidden = ".git" if path.is_dir() else ".git/config"
        assert corpus.notes == (
            "train: 2 files (first a.train); validation: 2 files (first dev/x); test: 1 file (z.test)",
            f"left out: 1 file (README) for no split; 1 hidden name ({hidden})",
        )
        assert "\n" not in corpus.description
    one = folder_of(tmp_path / "one", "some book.txt", "another\x1b[31m book.txt", "c")
    assert corpus_of(one).notes == (r"3 files (first another\x1b[31m book.txt) as one text, divided 90/5/5",)


def test_a_text_that_is_trained_on_and_held_out_too_is_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", "train.txt", "valid.txt")
    (folder / "test.txt").symlink_to("train.txt")
    corpus = corpus_of(folder)
    assert names_of(corpus)["test"] == ["train.txt"]
    assert corpus.notes[1].startswith(f"warning: data.path: {folder}/test.txt: for test, has the same bytes as ")


# Links


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    elsewhere = folder_of(tmp_path / "elsewhere", "b.txt", "deep/c.txt")
    folder = folder_of(tmp_path / "folder", "a.txt", "z.txt")
    (folder / "more").symlink_to(elsewhere)
    assert whole(folder) == "a.txt\nb.txt\ndeep/c.txt\nz.txt\n"
    (tmp_path / "only").mkdir()
    (tmp_path / "only/link").symlink_to(elsewhere)
    assert whole(tmp_path / "only") == "b.txt\ndeep/c.txt\n"


def test_linked_folders_may_be_splits_of_files_that_lie_together(tmp_path: Path) -> None:
    all_of_them = folder_of(tmp_path / "folder/all", "1/a.txt", "2/b.txt", "3/c.txt").relative_to(tmp_path / "folder")
    for number, split in enumerate(("train", "valid", "test"), start=1):
        (tmp_path / "folder" / split).symlink_to(all_of_them / str(number))
    assert names_of(corpus_of(tmp_path / "folder")) == {
        "train": ["1/a.txt"],
        "validation": ["2/b.txt"],
        "test": ["3/c.txt"],
    }


def test_circles_end_and_what_links_lead_to_again_is_read_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", "a/x.txt", "b/y.txt")
    (folder / "a/to_b").symlink_to("../b")
    (folder / "b/to_a").symlink_to("../a")
    (folder / "b/up").symlink_to("..")
    (folder / "again.txt").symlink_to("a/x.txt")
    assert whole(folder) == "b/y.txt\na/x.txt\n"  # in the order of a/to_b/y.txt, a/x.txt
    assert corpus_of(folder).notes == (
        "2 files (first a/to_b/y.txt) as one text, divided 90/5/5",
        "read once, though links lead there again: 4 names (first a/to_b/to_a)",
    )


def test_folders_that_all_link_to_each_other_are_listed_in_little_time(tmp_path: Path) -> None:
    """Paths without a circle among fifteen folders: 10 to the power of 12."""
    names = [f"{number:x}" for number in range(15)]
    folder = folder_of(tmp_path / "folder", *(f"{name}/text" for name in names))
    for name in names:
        for other in names:
            (folder / name / f"to_{other}").symlink_to(f"../{other}")
    assert len(whole(folder).splitlines()) == 15


def test_a_broken_link_or_a_pipe_among_the_texts_is_refused_and_beside_splits_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", "a.txt")
    (folder / "more").symlink_to(tmp_path / "gone")
    assert f"data.path: {folder}/more: is a link to {tmp_path}/gone, which is missing; mend" in refusal(folder)
    (folder / "more").unlink()
    (folder / "self").symlink_to("self")
    assert "self: cannot be read (Too many levels of symbolic links)" in refusal(folder)
    (folder / "self").unlink()
    os.mkfifo(folder / "pipe")
    assert f"{folder}/pipe: is no file but a pipe" in refusal(folder)
    folder_of(folder, "train", "valid", "test")
    assert corpus_of(folder).notes[1] == "left out: 2 files (first a.txt) for no split"
    assert "link to" in refusal_of_link(tmp_path)


def refusal_of_link(root: Path) -> str:
    (root / "link.txt").symlink_to("gone")
    return refusal(root / "link.txt")


# Packed texts


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("name", ["text", "text.txt", "text.gz", "text.xz"])
def test_a_packed_text_is_known_by_its_content(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PACKERS[kind](TEXT.encode()))
    assert whole(tmp_path / name) == TEXT


@pytest.mark.parametrize("kind", PACKERS)
def test_texts_in_a_zip_may_be_packed_again(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts", "w") as archive:
        archive.writestr("b", PACKERS[kind](TEXT.encode()))
        archive.writestr("a.txt", "first ")
    assert whole(tmp_path / "texts") == "first " + TEXT


@pytest.mark.parametrize(
    "method",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=["0", "8", "12", "14"],
)
def test_a_zip_of_texts_is_read_like_the_folder(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts.zip", "w", method) as archive:
        for name in ("b.txt", "a/z.txt", "a.txt", ".hidden", "__MACOSX/a.txt", "a/.DS_Store", "c\\d.txt"):
            archive.writestr(name, f"{name}\n")
        archive.mkdir("empty")
    assert whole(tmp_path / "texts.zip") == "a/z.txt\na.txt\nb.txt\nc\\d.txt\n"
    assert corpus_of(tmp_path / "texts.zip").notes[1] == "left out: 3 hidden names (first .hidden)"


def test_a_zip_in_a_folder_is_one_of_its_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", "a.txt", "z.txt")
    zip_of(folder / "b.zip", "2.txt", "1.txt")
    zip_of(folder / "c", "3.txt")
    zip_of(folder / "d", "4.txt")
    assert whole(folder) == "a.txt\n1.txt\n2.txt\n3.txt\n4.txt\nz.txt\n"
    zip_of(folder / "b.zip", "wiki.test.raw", "wiki.train.raw")
    with pytest.raises(UserError, match=r"b\.zip: wiki\.test\.raw: is for a split by its name, and the archive is one"):
        corpus_of(folder)
    folder_of(folder, "train.txt", "valid.txt")
    zip_of(folder / "test.zip", "1/test.txt", "2.txt")
    assert names_of(corpus_of(folder))["test"] == ["1/test.txt", "2.txt"]


TAR = "a tar archive, which is not read as text; unpack it into a folder, as with `tar -xf FILE -C FOLDER`"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tar_of("a.txt"), TAR),
        *(
            (PACKERS[kind](tar_of("a.txt")), TAR.replace(",", f" inside of .{kind},", 1))
            for kind in ("gz", "xz", "bz2")
        ),
        (PACKERS["gz"](PACKERS["gz"](b"text")), "is packed twice (gz inside of .gz); unpack it yourself"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive, which is not read as text; unpack it into a folder, as"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(99), "a rar archive, which is not"),
        (b"%PDF-1.4\n%text", "a PDF document, which is not read as text; take out its text, as with `pdftotext"),
        (b"PAR1\x15\x04" + bytes(99), "a parquet table, which is not"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an Office document, which is not"),
    ],
)
@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_archives_that_are_not_read_say_how_to_unpack_them(
    content: bytes, reason: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path / name)
    assert reason in said
    assert "iconv" not in said
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("member", content)
    assert "iconv" not in refusal(tmp_path / "texts.zip")


@pytest.mark.parametrize("member", ["[Content_Types].xml", "mimetype"])
def test_a_document_is_no_zip_of_texts(member: str, tmp_path: Path) -> None:
    zip_of(tmp_path / "some.docx", member, "word/document.xml")
    assert "some.docx: a document (docx, xlsx, odt, epub or the like), which is not" in refusal(tmp_path / "some.docx")


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", "zip"])
def test_a_page_of_errors_fetched_in_the_place_of_an_archive_is_no_text(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"text.{suffix}").write_text("<html>Not found</html>" * 100)
    assert f"damaged or incomplete .{suffix} file (it does not begin like one)" in refusal(tmp_path / f"text.{suffix}")


def test_binary_data_is_not_sent_to_iconv(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"text\0\xff\xfe")
    said = refusal(tmp_path / "model.bin")
    assert "not UTF-8 text: invalid start byte at byte 5; it holds zeros, so it is no text" in said
    assert "iconv" not in said


@pytest.mark.parametrize(
    "text", ["BZh9 is how bzip2 begins\n", "PK and PAR1\n", "Rar!\n", "]\n", f"{'a' * 257}ustar  \0{TEXT}", " " * 600]
)
def test_texts_that_begin_almost_like_archives_are_texts(text: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text)
    assert whole(tmp_path / "text.txt") == text


# Zip archives from elsewhere


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "its name leads out of the archive"),
        ("a/../../b", "its name leads out of the archive"),
        ("..", "has no name"),
        ("a\\..\\..\\b", "its name leads out of the archive"),
        ("C:\\b", "its name leads out of the archive"),
    ],
)
def test_a_member_whose_name_leads_outside_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(zip_of(tmp_path / "texts.zip", "a.txt", name))


def changed_zip(path: Path, change: Callable[[zipfile.ZipInfo], None]) -> Path:
    """An archive whose directory says something else of its member."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", TEXT)
        change(archive.infolist()[0])
    return path


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("flag_bits", 1, "a.txt: is encrypted; unpack the archive with its password"),
        ("compress_type", 9, "a.txt: is packed by method 9, which Python does not know"),
        ("external_attr", 0o120777 << 16, "a.txt: is a link"),
        ("CRC", 1, "damaged or incomplete .zip file (Bad CRC-32 for file 'a.txt')"),
        ("file_size", 7, "damaged or incomplete .zip file"),
    ],
)
def test_a_member_that_cannot_be_read_rightly_is_refused(
    attribute: str, value: int, reason: str, tmp_path: Path
) -> None:
    assert reason in refusal(changed_zip(tmp_path / "texts.zip", lambda info: setattr(info, attribute, value)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "a.txt: is in the archive twice" in refusal(zip_of(tmp_path / "texts.zip", "a.txt", "a.txt"))
    assert "a/b: is in the archive twice" in refusal(zip_of(tmp_path / "texts.zip", "a/b", "a//b"))


@pytest.mark.parametrize("keep", [10, 100, -1])
def test_a_zip_cut_off_is_refused(keep: int, tmp_path: Path) -> None:
    data = zip_of(tmp_path / "texts.zip", "a.txt", "b.txt").read_bytes()
    (tmp_path / "texts.zip").write_bytes(data[:keep])
    assert "texts.zip: damaged or incomplete .zip file" in refusal(tmp_path / "texts.zip")


def test_a_zip_that_changes_between_its_digest_and_its_tokens_is_not_cached(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("1.zip", "2.zip"):
        zip_of(folder / name, a="first", b="second")
    pieces = text_source(folder, "data.path").parts["text"]
    zip_of(tmp_path / "other.zip", a="first", b="other!").replace(folder / "1.zip")
    assert b"".join(bytes(chunk) for chunk in pieces[0].chunks()) == b"first"
    with pytest.raises(UserError, match=r"1\.zip: b: changed while it was read; run again"):
        list(pieces[1].chunks())


# Digests


def test_digests_of_texts_do_not_change_between_versions(tmp_path: Path) -> None:
    """Checkpoints know their text by these: as long as they hold, a run goes on."""
    text = b"A text of some words.\n" * 20
    (tmp_path / "a.txt").write_bytes(text)
    assert digest(tmp_path / "a.txt") == "b7e1d13aa4951c0771593b8d30deb0005cb44f1d83d97694e8efd05919355da3"
    for kind in ("gz", "xz"):
        (tmp_path / f"packed.{kind}").write_bytes(packed := PACKERS[kind](text))
        own = f"{hashlib.sha256(packed).hexdigest()}.{kind}"
        assert digest(tmp_path / f"packed.{kind}") == hashlib.sha256(f"text {own}\n".encode()).hexdigest()


def digest(path: Path) -> str:
    return text_source(path, "data.path").digest


def test_every_way_of_reading_the_same_bytes_has_a_digest_of_its_own(tmp_path: Path) -> None:
    digests = {digest(folder_of(tmp_path / "folder", "a", "b"))}
    for name, names in {
        "1.zip": ["a", "b"],
        "2.zip": ["b", "a"],
        "train.zip": ["a", "b.test", "c.dev", "train"],
    }.items():
        digests.add(digest(zip_of(tmp_path / name, *names)))
    digests.add(text_source(tmp_path / "train.zip", "--data", find_splits=False).digest)
    assert len(digests) == 5
    assert digest(tmp_path / "1.zip") == digest((tmp_path / "1.zip").rename(tmp_path / "moved"))


# Pipes and caches


def test_a_pipe_is_no_text_and_why(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading, writing = os.pipe()
    for path in (tmp_path / "pipe", Path(f"/dev/fd/{reading}"), Path("-"), Path("/dev/null")):
        said = refusal(path)
        assert said.startswith(
            f"data.path={path}: is no file but a pipe, a terminal or a device, which can be read only"
        )
        assert said.endswith("save it as a file, and give that")
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300])
def test_a_path_that_cannot_be_is_a_user_error(path: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / path)


@pytest.mark.parametrize("cache", ["text.txt/cache", "/proc/cache", "x" * 300])
def test_a_cache_that_cannot_be_written_names_both_ways_out(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setenv("RNNSPARSE_CACHE", str(tmp_path / cache))
    said = refusal(tmp_path / "text.txt")
    assert "cannot be written" in said
    assert "data.cache" in said
    assert "RNNSPARSE_CACHE" in said


def test_a_run_is_evaluated_with_the_cache_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = DataConfig(cache="/of/another/machine")
    assert cached_where_asked(recorded).cache is None
    monkeypatch.delenv("RNNSPARSE_CACHE")
    assert cached_where_asked(recorded) == recorded
