"""Small copies of AU datasets in their on-disk formats, for tests. Labels are made up."""

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

BP4D_HEADER = ",".join(map(str, range(100)))
AFF_WILD2_HEADER = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"


def picture(level: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.full((side, side, 3), level, np.uint8))


def jpeg(level: int = 100) -> bytes:
    buffer = io.BytesIO()
    picture(level).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_images(folder: Path, names) -> None:
    for name in names:
        write(folder / name, jpeg())


def write_video(path: Path, frames: int, side: int = 32) -> Path:
    """A video whose frame k (from 1) is gray of level 10 k, in many groups of pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=20)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(1, frames + 1):
            video.mux(stream.encode(av.VideoFrame.from_image(picture(10 * number, side))))
        video.mux(stream.encode())
    return path


def occurrence_row(frame: int, present=(), unknown=()) -> str:
    """A line of a BP4D AU_OCC file: the 27 coded AUs are 0 or 1, all other columns are 9."""
    coded = {*range(1, 25), 27, 28} - {3, 8, 21}
    cells = [1 if au in present else 0 if au in coded and au not in unknown else 9 for au in range(1, 100)]
    return ",".join(map(str, [frame, *cells]))


def bp4d_tree(root: Path, release: bool = True) -> Path:
    """Three recordings with every defect.

    F001_T1: frames 2440 to 2443, all well; 2443 has an unknown AU2; images named with and without zeros.
    F001_T2: byte order mark and CRLF; frame 12 has no image, image 13 lies in the span and has no labels.
    M001_T1: a line with 99 cells, intensities without AU17 and with a 9; has no images.
    """
    occurrence = root / "AUCoding" / ("AU_OCC" if release else "")
    first = [
        occurrence_row(2440, {1, 6}),
        occurrence_row(2441, {6}),
        occurrence_row(2442),
        occurrence_row(2443, {12}, {2}),
    ]
    write(occurrence / "F001_T1.csv", "\n".join([BP4D_HEADER, *first]) + "\n")
    second = [occurrence_row(11, {4}), occurrence_row(12, {4}), occurrence_row(14)]
    write(occurrence / "F001_T2.csv", "\ufeff" + "\r\n".join([BP4D_HEADER, *second]) + "\r\n")
    third = [occurrence_row(1), occurrence_row(2).rpartition(",")[0], occurrence_row(3)]
    write(occurrence / "M001_T1.csv", "\n".join([BP4D_HEADER, *third]))
    for au in (6, 10, 12, 14, 17):
        folder = root / ("AUCoding/AU_INT" if release else "AU Intensity Codes3.0") / f"AU{au:02d}"
        write(folder / f"F001_T1_AU{au:02d}.csv", f"2440,{au % 6}\n2441,0\n2442,9\n2443,5\n")
        write(folder / f"F001_T2_AU{au:02d}.csv", "11,1\r\n12,2\r\n14,3\r\n")
        if au != 17:
            write(folder / f"M001_T1_AU{au:02d}.csv", "1,0\n3,0\n")
    images = root / ("2D+3D" if release else "BP4D-training") / "F001"
    write_images(images / "T1", ["2438.jpg", "2440.jpg", "2441.jpg", "02442.jpg", "2443.jpg"])
    write_images(images / "T2", ["0011.jpg", "0013.jpg", "0014.jpg"])
    write(images / "T1" / "2440.bnd", "no image")
    return root


DISFA_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)


def disfa_labels(root: Path, subject: str, frames, leave_out=()) -> None:
    """AU n has intensity (n + frame) mod 6."""
    for au in DISFA_AUS:
        if au not in leave_out:
            lines = "".join(f"{frame},{(au + frame) % 6}\n" for frame in frames)
            write(root / "ActionUnit_Labels" / subject / f"{subject}_au{au}.txt", lines)


def feafa_line(frame: int) -> str:
    """Channel c has (c + frame) / 100."""
    return " ".join(f"{(channel + frame) / 100:.6f}" for channel in range(24)) + "\n"


def feafa_tree(root: Path) -> Path:
    """Two clips of part A, one with its images beside and one with them in a parallel tree, and part B of two names."""
    for clip in ("FEAFA-A/PV001.output", "FEAFA-A/PV002.output", "FEAFA-B/SN001.output"):
        for frame in range(3):
            write(root / clip / f"{frame:08d}.auw", feafa_line(frame))
    write(root / "FEAFA-B" / "2.output" / "gong2_2_00000001.auw", feafa_line(1))
    write_images(root / "FEAFA-A" / "PV001.output", ["00000000.jpg", "00000001.png", "00000003.jpg"])
    write_images(root / "pictures" / "PV002", ["0.jpg", "1.jpg", "2.jpg"])
    return root
