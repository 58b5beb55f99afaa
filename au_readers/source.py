"""What every reader returns: a `Source` of clips, whose records hold pictures.

A reader is one file with an `open_*` function. It looks at a folder, says in one sentence what is missing, and returns
a `Source`: the clips to read, and a `read(clip, defects)` that yields records. The `image` of such a record is a
`Picture`, which knows its file, so that faces can be cropped from it.

Frames of a video are stored in the table as JPEG (quality 95). A clip is then one file that exists completely or not at
all, which makes a run resumable and avoids 130,000 loose files. Images that exist as files stay paths.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from au_llava.au_datasets.records import Defects
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_faces.photo import Photo
from au_llava.au_readers.files import file_names
from au_llava.au_runs.names import escaped


@dataclass(frozen=True)
class Clip:
    """One recording of one person.

    Args:
        labels: the files of its labels, or their folder; for faces without labels, the pictures themselves.
        images: its folder of images, or its video; None if there is none.
        part: "train" or "test", if the data set itself divides its people.
    """

    subject: str
    name: str
    labels: tuple[Path, ...]
    images: Path | None = None
    part: str | None = None


@dataclass(frozen=True)
class Picture:
    """An image that a reader found."""

    path: str  # of the image, or of the video
    number: int = 1  # of the frame in the video, from 1
    frame: Image.Image | None = None  # the video's frame, or a crop
    content: bytes | None = None  # of the file, if a table holds it
    eyes: tuple | None = None  # as `crop_face` takes them, if the data set gives them

    def stored(self) -> dict:
        """The image of a record: the path of a file, its bytes (from a table, or if its name is not UTF-8), or a JPEG
        of the frame."""
        if self.frame is not None:
            return {"bytes": jpeg_bytes(self.frame), "path": None}
        content = self.content
        if content is None and escaped(self.path) != self.path:  # tables cannot hold this name
            content = Path(self.path).read_bytes()
        return {"bytes": content, "path": self.path if content is None else None}

    def photo(self) -> Photo:
        """The picture, to be opened."""
        file = self.path if self.content is None else self.content
        return Photo(file if self.frame is None else self.frame, self.path)

    def open(self) -> Image.Image:
        """The picture as `load_face_image` gives it. Raises ValueError or OSError for a file that cannot be read."""
        return self.photo().whole()


@dataclass(frozen=True)
class Known:
    """What a complete copy holds: numbers of subjects, clips and images, and how often each AU is present."""

    counts: Mapping[str, int] = field(default_factory=dict)  # of "subjects", "clips" and "images"
    present: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # format -> label -> number of frames


@dataclass(frozen=True)
class Source:
    """A copy of a data set on disk.

    Args:
        dataset: the records' `dataset`.
        root: its folder.
        layout: the known form of the data set that this copy has.
        clips: the clips to read.
        read: yields the records of a clip, without their `part` and with a `Picture` as image, and adds what is wrong
            with it to the defects.
        clips_per_shard: number of clips that are written to one file.
        metadata: column -> feature (of datasets), beside the fixed columns of a record.
        known: what a complete copy holds.
        defects: what was already found to be wrong.
        notes: warnings for users of the records.
        crops: whether `read` yields crops of faces already.
        pictures: all image files, if they are known without reading a clip.
    """

    dataset: str
    root: Path
    layout: str
    clips: list[Clip]
    read: Callable[[Clip, Defects], Iterator[dict]]
    clips_per_shard: int
    metadata: Mapping[str, object] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    defects: Defects = field(default_factory=Defects)
    notes: tuple[str, ...] = ()
    crops: bool = False
    pictures: tuple[str, ...] | None = None

    def fingerprint(self) -> str:
        """SHA-256 over the names of the clips and the names and sizes of their label files (of folders: the count)."""
        content = hashlib.sha256()
        for clip in self.clips:
            sizes = [
                len(file_names(path)) if path.is_dir() else path.stat().st_size if path.exists() else None
                for path in clip.labels
            ]
            names = [path.name for path in clip.labels]
            content.update(repr((clip.subject, clip.name, clip.part, names, sizes, clip.images is None)).encode())
        return content.hexdigest()


def local_name(name: str, path: Path) -> str:
    """A name for a user's data set: `name` and eight digits of the hash of its path, such as "labels-3f2a91c0"."""
    return f"{escaped(name)}-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]}"
