"""What lies in the folders of users: one walk for all commands, and where this program itself lies.

Links to folders are followed, and a folder is read once, however many links lead to it: links that lead in circles end.
What systems and network drives leave in folders is passed over, as is what is hidden.
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

# What is left out, as `left_out` counts it, beside suffixes.
HIDDEN, JUNK, FOLDERS, NO_SUFFIX = "hidden", "left by systems", "folders", "without a suffix"
DEAD_LINKS, CLOSED = "links that lead nowhere", "folders that cannot be opened"


def is_junk(name: str) -> bool:
    """Whether a system, a network drive or a tool leaves files or folders of this name beside those of people."""
    return name.lower() in LEFT_BY_SYSTEMS or name.lower().startswith(JUNK_PREFIXES)


def entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, in no order, without what is hidden and what systems leave there."""
    with os.scandir(folder) as found:
        return [entry for entry in found if entry.name[0] != "." and not is_junk(entry.name)]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, but for links that lead back to where they are."""
    inner = sorted((entry.name, entry.is_symlink()) for entry in entries(folder) if entry.is_dir())
    back = lambda path: folder.resolve().is_relative_to(path.resolve())
    return [folder / name for name, is_link in inner if not (is_link and back(folder / name))]


def files_below(root: Path, suffixes: Collection[str] | None = None, left_out: Counter | None = None) -> Iterator[Path]:
    """Files in `root` and any folder below it: those of a folder in order, then those of its subfolders.

    A folder that several paths lead to is read once, by the path without links if there is one.

    Args:
        suffixes: only files of these, in lower case.
        left_out: counts what is hidden, files of other suffixes, links that lead nowhere and folders that cannot be
            opened.

    Raises:
        OSError: a folder cannot be opened, and there is no `left_out` to count it in.
    """
    counted = Counter() if left_out is None else left_out
    seen = {str(parent) for parent in root.resolve().parents}
    waiting, found = [str(root)], []

    def cannot_open(error: OSError) -> None:
        if left_out is None or error.filename == str(root):
            raise error
        counted[CLOSED] += 1

    while waiting:  # links wait until all else has been read
        for folder, inner, names in os.walk(waiting.pop(0), onerror=cannot_open):
            if os.path.realpath(folder) in seen:
                inner.clear()
                continue
            seen.add(os.path.realpath(folder))
            counted.update(HIDDEN for name in (*inner, *names) if name[0] == "." and not is_junk(name))
            kept = sorted(name for name in inner if name[0] != "." and not is_junk(name))
            links = {name for name in kept if os.path.islink(os.path.join(folder, name))}
            inner[:] = [name for name in kept if name not in links]
            waiting += [os.path.join(folder, name) for name in kept if name in links]
            for name in names:
                if name[0] == "." or is_junk(name):
                    continue
                suffix = os.path.splitext(name)[1].lower()
                if suffixes is not None and suffix not in suffixes:
                    counted[suffix or NO_SUFFIX] += 1
                    continue
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    found.append(Path(path))
                elif os.path.islink(path):
                    counted[DEAD_LINKS] += 1
    return iter(sorted(found, key=lambda path: (path.parent.parts, path.name)))


def told(left_out: Counter) -> str:
    """What was left out, the most frequent first: "3 .txt, 1 hidden"."""
    return ", ".join(f"{count} {what}" for what, count in left_out.most_common() if count)


def short_names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Of each path its name, with as many of the folders before it as tell it apart from the others."""
    paths = list(dict.fromkeys(paths))
    names, depth = {}, 1
    while len(names) < len(paths):
        ends = {path: path.parts[-depth:] for path in paths if path not in names}
        count = Counter(path.parts[-depth:] for path in paths)
        names |= {path: Path(*end) for path, end in ends.items() if count[end] == 1 or len(path.parts) <= depth}
        depth += 1
    return names
