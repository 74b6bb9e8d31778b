"""Tars are read in place through an index that is kept, and written whole."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from dynroute.data import DataError
from dynroute.data import tar as tars
from dynroute.data.tar import Member, TarWriter, read_index
from tests.support.shards import picture, write_tar

FILES = {"a/1.txt": b"one", "2.mask.png": b"", "long" * 60 + ".bin": bytes(range(256)) * 700}


def test_members_are_read_like_paths(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {**FILES, "b.PNG": picture(3)})
    members = read_index(path).members
    assert [member.entry for member in members] == [*FILES, "b.PNG"]
    for member, content in zip(members, FILES.values()):
        assert member.read_bytes() == content
        with member.open("rb") as stream:
            assert stream.read() == content and stream.read() == b""
            assert stream.seek(-1, os.SEEK_END) == max(0, len(content) - 1) if content else True
            assert stream.read() == content[-1:]
    first, mask, _, image = members
    assert (first.key, first.extension, first.name, first.stem, first.suffix) == ("a/1", "txt", "1.txt", "1", ".txt")
    assert (mask.key, mask.extension, mask.suffix) == ("2", "mask.png", ".png")
    assert image.extension == "png" and str(image) == f"{path}: b.PNG"
    with image.open("rb") as stream, Image.open(stream) as opened:
        assert opened.getpixel((0, 0)) == (0, 3, 0)


def test_other_processes_are_sent_members(tmp_path: Path) -> None:
    [member] = read_index(write_tar(tmp_path / "x.tar", {"1.jpg": b"content"})).members
    sent = pickle.loads(pickle.dumps(member))
    assert sent == member and sent.read_bytes() == b"content"


def test_many_threads_read_one_tar(tmp_path: Path) -> None:
    members = read_index(write_tar(tmp_path / "x.tar", {f"{k}.bin": bytes([k]) * 99_999 for k in range(8)})).members
    wrong: list[int] = []

    def read(k: int) -> None:
        for _ in range(20):
            with members[k].open("rb") as stream:
                if stream.read() != bytes([k]) * 99_999:
                    wrong.append(k)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_more_tars_than_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    tars._handle.cache_clear()
    found = [read_index(write_tar(tmp_path / f"{k}.tar", {"x": bytes([k % 256])})).members[0] for k in range(70)]
    streams = [member.open("rb") for member in found]  # one that is no longer kept stays open for who reads it
    assert [stream.read()[0] for stream in streams] == list(range(70))
    del streams
    assert [member.read_bytes()[0] for member in found] == list(range(70))
    tars._handle.cache_clear()
    if sys.platform == "linux":
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # that of the listing


def test_the_index_is_kept_until_the_tar_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", FILES)
    index = read_index(path)
    index.values["2.mask.png"] = {0: 5, 255: 7}
    index.save()
    scanned: list[Path] = []

    def scan(tar: tars.Tar, own=tars._scan) -> tars.Index:  # type: ignore[no-untyped-def]
        scanned.append(tar.path)
        return own(tar)

    monkeypatch.setattr(tars, "_scan", scan)
    assert read_index(path) == index and scanned == []
    [kept] = cache.iterdir()
    for content in (b"", b"[]", b"{}", kept.read_bytes()[:90], kept.read_bytes().replace(b'"format":1', b'"format":0')):
        kept.write_bytes(content)
        assert read_index(path).members == index.members and len(scanned) == 1
        scanned.clear()
    assert read_index(path).values == {} and scanned == []
    write_tar(path, {"other": b"x"})
    assert [member.entry for member in read_index(path).members] == ["other"] and len(scanned) == 1
    os.utime(path, ns=(1, 1))
    read_index(path)
    assert len(scanned) == 2


def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        assert len(read_index(write_tar(tmp_path / "x.tar", FILES)).members) == 3
    assert "the index of shards is not kept" in caplog.text


def whole() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("1.jpg", "2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 600
            tar.addfile(info, io.BytesIO(b"x" * 600))
    return content.getvalue()  # 512 + 1024 for each, then zeros


def named(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable tar (empty file)"),
        (b"hello" * 300, "not a readable tar"),
        (whole()[:200], "not a readable tar"),
        (whole()[:1536], "no end of the archive: truncated? at byte 1536, behind 1 members"),
        (whole()[:1800], "no end of the archive: truncated? at byte 1536, behind 1 members"),
        (whole()[:2100], "not a readable tar (unexpected end of data)"),
        (whole()[:3072], "no end of the archive: truncated? at byte 3072, behind 2 members"),
        (whole()[:1536] + b"?" * 512 + whole()[2048:], "a broken header at byte 1536, behind 1 members"),
        (gzip.compress(whole()), "compressed, wanted a plain tar"),
        (named("1.jpg", "./1.jpg"), "1.jpg: two members of this name, wanted one"),
        (named("1.jpg", "../1.jpg"), "'../1.jpg': a name that leads out of its folder"),
        (named("/etc/1.jpg"), "'/etc/1.jpg': a name that leads out of its folder"),
    ],
)
def test_what_is_no_whole_tar_is_named(tmp_path: Path, cache: Path, content: bytes, words: str) -> None:
    path = tmp_path / "train-000000.tar"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_index(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value) and "\n" not in str(error.value)
    assert not cache.exists()


def test_a_tar_that_shrank_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", FILES)
    member = read_index(path).members[2]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"x\.tar: long.*bin: .* bytes are there, wanted 179200: changed since"):
        member.read_bytes()


def test_links_have_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("folder/1.jpg"))
        for name, kind in (("2.jpg", tarfile.SYMTYPE), ("3.jpg", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "folder/1.jpg"
            tar.addfile(info)
    index = read_index(path)
    assert [member.entry for member in index.members] == ["folder/1.jpg"] and index.links == ["2.jpg", "3.jpg"]


def test_written_whole_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        with TarWriter(tmp_path / "new" / name) as out:
            assert out.add("0" * 150, {"jpg": b"picture", "mask.png": b"mask"}) == 11
            assert not (tmp_path / "new" / name).exists()
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.tar", "b.tar"))
    assert first == second and sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.tar", "b.tar"]
    found = {member.entry: member.read_bytes() for member in read_index(tmp_path / "new/a.tar").members}
    assert found == {"0" * 150 + ".jpg": b"picture", "0" * 150 + ".mask.png": b"mask"}
    with pytest.raises(RuntimeError), TarWriter(tmp_path / "new/a.tar") as out:
        out.add("1", {"jpg": b"other"})
        raise RuntimeError
    assert (tmp_path / "new/a.tar").read_bytes() == first and len(list((tmp_path / "new").iterdir())) == 2


def test_without_webdataset_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r"a\.tar: wanted the package webdataset: pip install 'dynroute\[shards\]'"):
        TarWriter(tmp_path / "new/a.tar")
    assert not (tmp_path / "new").exists()
    assert read_index(write_tar(tmp_path / "x.tar", FILES)).members  # reading wants none


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    for content in (b"x", b"x" * 100_000):  # at its end, and in the middle
        (tmp_path / f".a.tar.{os.getpid()}.{threading.get_ident()}").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left on device: '.*a\.tar'"), TarWriter(tmp_path / "a.tar") as out:
            out.add("1", {"jpg": content})
        assert list(tmp_path.iterdir()) == []


def test_members_and_their_keys_are_plain_values() -> None:
    tar = tars.Tar(Path("x.tar"), 1, 2)
    assert Member(tar, "a.b/c.d.jpg", 0, 1).key == "a.b/c"
    assert len({Member(tar, "1", 0, 1), Member(tar, "1", 0, 1)}) == 1
    assert json.dumps([Member(tar, "1.JPG", 0, 1).extension]) == '["jpg"]'
