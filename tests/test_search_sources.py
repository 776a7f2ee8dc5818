"""Tests which videos the paths given to an index refer to."""

import hashlib
import os
import tarfile

import pytest
from datasets import Dataset

from region_learner.search.sources import find_videos


def write(path, content=b"video"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, file in members.items():
            tar.add(file, name)
    return path


def test_finds_videos_in_folders_at_any_depth(tmp_path):
    wanted = [write(tmp_path / name) for name in ("a.mp4", "b/c.WEBM", "b/d/e.mov", "ü 1.mkv")]
    for name in ("note.txt", "x.jpg", ".hidden.mp4", ".trash/f.mp4", "._a.mp4"):
        write(tmp_path / name)
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nothing")
    found = find_videos(tmp_path)
    assert set(found.videos) == {str(path) for path in wanted}
    video = found.videos[str(wanted[0])]
    assert (video.size, video.modified) == (5, os.stat(wanted[0]).st_mtime_ns)
    assert video.source() == str(wanted[0])
    assert video.sha256() == hashlib.sha256(b"video").hexdigest()


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff.mp4"))
    with open(name, "wb") as file:
        file.write(b"video")
    assert list(find_videos(tmp_path).videos) == [name]


def test_members_of_shards(tmp_path):
    first, second = write(tmp_path / "x" / "1.mp4", b"first"), write(tmp_path / "x" / "2.webm", b"second one")
    text = write(tmp_path / "x" / "1.txt")
    hidden = {"._1.mp4": text, "./sub/._2.webm": text, ".trash/3.mp4": first}
    shard = make_shard(tmp_path / "s.tar", {"1.mp4": first, "1.txt": text, "./sub/2.webm": second, **hidden})
    found = find_videos([shard])
    assert list(found.videos) == [f"{shard}/1.mp4", f"{shard}/sub/2.webm"]
    for video, path in zip(found.videos.values(), (first, second)):
        assert video.source() == {"path": video.path, "bytes": path.read_bytes()}
        assert video.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert video.size == path.stat().st_size
    assert set(find_videos(tmp_path).videos) > set(found.videos)  # shards in a folder are found, too


def test_paths_in_a_list_are_relative_to_it(tmp_path):
    inside, outside = write(tmp_path / "lists" / "v" / "a.mp4"), write(tmp_path / "b.bin")
    listed = write(tmp_path / "lists" / "l.txt", f"v\n\n  {outside}\n".encode())
    found = find_videos([str(listed)])
    assert list(found.videos) == [str(inside), str(outside)]  # a file in a list may have any extension
    assert set(found.roots.values()) == {str(listed)}


def test_paths_are_normalized(tmp_path):
    """Without normalization, the same video would have several paths."""
    file = write(tmp_path / "v" / "a.mp4")
    listed = write(tmp_path / "lists" / "l.txt", b"\xef\xbb\xbf../v/a.mp4\n")  # with a byte order mark
    assert list(find_videos([tmp_path, listed]).videos) == [str(file)]
    write(listed, f"{tmp_path}/./v//a.mp4\n".encode())
    assert list(find_videos(listed).videos) == [str(file)]
    shard = make_shard(tmp_path / "s.tar", {"sub/./b.mp4": file})
    assert list(find_videos(shard).videos) == [f"{shard}/sub/b.mp4"]


def test_rows_of_a_corpus(tmp_path):
    file = write(tmp_path / "a.mp4")
    shard = make_shard(tmp_path / "s.tar", {"a.mp4": file})
    (member,) = find_videos(shard).videos.values()
    rows = Dataset.from_dict({"video": [str(file)] * 2, "video_id": ["a", "a"]})
    assert list(find_videos(rows, "folder train").roots.items()) == [(str(file), "folder train")]
    references = Dataset.from_list([{"video": {"path": str(shard), "offset": member.offset, "size": member.size}}])
    (video,) = find_videos(references).videos.values()
    assert video.source()["bytes"] == b"video"
    with pytest.raises(ValueError, match=r"https://a/b\.mp4, but only files can be indexed"):
        find_videos(Dataset.from_dict({"video": ["https://a/b.mp4"]}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("videoz", "no file or folder .*videoz; did you mean 'videos'"),
        ("empty", "empty does not contain any videos"),
        ("urls.txt", "lists https://a/b.mp4, but only files can be indexed: download it first"),
        ("none.txt", "none.txt does not contain any videos"),
        ("missing.txt", "no file or folder .*gone.mp4"),
    ],
)
def test_what_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "videos" / "a.mp4")
    write(tmp_path / "urls.txt", b"https://a/b.mp4\n")
    write(tmp_path / "none.txt", b"\n")
    write(tmp_path / "missing.txt", b"gone.mp4\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_videos([tmp_path / "videos", tmp_path / name])


def test_videos_that_are_gone(tmp_path):
    a, b = write(tmp_path / "v" / "a.mp4"), write(tmp_path / "w" / "b.mp4")
    listed = write(tmp_path / "l.txt", f"{b}\n".encode())
    found = find_videos([tmp_path / "v", listed])
    assert not found.lacks(str(a), str(tmp_path / "v"))
    assert found.lacks(str(tmp_path / "v" / "c.mp4"), str(tmp_path))  # within a folder that was searched
    assert found.lacks("/elsewhere/c.mp4", str(listed))  # no longer in the list
    assert not found.lacks(str(tmp_path / "w" / "c.mp4"), str(tmp_path / "w"))  # this folder was not searched


def test_an_argument_whose_videos_were_found_before_is_searched_as_well(tmp_path):
    file = write(tmp_path / "v" / "a.mp4")
    listed = write(tmp_path / "l.txt", f"{file}\n".encode())
    for arguments in ([file.parent, listed], [listed, file.parent]):
        found = find_videos(arguments)
        assert found.lacks("/elsewhere/c.mp4", str(listed))
        assert found.roots[str(file)] == str(file.parent)  # it may be removed from the list and stay in the folder
    with pytest.raises(ValueError, match="folder train does not contain any videos"):
        find_videos(Dataset.from_dict({"video": []}), "folder train")


def test_folders_that_cannot_be_listed_lose_no_videos(tmp_path, caplog, monkeypatch):
    write(tmp_path / "a.mp4")
    hidden = write(tmp_path / "secret" / "b.mp4")
    scandir = os.scandir

    def denied(path):
        if path == str(hidden.parent):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    found = find_videos(tmp_path)
    assert "secret cannot be listed" in caplog.text
    assert not found.lacks(str(hidden), str(tmp_path))
    assert found.lacks(str(tmp_path / "c.mp4"), str(tmp_path))


def test_a_damaged_shard_does_not_hide_other_videos(tmp_path):
    good = write(tmp_path / "a.mp4")
    large = write(tmp_path / "x" / "1.mp4", b"v" * 3000)
    shard = make_shard(tmp_path / "b.tar", {"1.mp4": good, "2.mp4": large, "3.mp4": large})
    os.truncate(shard, 5000)
    found = find_videos(tmp_path)
    assert {str(good), f"{shard}/1.mp4"} <= set(found.videos)
    assert list(found.unreadable) == [str(shard)]
    assert not found.lacks(f"{shard}/3.mp4", str(tmp_path))  # whether it is gone is unknown
    with pytest.raises(ValueError, match=r"b\.tar"):
        find_videos(shard)


def test_a_video_given_twice_is_found_once(tmp_path):
    file = write(tmp_path / "a.mp4")
    found = find_videos([tmp_path, file])
    assert list(found.videos) == [str(file)]
    assert found.roots[str(file)] == str(tmp_path)


def test_a_folder_removes_only_what_it_would_list(tmp_path, monkeypatch):
    """What was indexed in another way stays while its file exists."""
    other, hidden = write(tmp_path / "v" / "clip.dat"), write(tmp_path / "v" / ".h" / "a.mp4")
    write(tmp_path / "v" / "a.mp4")
    linked = write(tmp_path / "w" / "b.mp4")
    (tmp_path / "v" / "link").symlink_to(tmp_path / "w")
    shard = make_shard(tmp_path / "v" / "s.tar", {"1.mp4": linked})
    hidden_shard = make_shard(tmp_path / "v" / ".s.tar", {"1.mp4": linked})
    given = [str(other), str(hidden), str(tmp_path / "v" / "link" / "b.mp4"), f"{hidden_shard}/1.mp4"]
    row = f"{shard}/byte 512"  # of a corpus
    found = find_videos(tmp_path / "v")
    assert list(found.videos) == [str(tmp_path / "v" / "a.mp4"), f"{shard}/1.mp4"]
    for path in (*given, row):
        assert not found.lacks(path, "another root"), path
    for path in (other, hidden, linked, shard, hidden_shard):
        path.unlink()
    found = find_videos(tmp_path / "v")
    for path in (*given, row):
        assert found.lacks(path, "another root"), path

    def unknown(path, **options):
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(os, "stat", unknown)
    assert not found.lacks(str(other), "another root")


def test_members_that_left_a_shard_are_gone_however_it_is_given(tmp_path):
    file = write(tmp_path / "a.mp4")
    (tmp_path / "v").mkdir()
    shard = make_shard(tmp_path / "v" / "s.tar", {"1.mp4": file})
    listed = write(tmp_path / "l.txt", f"{shard}\n".encode())
    for given in (shard, shard.parent, listed):
        found = find_videos(given)
        assert found.lacks(f"{shard}/2.mp4", str(shard.parent))
        assert not found.lacks(f"{shard}/1.mp4", str(shard.parent))
        assert not found.lacks(f"{shard}/byte 512", "a corpus")


def test_each_line_of_a_list_must_have_videos(tmp_path):
    """A disk that is not mounted is an empty folder."""
    write(tmp_path / "disk2" / "a.mp4")
    (tmp_path / "disk1").mkdir()
    listed = write(tmp_path / "l.txt", b"disk1\ndisk2\n")
    with pytest.raises(ValueError, match=r"^disk1, which .*l\.txt lists, does not contain any videos"):
        find_videos(listed)
    make_shard(tmp_path / "disk1" / "empty.tar", {"l.txt": listed})
    listed.write_text("disk1/empty.tar\ndisk2\n")
    with pytest.raises(ValueError, match=r"^disk1/empty\.tar, which .*l\.txt lists, does not contain any videos"):
        find_videos(listed)


def test_files_whose_state_is_not_known_are_kept(tmp_path, monkeypatch, caplog):
    """For example on a network disk: the folder can be listed, but the file cannot be looked up."""
    good, bad = write(tmp_path / "a.mp4"), write(tmp_path / "b.mp4")
    real = os.stat

    def stat(path, **options):
        if path == str(bad):
            raise OSError(5, "Input/output error", path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    found = find_videos(tmp_path)
    assert list(found.videos) == [str(good)]
    assert "b.mp4 cannot be read (Input/output error): it is kept unchanged." in caplog.text
    assert not found.lacks(str(bad), str(tmp_path))


def test_the_last_of_two_members_with_the_same_name_counts(tmp_path):
    old, new = write(tmp_path / "x" / "1.mp4", b"old"), write(tmp_path / "x" / "2.mp4", b"new one")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(old, "a.mp4")
        tar.add(new, "a.mp4")
    (video,) = find_videos(tmp_path / "s.tar").videos.values()
    assert video.source()["bytes"] == b"new one"
