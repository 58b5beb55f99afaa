"""Walking the folders of users, the same way for all commands.

Links to folders are followed, but a folder is read once, however many links lead to it, so circular links end. Hidden
entries are left out, and what operating systems and network drives leave in folders too.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# In lower case. @eaDir, #recycle, #snapshot: Synology; @Recycle, @Recently-Snapshot, .@__thumb: QNAP; ~snapshot: NetApp
LEFT_BY_SYSTEMS = {
    *("__macosx", ".ds_store", ".appledouble", ".appledb", ".appledesktop", ".trashes", ".fseventsd", "icon\r"),
    *(".spotlight-v100", ".temporaryitems", ".documentrevisions-v100", ".volumeicon.icns", ".apdisk"),
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler"),
    *("system volume information", "lost+found", ".trash", ".directory", ".thumbnails"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb", ".snapshot", "~snapshot"),
    *(".git", ".svn", ".hg", ".ipynb_checkpoints", "__pycache__"),
}
JUNK_PREFIXES = ("._", ".trash-", ".nfs", ".smbdelete", ".fuse_hidden", ".syncthing.")

# What `left_out` counts, besides suffixes.
HIDDEN, JUNK, FOLDERS, NO_SUFFIX = "hidden", "left by systems", "folders", "without a suffix"
DEAD_LINKS, CLOSED = "links that lead nowhere", "folders that cannot be opened"


def is_junk(name: str) -> bool:
    """Whether operating systems, network drives or tools leave files or folders of this name among those of users."""
    return name.lower() in LEFT_BY_SYSTEMS or name.lower().startswith(JUNK_PREFIXES)


def entries(folder: Path) -> list[os.DirEntry]:
    """The entries of a folder, in no order, without hidden ones and what systems leave there."""
    with os.scandir(folder) as scan:
        return [entry for entry in scan if entry.name[0] != "." and not is_junk(entry.name)]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without links that lead back to it or to a folder above it."""
    inner = sorted((entry.name, entry.is_symlink()) for entry in entries(folder) if entry.is_dir())
    back = lambda path: folder.resolve().is_relative_to(path.resolve())
    return [folder / name for name, is_link in inner if not (is_link and back(folder / name))]


def files_below(root: Path, suffixes: Collection[str] | None = None, left_out: Counter | None = None) -> Iterator[Path]:
    """The files in `root` and all folders below it: those of a folder in order, then those of its subfolders.

    A folder that several paths lead to is read once, by the path without links if there is one.

    Args:
        suffixes: take only files with one of these, in lower case.
        left_out: counts hidden entries, files with other suffixes, links that lead nowhere and folders that cannot be
            opened.

    Raises:
        OSError: a folder cannot be opened, and there is no `left_out` to count it in.
    """
    counts = Counter() if left_out is None else left_out
    seen = {str(parent) for parent in root.resolve().parents}
    waiting, files = [str(root)], []

    def cannot_open(error: OSError) -> None:
        if left_out is None or error.filename == str(root):
            raise error
        counts[CLOSED] += 1

    while waiting:  # links wait until all else has been read
        for folder, inner, names in os.walk(waiting.pop(0), onerror=cannot_open):
            if os.path.realpath(folder) in seen:
                inner.clear()
                continue
            seen.add(os.path.realpath(folder))
            counts.update(HIDDEN for name in (*inner, *names) if name[0] == "." and not is_junk(name))
            folders = sorted(name for name in inner if name[0] != "." and not is_junk(name))
            links = {name for name in folders if os.path.islink(os.path.join(folder, name))}
            inner[:] = [name for name in folders if name not in links]
            waiting += [os.path.join(folder, name) for name in folders if name in links]
            for name in names:
                if name[0] == "." or is_junk(name):
                    continue
                suffix = os.path.splitext(name)[1].lower()
                if suffixes is not None and suffix not in suffixes:
                    counts[suffix or NO_SUFFIX] += 1
                    continue
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    files.append(Path(path))
                elif os.path.islink(path):
                    counts[DEAD_LINKS] += 1
    return iter(sorted(files, key=lambda path: (path.parent.parts, path.name)))


def told(left_out: Counter) -> str:
    """The counts of `left_out` in words, the largest first: "3 .txt, 1 hidden"."""
    return ", ".join(f"{count} {what}" for what, count in left_out.most_common() if count)


def short_names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Path -> its name, with as many parent folders as are needed to tell the paths apart."""
    paths = list(dict.fromkeys(paths))
    names, depth = {}, 1
    while len(names) < len(paths):
        ends = {path: path.parts[-depth:] for path in paths if path not in names}
        count = Counter(path.parts[-depth:] for path in paths)
        names |= {path: Path(*end) for path, end in ends.items() if count[end] == 1 or len(path.parts) <= depth}
        depth += 1
    return names
