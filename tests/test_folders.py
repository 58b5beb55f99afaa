"""Walking users' folders: links, what systems leave, what is counted; names that tell files apart."""

import os
from collections import Counter
from pathlib import Path

import pytest

from au_llava.au_faces.table import FacesTable
from au_llava.au_recognition.inputs import find_files
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.folders import files_below, short_names, told

JUNK = (
    *("._a.png", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", ".AppleDouble/a.png"),
    *(".Trashes/a.png", ".Trash-1000/a.png", "__MACOSX/a.png", "lost+found/a.png", "$RECYCLE.BIN/a.png"),
    *("System Volume Information/a.png", "@eaDir/a.png", "#recycle/a.png", "#snapshot/a.png", "@Recycle/a.png"),
    *(".@__thumb/a.png", ".git/a.png", ".ipynb_checkpoints/a.png"),
)


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def below(root, **options):
    return [str(path.relative_to(root)) for path in files_below(root, **options)]


def test_what_systems_leave_is_neither_listed_nor_counted(tmp_path):
    root, left_out = tree(tmp_path, "b.png", "in/a.png", *JUNK, *(f"in/{name}" for name in JUNK)), Counter()
    assert below(root, left_out=left_out) == ["b.png", "in/a.png"]
    assert (
        find_files([root], left_out) == find_files([root / "**" / "*.png"]) == [root / "b.png", root / "in" / "a.png"]
    )
    assert not left_out.total()


def test_a_folder_given_by_name_is_read_whatever_its_name(tmp_path):
    assert find_files([tree(tmp_path / ".cache" / "#snapshot", "a.png")])


def test_a_star_that_the_shell_expands(tmp_path):
    """photos/* also names what systems leave there; a single path is meant."""
    root, left_out = tree(tmp_path, "a.png", "@eaDir/b.png", "#recycle/c.png", "Thumbs.db"), Counter()
    assert find_files(sorted(root.iterdir()), left_out) == [root / "a.png"]
    assert left_out == {"left by systems": 3}
    assert find_files([root / "#recycle"]) == [root / "#recycle" / "c.png"]


def test_links_are_followed_once_and_end(tmp_path):
    """A link out of the tree, two that lead into each other's folders, one to the root, one above it, a dead one."""
    tree(tmp_path, "elsewhere/far.png", "root/a/1.png", "root/z/2.png", "beside.png")
    root, left_out = tmp_path / "root", Counter()
    for link, target in (
        ("linked", tmp_path / "elsewhere"),
        ("again", tmp_path / "elsewhere"),
        ("a/to z", root / "z"),
        ("z/to a", root / "a"),
        ("round", root),
        ("up", tmp_path),
        ("dead.png", tmp_path / "gone.png"),
        ("file.png", tmp_path / "beside.png"),
    ):
        (root / link).symlink_to(target)
    assert below(root, left_out=left_out) == ["file.png", "a/1.png", "again/far.png", "z/2.png"]
    assert left_out == {"links that lead nowhere": 1}
    assert find_files([root / "**" / "f*.png"]) == [root / "again" / "far.png", root / "file.png"]


def test_many_links_between_folders_do_not_multiply(tmp_path):
    """Twelve folders that each link to all others: 12! paths, twelve pictures."""
    folders = [tree(tmp_path / f"{number:02d}", "x.png") for number in range(12)]
    for folder in folders:
        for other in folders:
            (folder / f"to {other.name}").symlink_to(other)
    assert find_files([tmp_path]) == find_files([tmp_path / "**"]) == [folder / "x.png" for folder in folders]


def test_everything_else_is_counted_by_suffix(tmp_path):
    root = tree(tmp_path, "a.png", "b.CR2", "in/c.cr2", "in/notes.txt", "in/README", ".hidden.png", ".config/x.png")
    left_out = Counter()
    assert find_files([root], left_out) == [root / "a.png"]
    assert left_out == {".cr2": 2, ".txt": 1, "without a suffix": 1, "hidden": 2}
    assert told(left_out).startswith("2 ")
    left_out = Counter()
    assert find_files([root / "*"], left_out) == [root / "a.png"]
    assert left_out == {".cr2": 1, "folders": 1}
    (root / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no video in the folder .*: it holds 2 (\.cr2|hidden)"):
        find_files([root])


def test_a_pipe_is_no_picture(tmp_path):
    """Opening one would wait for a writer."""
    root = tree(tmp_path, "a.png")
    os.mkfifo(root / "b.png")
    assert find_files([root]) == find_files([root / "*"]) == [root / "a.png"]
    for pipe in (root / "b.png", "/dev/null"):
        with pytest.raises(FileNotFoundError, match="is a pipe, a device or a socket: name a file or a folder"):
            find_files([pipe])
    with pytest.raises(FileNotFoundError, match="There is no table of faces"):
        FacesTable(root / "b.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_folder_that_cannot_be_opened_is_counted(tmp_path):
    root, left_out = tree(tmp_path, "a.png", "closed/b.png"), Counter()
    (root / "closed").chmod(0)
    try:
        assert find_files([root], left_out) == [root / "a.png"]
        assert left_out == {"folders that cannot be opened": 1}
        with pytest.raises(PermissionError):  # nobody counts it
            files_below(root)
    finally:
        (root / "closed").chmod(0o700)


def test_suffixes_and_order():
    paths = [str(path) for path in files_below(HOME / "au_datasets", {".py"})]
    assert paths == sorted(paths)
    assert str(HOME / "au_datasets" / "records.py") in paths


def test_short_names_tell_apart():
    paths = [Path("/s/a/clip.mp4"), Path("/s/b/clip.mp4"), Path("/t/b/clip.mp4"), Path("/s/other.mp4")]
    assert list(map(str, short_names(paths).values())) == ["other.mp4", "a/clip.mp4", "s/b/clip.mp4", "t/b/clip.mp4"]
    assert short_names([Path("x.png"), Path("x.png")]) == {Path("x.png"): Path("x.png")}


def test_outputs_are_checked_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "aus.csv")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(IsADirectoryError, match="is a folder: name a file"):
        check_writable(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "aus.csv")
