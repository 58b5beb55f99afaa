"""Smooth functions of a place on the face, from which paint, brows and wrinkles are made."""

import numpy as np


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between; falling if `low` is above `high`."""
    t = ((value - low) * (1 / (high - low))).clip(0, 1)
    return t * t * (3 - 2 * t)


def bump(value: np.ndarray, center: float, width: float) -> np.ndarray:
    """1 at `center`, falling to both sides like a Gaussian."""
    return np.exp(-(((value - center) * (1 / width)) ** 2))


def ridges(phase: np.ndarray, sharpness: int) -> np.ndarray:
    """Lines at whole numbers of `phase`."""
    return (0.5 + 0.5 * np.cos(phase * np.float32(2 * np.pi))) ** sharpness
