"""Figures of action units over time: a heat map of all, and curves of some with the band that holds 80 %."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from au_llava.action_units import AUFormat
from au_llava.au_faces.media import is_video
from au_llava.au_recognition.readings import Readings
from au_llava.au_recognition.tables import heading, measure
from au_llava.au_runs.files import save_figure
from au_llava.au_runs.folders import short_names
from au_llava.au_runs.names import escaped

CURVES = 4
LINE_COLOR, BAND_COLOR = "#0b3c68", "#9cc3e6"


class Track:
    """The readings of one person: the `times` (T,) in seconds, and (T, AUs) numbers per format and kind of number."""

    def __init__(self):
        self.times: list[float] = []
        self.rows: dict[tuple[str, str], list] = {}

    def add(self, face: dict, formats: Sequence[AUFormat]) -> None:
        self.times.append(face["time"])
        for fmt in formats:
            answer = face["answers"][fmt.name]
            for kind in (measure(fmt), "low", "high"):
                self.rows.setdefault((fmt.name, kind), []).append(answer.get(kind, [None] * len(fmt.labels)))

    def values(self, fmt: AUFormat, kind: str, times: np.ndarray) -> np.ndarray:
        """(times, AUs), NaN where the person is not in the frame."""
        values = np.full((len(times), len(fmt.labels)), np.nan)
        values[np.searchsorted(times, self.times)] = np.array(self.rows[fmt.name, kind], float)
        return values


def save_timelines(path: Path, readings: Readings, curves: Sequence[str] | None) -> list[Path]:
    """Write a figure per person and video: `path` itself if there is only one, else `NAME-VIDEO-faceID` beside it.

    Videos of the same name are told apart by their suffixes and by the folders they lie in.

    Args:
        curves: labels of the AUs drawn as curves; by default the `CURVES` that move most.

    Returns:
        the files written.
    """
    tracks, times = {}, {}
    formats = readings.plan.formats
    for face in readings:
        if is_video(Path(face["file"])):
            times.setdefault(face["file"], set()).add(face["time"])
            if face["face_id"] is not None:
                tracks.setdefault((face["file"], face["face_id"]), Track()).add(face, formats)
    written = []
    names = short_names([Path(file) for file, _ in tracks])
    for (file, number), track in tracks.items():
        shown = names[Path(file)]
        name = path if len(tracks) == 1 else path.with_stem(f"{path.stem}-{_plain(shown, names)}-face{number}")
        while name in written:  # a/b.mp4 beside a-b.mp4
            name = name.with_stem(f"{name.stem}-{shown.suffix[1:]}")
        title = f"{escaped(str(shown))}, face {number}"
        save_figure(name, draw_timeline(track, np.array(sorted(times[file])), formats, curves, title))
        written.append(name)
    return written


def _plain(shown: Path, names: Mapping[Path, Path]) -> str:
    """A video's name as a part of another file's name: without its suffix, if it is still unique then."""
    stems = [name.with_suffix("") for name in names.values()]
    shown = shown.with_suffix("") if stems.count(shown.with_suffix("")) == 1 else shown
    return "-".join(part for part in shown.parts if part != shown.anchor)


def draw_timeline(track: Track, times: np.ndarray, formats: Sequence[AUFormat], curves, title: str) -> Figure:
    """A figure with a heat map per format above and a curve per chosen AU below.

    Args:
        times: (T,) of all frames that were read, with or without this person.
    """
    chosen = chosen_curves(track, times, formats, curves)
    heights = [0.16 * len(fmt.labels) + 0.15 for fmt in formats] + [0.75] * len(chosen)
    figure = Figure(figsize=(8, sum(heights) + 1.2), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    step = np.median(np.diff(times)) if len(times) > 1 else 1.0
    edges = np.concatenate([[times[0] - step / 2], (times[1:] + times[:-1]) / 2, [times[-1] + step / 2]])
    for axis, fmt in zip(axes, formats, strict=False):
        values = track.values(fmt, measure(fmt), times).T / fmt.value_numbers[-1]
        axis.set_facecolor("0.8")  # where the person is not in the frame
        mesh = axis.pcolormesh(
            edges, range(len(fmt.labels) + 1), values, cmap="YlGnBu", vmin=0, vmax=1, rasterized=True
        )
        axis.set_yticks(np.arange(len(fmt.labels)) + 0.5, fmt.labels, fontsize=6)
        axis.invert_yaxis()
        axis.set_title(f"{fmt.name}: {heading(fmt)}", fontsize=8, loc="left")
    bar = figure.colorbar(mesh, ax=axes[: len(formats)], aspect=40, pad=0.01)
    bar.set_label("share of the scale", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    for axis, (fmt, label) in zip(axes[len(formats) :], chosen, strict=True):
        column = fmt.labels.index(label)
        low, middle, high = (track.values(fmt, kind, times)[:, column] for kind in ("low", measure(fmt), "high"))
        axis.fill_between(times, low, high, color=BAND_COLOR, linewidth=0)
        axis.plot(times, middle, color=LINE_COLOR, linewidth=1.2)
        axis.set_ylim(0, fmt.value_numbers[-1])
        named = label if len(formats) == 1 else f"{label}\n{fmt.name}"
        axis.set_ylabel(named, rotation=0, ha="right", va="center", fontsize=8)
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    if chosen:
        axes[len(formats)].set_title("dark: expected value; light: 80 % of the probability", fontsize=8, loc="left")
    axes[-1].set_xlabel("seconds", fontsize=8)
    axes[-1].tick_params(axis="x", labelsize=7)
    unseen = "; gray: not seen" if len(track.times) < len(times) else ""
    figure.suptitle(title + unseen, fontsize=9, parse_math=False)
    return figure


def chosen_curves(track: Track, times: np.ndarray, formats: Sequence[AUFormat], curves) -> list[tuple[AUFormat, str]]:
    """(format, label) of each curve, from a format whose readings have a band if there is one."""
    order = sorted(formats, key=lambda fmt: ("intensity", "continuous", "occurrence").index(fmt.scale))
    if curves:
        return [next((fmt, label) for fmt in order if label in fmt.labels) for label in curves]
    fmt = order[0]
    low, high = np.nanpercentile(track.values(fmt, measure(fmt), times), [5, 95], axis=0)
    most = np.argsort(low - high, kind="stable")[:CURVES]
    return [(fmt, fmt.labels[number]) for number in sorted(most)]
