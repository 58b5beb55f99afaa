"""The renderer's geometry: which triangle each pixel shows, and how much light reaches each vertex. NumPy only.

Unusual choice: the z-buffer does not loop over triangles. All (triangle, pixel) pairs in the bounding boxes are tested
at once; those that pass compete for their pixel in a few rounds, which replaces sorting by depth.
"""

import numpy as np

SHADOW_SIZE = 96  # pixels of the shadow map's side


def rasterize(points: np.ndarray, nearness: np.ndarray, faces: np.ndarray, size: int):
    """Find the nearest front-facing triangle at each pixel center.

    Args:
        points: (V, 2) pixel coordinates, x right and y down.
        nearness: (V,) larger is nearer; affine in the image plane (1 / depth for a perspective camera).
        faces: (F, 3) vertex numbers, counter-clockwise seen from the front.
        size: side of the square picture.

    Returns:
        pixels (N,) flat numbers of the covered pixels, triangles (N,), barycentric weights (N, 3) float32.
    """
    corner = faces.T
    x, y = (points[:, axis].astype(np.float32)[corner] for axis in (0, 1))  # (3, F)
    near = nearness.astype(np.float32)[corner]
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])  # below 0 where it faces the viewer
    low_x, low_y = (np.ceil(np.minimum(np.minimum(c[0], c[1]), c[2]) - 0.5).clip(0) for c in (x, y))
    high_x, high_y = (np.floor(np.maximum(np.maximum(c[0], c[1]), c[2]) - 0.5).clip(None, size - 1) for c in (x, y))
    kept = np.flatnonzero((area < -1e-6) & (high_x >= low_x) & (high_y >= low_y))
    x, y, near, low_x, low_y = x[:, kept], y[:, kept], near[:, kept], low_x[kept], low_y[kept]
    width = high_x[kept] - low_x + 1
    count = (width * (high_y[kept] - low_y + 1)).astype(np.int32)

    # Weights of corners 1 and 2 as affine forms of column and row inside the bounding box.
    inverse = 1 / area[kept]
    dx, dy = low_x + 0.5 - x[0], low_y + 0.5 - y[0]
    w1x, w1y = (y[2] - y[0]) * inverse, (x[0] - x[2]) * inverse
    w2x, w2y = (y[0] - y[1]) * inverse, (x[1] - x[0]) * inverse
    w1, w2 = w1x * dx + w1y * dy, w2x * dx + w2y * dy

    def spread(per_triangle):  # to candidate pixels, (P,); repeating is twice as fast as indexing
        return np.repeat(per_triangle, count)

    pair = spread(np.arange(len(kept), dtype=np.int32))
    local = np.arange(len(pair), dtype=np.float32) - spread((np.cumsum(count) - count).astype(np.float32))
    row = np.floor((local + 0.5) * spread(1 / width))
    column = local - row * spread(width)
    weight1 = spread(w1) + spread(w1x) * column + spread(w1y) * row
    weight2 = spread(w2) + spread(w2x) * column + spread(w2y) * row
    inside = np.flatnonzero((weight1 >= 0) & (weight2 >= 0) & (weight1 + weight2 <= 1))
    pair, weight1, weight2 = pair[inside], weight1[inside], weight2[inside]
    at = ((low_y.take(pair) + row[inside]) * size + low_x.take(pair) + column[inside]).astype(np.int32)
    key = near[0].take(pair) + (near[1] - near[0]).take(pair) * weight1 + (near[2] - near[0]).take(pair) * weight2
    winner = np.full(size * size, -1, np.int32)
    challengers = np.arange(len(key), dtype=np.int32)
    while len(challengers):  # in each round a pixel keeps one challenger, and nearer ones try again
        winner[at[challengers]] = challengers
        challengers = challengers[key[challengers] > key[winner[at[challengers]]]]
    pixels = np.flatnonzero(winner >= 0)
    won = winner[pixels]
    weight1, weight2 = weight1[won], weight2[won]
    return pixels, kept[pair[won]], np.stack([1 - weight1 - weight2, weight1, weight2], axis=1)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals, weighted by triangle area, float32."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)
    index = faces.T.ravel()
    total = [np.bincount(index, np.tile(normal[:, axis], 3), minlength=len(vertices)) for axis in range(3)]
    total = np.stack(total, axis=1)
    return (total / (np.linalg.norm(total, axis=1, keepdims=True) + 1e-12)).astype(np.float32)


def light_reach(
    vertices: np.ndarray, faces: np.ndarray, direction: np.ndarray, softness: float, size: int = SHADOW_SIZE
) -> np.ndarray:
    """(V,) share in [0, 1] of the light from `direction` (unit vector) that reaches each vertex, by a shadow map.

    `softness` in [0, 1] widens the shadow's edge from about one to about five hundredths of the mesh's extent.
    """
    side = np.cross([0.0, 1.0, 0.0] if abs(direction[1]) < 0.9 else [1.0, 0.0, 0.0], direction)
    side /= np.linalg.norm(side)
    axes = np.stack([side, -np.cross(direction, side), direction], axis=1).astype(np.float32)
    plane = vertices.astype(np.float32) @ axes  # (V, 3): right, down, towards the lamp
    low = plane[:, :2].min(axis=0)
    at = (plane[:, :2] - low) * ((size - 1) / (plane[:, :2].max(axis=0) - low).max())
    depth = plane[:, 2]
    pixels, triangles, weights = rasterize(at, depth, faces, size)
    margin = 5
    padded = size + 2 * margin
    shadow_map = np.full(padded * padded, -np.inf, np.float32)
    where = (pixels // size + margin) * padded + pixels % size + margin
    shadow_map[where] = (depth[faces[triangles]] * weights).sum(axis=1)
    spread = (0.6 + 2.4 * softness) * size / SHADOW_SIZE
    reach = np.zeros(len(vertices), np.float32)
    taps = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)]
    for dx, dy in taps:
        column = (at[:, 0] + (dx * spread + margin)).astype(np.int32)
        row = (at[:, 1] + (dy * spread + margin)).astype(np.int32)
        blocker = shadow_map[row * padded + column]
        reach += 1 - ((blocker - depth - 0.05) / 0.08).clip(0, 1)
    return reach / len(taps)
