"""The face rig: the mesh of a parametric head, and how each action unit (AU) moves it.

`assets/face_rig.npz` (written by `maintenance/build_face_rig.py`; sources and licenses in NOTICE) holds a mean head, 60
identity modes, 52 ARKit-named facial shapes and two lip shapes made for this rig. Coordinates: x to the subject's
left, y up, z out of the face; the unit is the distance between the eyes, whose midpoint is the origin.

Unusual choices
- A *strength* is sided and in [0, 1]: AU12L and AU12R are separate, AU1 and AU17 have one value (`SHAPES` lists all).
- Gains above 1 enlarge shapes that are too subtle in the source to be visible in a small picture. A strength is
  therefore a share of this rig's own full movement, not a FACS letter grade.
- AU23 has no shape in ARKit, and AU24's (mouthPress) looks like a smile; both use shapes made for this rig. AU23 makes
  the mouth narrower and rolls the lips in; AU24 flattens the red of the lips until little is left and keeps the mouth's
  width. With smaller gains they looked like other people's lips at rest (docs/log.md).
- `ON_REQUEST` are movements that came later: pictures show them only for formats that have their labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from au_llava.au_runs.files import HOME

RIG_PATH = HOME / "assets" / "face_rig.npz"

# Strength 1 of an AU moves these shapes by these gains. AU to ARKit shape: ICT-FaceKit's published FACS table
# (https://github.com/ICT-VGL/ICT-FaceKit), except AU10, AU23 and AU24. {side} is Left or Right.
_SIDED_SHAPES = {
    "AU2": {"browOuterUp{side}": 1.9},
    "AU4": {"browDown{side}": 1.3},
    "AU5": {"eyeWide{side}": 1.5},
    "AU6": {"cheekSquint{side}": 1.6, "eyeSquint{side}": 0.25},
    "AU7": {"eyeSquint{side}": 1.5},
    "AU12": {"mouthSmile{side}": 0.95},
    "AU14": {"mouthDimple{side}": 1.3},
    "AU15": {"mouthFrown{side}": 1.4},
    "AU20": {"mouthStretch{side}": 1.6},
    "AU43": {"eyeBlink{side}": 1.0},
}
SHAPES: dict[str, dict[str, float]] = {
    "AU1": {"browInnerUp": 2.1},
    "AU9": {"noseSneerLeft": 2.2, "noseSneerRight": 2.2},
    "AU10": {"mouthUpperUpLeft": 1.3, "mouthUpperUpRight": 1.3},
    "AU16": {"mouthLowerDownLeft": 1.5, "mouthLowerDownRight": 1.5},
    "AU17": {"mouthShrugLower": 1.3},
    "AU18": {"mouthPucker": 1.2},
    "AU23": {"lipTighten": 1.15},
    "AU24": {"lipPress": 1.5},
    "AU25": {
        "mouthUpperUpLeft": 0.5,
        "mouthUpperUpRight": 0.5,
        "mouthLowerDownLeft": 0.8,
        "mouthLowerDownRight": 0.8,
    },
    "AU26": {"jawOpen": 0.75},
    "AU28T": {"mouthRollUpper": 1.1},
    "AU28B": {"mouthRollLower": 1.2},
    # In the source a moving jaw opens the mouth and shows the inside of the lower lip: lift that lip to keep it closed.
    "AD29": {"jawForward": 1.6, "mouthLowerDownLeft": -1.1, "mouthLowerDownRight": -1.1},
    "AD30L": {"jawLeft": 2.2, "mouthLowerDownLeft": -0.8, "mouthLowerDownRight": -0.8},
    "AD30R": {"jawRight": 2.2, "mouthLowerDownLeft": -0.8, "mouthLowerDownRight": -0.8},
    "AD34": {"cheekPuff": 0.9},
    "AU8": {"mouthClose": 0.75},  # as far as AU26 opens: with the same strength, the lips just meet
    "AU22": {"mouthFunnel": 1.4},
    "AD19": {"tongueOut": 1.9},
    "AD101L": {"mouthLeft": 1.2},
    "AD101R": {"mouthRight": 1.2},
    "AD102": {"mouthShrugUpper": 1.4},
}
ON_REQUEST = ("AU8", "AU22", "AD19", "AD101L", "AD101R", "AD102")
for _label, _gains in _SIDED_SHAPES.items():
    for _letter, _side in (("L", "Left"), ("R", "Right")):
        SHAPES[_label + _letter] = {name.format(side=_side): gain for name, gain in _gains.items()}


def expand_sides(values: Mapping[str, float]) -> dict[str, float]:
    """Strengths by sided label from labels with or without a side: {"AU12": 1} gives AU12L and AU12R.

    Raises ValueError if the rig cannot move a label, or a strength is outside [0, 1].
    """
    strengths: dict[str, float] = {}
    for label, value in values.items():
        sided = [label] if label in SHAPES else [label + side for side in "LRTB" if label + side in SHAPES]
        if not sided:
            raise ValueError(f"the face rig has no movement for {label!r}; it knows {', '.join(sorted(SHAPES))}")
        if not 0 <= value <= 1:
            raise ValueError(f"the strength of {label} must lie in [0, 1], got {value}")
        strengths |= dict.fromkeys(sided, float(value))
    return strengths


@dataclass(frozen=True)
class FaceRig:
    """The arrays of the rig; V vertices, F triangles, M modes, S shapes."""

    mean: np.ndarray  # (V, 3) float32, the mean identity, neutral
    modes: np.ndarray  # (M, V, 3) float32, one standard deviation each
    phenotype_map: np.ndarray  # (M, 4), modes expected from [1, age, gender, age * gender]
    residual_factor: np.ndarray  # (M, M), Cholesky factor of the variation that age and gender do not explain
    shapes: np.ndarray  # (S, V, 3) float32
    shape_names: tuple[str, ...]
    faces: np.ndarray  # (F, 3) int64
    regions: np.ndarray  # (F,) int64, index into region_names
    region_names: tuple[str, ...]
    eye_frames: np.ndarray  # (2, 2, 3), for the left and the right eye: center and gaze direction
    lips: np.ndarray  # (V,) in [0, 1], the red of the lips
    lids: np.ndarray  # (V,) in [0, 1], the rim of the eyelids

    def sample_modes(self, age: float, gender: float, rng: np.random.Generator) -> np.ndarray:
        """(M,) identity coefficients of a new person. Age 0 is 25 years and 1 is 90; gender 0 is male, 1 female."""
        expected = self.phenotype_map @ np.array([1, age, gender, age * gender])
        return (expected + self.residual_factor @ rng.standard_normal(len(expected))).clip(-2.5, 2.5)

    def identity(self, modes: np.ndarray, warp: np.ndarray | float = 0.0) -> np.ndarray:
        """(V, 3) neutral head, lips closed, of the identity with coefficients `modes` (M,).

        `warp` (V, 3) is added to the head, for shapes that the modes cannot express. Modes and warp would open or close
        the lips; this is undone along AU25, so that only AU25 opens them.
        """
        head = self.mean + np.tensordot(modes.astype(np.float32), self.modes, axes=1) + warp
        part = self.offsets({"AU25": 1.0})
        rest = self.lip_gap(self.mean)
        return head - part * ((self.lip_gap(head) - rest) / (self.lip_gap(self.mean + part) - rest))

    def lip_gap(self, vertices: np.ndarray) -> float:
        """Distance between the lips at the middle of the mouth, in eye distances. Closed lips have about 0.02."""
        upper, lower = self._inner_lips
        return float(vertices[upper, 1].mean() - vertices[lower, 1].mean())

    @cached_property
    def _inner_lips(self) -> tuple[np.ndarray, np.ndarray]:
        line = np.intersect1d(self.vertices_of("skin"), self.vertices_of("mouth"))
        line = line[np.abs(self.mean[line, 0]) < 0.15]  # eye distances; the mouth is 0.7 wide
        by_height = line[np.argsort(self.mean[line, 1])]
        lower, upper = np.split(by_height, [np.argmax(np.diff(self.mean[by_height, 1])) + 1])
        return upper, lower

    def offsets(self, strengths: Mapping[str, float]) -> np.ndarray:
        """(V, 3) movement of the face for strengths by sided label (the keys of `SHAPES`)."""
        weights = np.zeros(len(self.shape_names), np.float32)
        for label, strength in strengths.items():
            for name, gain in SHAPES[label].items():
                weights[self.shape_names.index(name)] += gain * strength
        used = np.flatnonzero(weights)
        return np.tensordot(weights[used], self.shapes[used], axes=1)

    @cached_property
    def landmarks(self) -> np.ndarray:
        """(64,) numbers of skin vertices spread over the face: 24 on the lips, 16 on the lids, 24 elsewhere.

        Each group is a farthest-point sampling of the mean face that starts at the most forward vertex.
        """
        face = self.vertices_of("skin")
        x, y, z = self.mean[face].T
        lips, lids = self.lips[face] > 0.5, self.lids[face] > 0.5
        elsewhere = ~lips & ~lids & (np.abs(x) < 1.0) & (y > -1.8) & (y < 0.75) & (z > -0.7)
        return np.concatenate(
            [
                face[group][_spread_out(self.mean[face[group]], count)]
                for group, count in ((lips, 24), (lids, 16), (elsewhere, 24))
            ]
        )

    @cached_property
    def face_points(self) -> np.ndarray:
        """(7,) numbers of vertices: outer and inner corner of the right eye, inner and outer corner of the left one,
        tip of the nose, right and left corner of the mouth (the subject's own right and left).

        Corners are the outermost vertices of lids and lips of the mean face, the tip is the most forward one.
        """
        skin = self.vertices_of("skin")
        x, z = self.mean[skin, 0], self.mean[skin, 2]

        def outermost(group: np.ndarray) -> list[int]:
            rows = np.flatnonzero(group)
            return [int(skin[rows[x[rows].argmin()]]), int(skin[rows[x[rows].argmax()]])]

        lids, lips = self.lids[skin] > 0.5, self.lips[skin] > 0.5
        return np.array(
            [*outermost(lids & (x < 0)), *outermost(lids & (x > 0)), int(skin[z.argmax()]), *outermost(lips)]
        )

    def vertices_of(self, region: str) -> np.ndarray:
        """Sorted vertex numbers of the triangles of a region."""
        return np.unique(self.faces[self.regions == self.region_names.index(region)])


def _spread_out(points: np.ndarray, count: int) -> list[int]:
    """Farthest-point sampling: `count` row numbers of points (N, 3), the first the most forward one."""
    chosen = [int(points[:, 2].argmax())]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return chosen


@cache
def load_rig() -> FaceRig:
    """Load the rig, once per process. Raises FileNotFoundError if the asset is missing."""
    if not RIG_PATH.is_file():
        raise FileNotFoundError(
            f"no face rig at {RIG_PATH}: restore it from the repository or run maintenance/build_face_rig.py"
        )
    with np.load(RIG_PATH, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name, array in arrays.items():
        if array.dtype.kind == "U":
            arrays[name] = tuple(array.tolist())
        else:
            arrays[name] = array.astype(np.int64 if array.dtype.kind == "u" else np.float32)
    return FaceRig(**arrays)
