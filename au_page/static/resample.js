// Resampling as Pillow does it, to the same bits: `Image.resize` and `Image.transform` of RGB pictures.
//
// A picture is {width, height, pixels}: a Uint8Array of red, green, blue, row by row. Python crops faces with Pillow,
// and the model's answers are only the same for the same pixels, which a canvas would not give.

const BITS = 22; // of a weight, as in Pillow's Resample.c

export const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bicubic: {
    support: 2,
    weight: (x) => {
      const far = Math.abs(x);
      if (far < 1) return (1.5 * far - 2.5) * far * far + 1;
      return far < 2 ? (((far - 5) * far + 8) * far - 4) * -0.5 : 0;
    },
  },
};

/** Half to the even side, as Python's round. */
export function round(number) {
  const floor = Math.floor(number);
  if (number - floor !== 0.5) return Math.round(number);
  return floor % 2 ? floor + 1 : floor;
}

/** For each pixel of a side of `wanted` pixels: the first pixel of the `given` that it is made of, and the weights. */
function weights(given, wanted, filter) {
  const scale = given / wanted;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  return Array.from({ length: wanted }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(given, Math.trunc(center + support + 0.5));
    const shares = Array.from({ length: last - first }, (_, step) =>
      filter.weight((step + first - center + 0.5) / stretch),
    );
    const total = shares.reduce((sum, share) => sum + share, 0);
    const whole = shares.map((share) => {
      const exact = (share / total) * 2 ** BITS;
      return Math.trunc(exact + (exact < 0 ? -0.5 : 0.5));
    });
    return [first, Int32Array.from(whole)];
  });
}

function clipped(sum) {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** One direction: lines lie `across` bytes apart, the pixels of a line `along` bytes. */
function resizeLines(pixels, places, lines, from, to) {
  const result = new Uint8Array(lines * places.length * 3);
  for (let place = 0; place < places.length; place++) {
    const [first, shares] = places[place];
    for (let line = 0; line < lines; line++) {
      let red = 1 << (BITS - 1);
      let green = red;
      let blue = red;
      let at = line * from.across + first * from.along;
      for (let step = 0; step < shares.length; step++, at += from.along) {
        red += pixels[at] * shares[step];
        green += pixels[at + 1] * shares[step];
        blue += pixels[at + 2] * shares[step];
      }
      const out = line * to.across + place * to.along;
      result[out] = clipped(red);
      result[out + 1] = clipped(green);
      result[out + 2] = clipped(blue);
    }
  }
  return result;
}

/** `Image.resize` with one of `FILTERS`. */
export function resize(image, width, height, filter) {
  let { pixels } = image;
  if (width !== image.width) {
    const places = weights(image.width, width, filter);
    const [from, to] = [image.width, width].map((side) => ({ across: 3 * side, along: 3 }));
    pixels = resizeLines(pixels, places, image.height, from, to);
  }
  if (height !== image.height) {
    const places = weights(image.height, height, filter);
    const way = { across: 3, along: 3 * width };
    pixels = resizeLines(pixels, places, width, way, way);
  }
  return { width, height, pixels };
}

function cubic(v1, v2, v3, v4, d) {
  return v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 + v4 - v3)));
}

const within = (place, side) => Math.min(Math.max(place, 0), side - 1);

/** `Image.transform` to a square by (a, b, c, d, e, f): it shows at (x, y) what lies at (ax + by + c, dx + ey + f). */
export function affine(image, side, [a, b, c, d, e, f]) {
  const { width, height, pixels } = image;
  const result = new Uint8Array(side * side * 3);
  const columns = new Int32Array(4); // where the 4 x 4 pixels around a place lie
  const rows = new Int32Array(4);
  const lines = new Float64Array(4);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      const x = a * (column + 0.5) + b * (row + 0.5) + c;
      const y = d * (column + 0.5) + e * (row + 0.5) + f;
      if (x < 0 || x >= width || y < 0 || y >= height) continue; // black
      const left = Math.floor(x - 0.5);
      const top = Math.floor(y - 0.5);
      for (let step = 0; step < 4; step++) {
        columns[step] = 3 * within(left + step - 1, width);
        rows[step] = 3 * width * within(top + step - 1, height);
      }
      for (let channel = 0; channel < 3; channel++) {
        for (let line = 0; line < 4; line++) {
          const at = rows[line] + channel;
          const first = pixels[at + columns[0]];
          const second = pixels[at + columns[1]];
          lines[line] = cubic(first, second, pixels[at + columns[2]], pixels[at + columns[3]], x - 0.5 - left);
        }
        const value = cubic(lines[0], lines[1], lines[2], lines[3], y - 0.5 - top);
        result[3 * (row * side + column) + channel] = Math.min(Math.max(value, 0), 255); // the rest is cut off
      }
    }
  }
  return { width: side, height: side, pixels: result };
}
