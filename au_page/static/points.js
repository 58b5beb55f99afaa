// Places the points of a face more exactly than the detector: what au_faces/points.py does, for one face.

import { cutSquare } from "./crop.js";
import { round } from "./resample.js";

const plus = (one, other) => [one[0] + other[0], one[1] + other[1]];
const minus = (one, other) => [one[0] - other[0], one[1] - other[1]];
const times = (one, other) => [one[0] * other[0] - one[1] * other[1], one[0] * other[1] + one[1] * other[0]];

function mean(points) {
  const sum = points.reduce(plus);
  return sum.map((number) => number / points.length);
}

/**
 * A face's {points, pose}: better points, and the head's pose in radians as OpenFace writes it. If the network does not
 * trust its answer or puts an eye outside the picture, the face keeps its points, and the pose is null.
 *
 * @param image as in resample.js.
 * @param guess the person's right eye, left eye, nose, right and left corner of the mouth, as [x, y] in pixels.
 * @param run what the network says of the (1, 3, side, side) crop that it is given: 15 numbers.
 * @param settings {side, template, trusted, passes, digits, above, apart}.
 */
export async function placed(image, guess, run, settings) {
  const { side, template } = settings;
  const parts = 10 ** settings.digits; // of a pixel
  const rounded = (points) => points.map((point) => point.map((number) => round(number * parts) / parts));
  let points = guess;
  let answer, turn;
  for (let pass = 0; pass < settings.passes; pass++) {
    const { edge, corner } = fitFrame(rounded(points), template);
    const length = Math.hypot(...edge);
    const along = edge.map((number) => number / length);
    answer = await run(planes(cutSquare(image, corner, along, length / side, side)), [1, 3, side, side]);
    points = template.map(([x, y], number) =>
      plus(times(edge, [x + answer[2 * number], y + answer[2 * number + 1]]), corner),
    );
    turn = [along[0], -along[1]]; // the picture's y points down, the directions' up
  }
  const confidence = 1 / (1 + Math.exp(-answer[14]));
  points = [...eyeballs(points[0], points[1], settings), ...points.slice(2)];
  const inside = points.slice(0, 2).every(([x, y]) => x >= 0 && y >= 0 && x <= image.width && y <= image.height);
  if (confidence < settings.trusted || !inside) return { points: rounded(guess), pose: null };
  const [ahead, up] = [10, 12].map((place) => times(turn, [answer[place], answer[place + 1]]));
  return { points: rounded(points), pose: headPose(ahead, up) };
}

/** The eyes to crop by, from the middles of the corners of the right and the left eye. */
function eyeballs(right, left, { above, apart }) {
  const across = minus(left, right);
  const middle = minus(mean([right, left]), times([0, above], across));
  const half = across.map((number) => (number * apart) / 2);
  return [minus(middle, half), plus(middle, half)];
}

const dot = (one, other) => one.reduce((sum, number, axis) => sum + number * other[axis], 0);

function unit(direction) {
  const length = Math.hypot(...direction);
  return direction.map((number) => number / length);
}

/** Pitch, yaw and roll of a head, from the x and y of its directions ahead and up in the picture. */
function headPose(ahead, up) {
  const front = unit([...ahead, Math.sqrt(Math.max(1 - dot(ahead, ahead), 0.01))]);
  const leaning = [...up, -dot(front.slice(0, 2), up) / front[2]];
  const slope = dot(leaning, front);
  const top = unit(leaning.map((number, axis) => number - slope * front[axis]));
  const side = top[1] * front[2] - top[2] * front[1]; // x of the direction to the left of the head
  const yaw = Math.asin(Math.min(Math.max(-front[0], -1), 1));
  return [Math.atan2(-front[1], front[2]), yaw, Math.atan2(top[0], side)];
}

/** The crop that fits the points best: its upper edge and its upper left corner. A product turns and scales. */
export function fitFrame(points, template) {
  const middle = mean(template);
  const centered = template.map((place) => minus(place, middle));
  const products = centered.map(([x, y], number) => times([x, -y], points[number]));
  const square = centered.reduce((sum, [x, y]) => sum + x * x + y * y, 0);
  const edge = products.reduce(plus).map((number) => number / square);
  return { edge, corner: minus(mean(points), times(edge, middle)) };
}

/** Red, then green, then blue, from 0 to 255. */
function planes({ width, height, pixels }) {
  const area = width * height;
  return Float32Array.from({ length: 3 * area }, (_, place) => pixels[3 * (place % area) + Math.floor(place / area)]);
}
