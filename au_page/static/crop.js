// The crop of a face: square, the eyes level and in fixed places. The same steps as au_faces/crop.py.

import { FILTERS, affine, resize, round } from "./resample.js";

/**
 * Crop one face.
 *
 * @param image as in resample.js.
 * @param eyes the person's right eye, then the left one, as [x, y] in pixels.
 * @param settings {size, eye_distance, eye_height}: the crop's side in pixels, the rest in shares of it.
 */
export function cropFace(image, [right, left], { size, eye_distance, eye_height }) {
  const apart = [left[0] - right[0], left[1] - right[1]];
  const distance = Math.hypot(...apart);
  if (!(distance >= 1)) throw new Error("The eyes are less than a pixel apart.");
  const along = [apart[0] / distance, apart[1] / distance];
  const down = [-along[1], along[0]];
  const scale = distance / (eye_distance * size);
  const corner = [0, 1].map(
    (axis) => (left[axis] + right[axis]) / 2 - scale * size * (0.5 * along[axis] + eye_height * down[axis]),
  );
  return cutSquare(image, corner, along, scale, size);
}

/** The square of `side` pixels, each `scale` pixels of the picture, from `corner` on; its upper edge runs `along`. */
export function cutSquare(image, corner, along, scale, side) {
  const down = [-along[1], along[0]];
  const edges = [0, 1].map((axis) => {
    const reach = [0, along[axis], down[axis], along[axis] + down[axis]].map((step) => corner[axis] + scale * side * step);
    return [Math.floor(Math.min(...reach)) - 2, Math.ceil(Math.max(...reach)) + 2]; // two for the interpolation
  });
  const lowest = edges.map(([low]) => low);
  let region = withBorder(image, lowest, edges.map(([, high]) => high));
  const whole = [region.width, region.height];
  const shrink = Math.max(scale, 1);
  if (shrink > 1) {
    const small = whole.map((length) => Math.max(1, round(length / shrink)));
    region = resize(region, ...small, FILTERS.bicubic);
  }
  const shrunk = [region.width / whole[0], region.height / whole[1]];
  const place = [0, 1].map((axis) => (corner[axis] - lowest[axis]) * shrunk[axis]);
  const steps = [0, 1].map((axis) => [scale * along[axis] * shrunk[axis], scale * down[axis] * shrunk[axis]]);
  return affine(region, side, [...steps[0], place[0], ...steps[1], place[1]]);
}

/** The rectangle from `lowest` to `highest` ([x, y]); beyond the picture its border is repeated. */
function withBorder(image, lowest, highest) {
  const [width, height] = [highest[0] - lowest[0], highest[1] - lowest[1]];
  const pixels = new Uint8Array(width * height * 3);
  const first = Math.min(Math.max(lowest[0], 0), image.width - 1);
  const last = Math.min(Math.max(highest[0] - 1, 0), image.width - 1);
  for (let y = 0; y < height; y++) {
    const row = 3 * image.width * Math.min(Math.max(lowest[1] + y, 0), image.height - 1);
    const start = 3 * y * width;
    const inside = image.pixels.subarray(row + 3 * first, row + 3 * last + 3);
    pixels.set(inside, start + 3 * (first - lowest[0]));
    for (let x = 0; x < first - lowest[0]; x++) pixels.set(inside.subarray(0, 3), start + 3 * x);
    for (let x = last - lowest[0] + 1; x < width; x++) pixels.set(inside.subarray(-3), start + 3 * x);
  }
  return { width, height, pixels };
}
