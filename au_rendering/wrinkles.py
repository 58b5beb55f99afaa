"""Wrinkles: the furrows that action units make, and the lines of a face at rest."""

from collections.abc import Mapping

import numpy as np

from au_llava.au_rendering.appearance import RestLines
from au_llava.au_rendering.masks import bump, ridges, smoothstep


def wrinkles(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, strengths: Mapping[str, float], rest: RestLines
) -> np.ndarray:
    """(N,) darkening of the skin in [0, 0.75] at mean-face coordinates (N,): furrows that AUs make, and lines at rest.

    They are drawn where FACS describes them, not simulated; amounts were chosen by eye.
    """
    darkening = np.zeros_like(x)

    def strength(label):
        return np.float32(strengths.get(label, 0.0))

    def sided(label, on_left):
        left, right = strength(label + "L"), strength(label + "R")
        return np.where(on_left, left, right) if left != right else left

    def near(condition):
        where = np.flatnonzero(condition)
        return where, np.abs(x[where]), y[where], x[where] > 0

    # Forehead: horizontal lines over the inner (AU1) and the outer brow (AU2); frown lines between the brows (AU4).
    where, ax, ay, left = near((y > 0.15) & (y < 1.0) & (z > -0.4))
    middle = bump(ax, 0, 0.38)
    raised = middle * strength("AU1") + (1 - middle) * sided("AU2", left) * bump(ax, 0.7, 0.32)
    raised += np.float32(0.6 * rest.forehead)
    lines = (
        ridges((ay - 0.06 * np.cos(ax * 4)) * np.float32(rest.spacing) + np.float32(rest.phase), 5)
        * smoothstep(0.42, 0.52, ay)
        * smoothstep(0.95, 0.8, ay)
    )
    frown = bump(ax, 0.085, 0.024) * bump(ay, 0.30, 0.13)
    darkening[where] += 0.40 * raised * lines + (0.60 * sided("AU4", left) + 0.35 * np.float32(rest.frown)) * frown

    # Nose: lines across its root and along its sides (AU9).
    if strength("AU9"):
        where, ax, ay, left = near((np.abs(x) < 0.4) & (y > -0.6) & (y < 0.35))
        root = ridges((ay + 0.9 * ax**2) * 11.8, 3) * bump(ax, 0, 0.16) * bump(ay, 0.02, 0.13)
        sides = ridges((ax + 0.7 * ay) * 13.3, 3) * bump(ax, 0.20, 0.07) * bump(ay, -0.22, 0.13)
        darkening[where] += strength("AU9") * (0.50 * root + 0.45 * sides)

    # Eyes: crow's feet and the bag under the eye (AU6), the tight line under the lower lid (AU7).
    where, ax, ay, left = near((np.abs(x) > 0.15) & (np.abs(x) < 1.15) & (y > -0.45) & (y < 0.25))
    cheek = sided("AU6", left)
    feet = ridges(np.arctan2(ay + 0.02, ax - 0.62) * 2.4, 3) * bump(np.hypot(ax - 0.62, ay + 0.02), 0.25, 0.09)
    bag = bump(ay - 0.25 * (ax - 0.5) ** 2, -0.27, 0.022) * bump(ax, 0.48, 0.25)
    tight = bump(ay - 0.45 * (ax - 0.5) ** 2, -0.16, 0.016) * bump(ax, 0.5, 0.20)
    darkening[where] += (0.50 * cheek + 0.3 * np.float32(rest.eyes)) * feet * (ax > 0.66)
    darkening[where] += (0.35 * cheek + 0.35 * np.float32(rest.bags)) * bag
    darkening[where] += 0.50 * sided("AU7", left) * tight

    where, ax, ay, left = near((np.abs(x) < 0.9) & (y > -1.75) & (y < -0.55) & (z > -0.7))
    # From the wing of the nose to beside the mouth (AU12), its upper end alone (AU9, AU10).
    fold_x = 0.30 + 0.22 * ((-0.72 - ay) * (1 / 0.42)).clip(0, 1.2) ** np.float32(0.8)
    fold = bump(ax - fold_x, 0, 0.028) * smoothstep(-1.28, -1.05, ay) * smoothstep(-0.66, -0.78, ay)
    smile = np.maximum(sided("AU12", left), 0.6 * strength("AU10"))
    upper = np.maximum(strength("AU9"), strength("AU10")) * smoothstep(-1.0, -0.85, ay)
    furrow = (0.42 * smile + 0.35 * np.float32(rest.nose) + 0.35 * upper) * fold
    furrow += 0.65 * sided("AU14", left) * bump(ax, 0.47, 0.030) * bump(ay, -1.12, 0.085)  # dimple
    drooping = bump(ax + 0.35 * (ay + 1.16), 0.40, 0.028) * bump(ay, -1.24, 0.08)  # below the corner
    furrow += (0.45 * sided("AU15", left) + 0.2 * np.float32(rest.mouth)) * drooping
    if strength("AU20L") or strength("AU20R"):
        furrow += (
            0.40 * sided("AU20", left) * ridges((ax - 0.1 * ay) * 10, 3) * bump(ax, 0.6, 0.11) * bump(ay, -1.15, 0.16)
        )
    if strength("AU17"):  # pitted chin
        pits = (0.5 + 0.5 * np.cos(ax * 47) * np.cos(ay * 43)) ** 2
        furrow += 0.30 * strength("AU17") * pits * bump(ax, 0, 0.24) * bump(ay, -1.52, 0.11)
    if strength("AU18") or strength("AU23"):  # radial lines round the lips: pursed in the middle, tight all along
        rims = bump(ay, -0.93, 0.05) + bump(ay, -1.33, 0.05)
        furrow += 0.35 * strength("AU18") * ridges(ax * 13.3, 3) * rims * bump(ax, 0, 0.28)
        furrow += 0.55 * strength("AU23") * ridges(ax * 13.3, 5) * rims * bump(ax, 0, 0.38)
    if strength("AU24"):  # skin bulges above and below the pressed lips: a furrow behind each bulge, and at the corners
        behind = bump(ay + 0.3 * ax**2, -0.97, 0.022) + bump(ay - 0.4 * ax**2, -1.30, 0.026)
        corners = bump(ax, 0.40, 0.028) * bump(ay, -1.12, 0.06)
        furrow += strength("AU24") * (0.45 * behind * smoothstep(0.36, 0.22, ax) + 0.45 * corners)
    darkening[where] += furrow
    return darkening.clip(0, 0.75)
