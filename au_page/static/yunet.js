// Finds faces with YuNet: what au_faces/detect.py does, for one picture. The constants come from there.

import { FILTERS, resize, round } from "./resample.js";

/** The size of a picture for a search, its longer side shrunk to `longest` pixels. */
function searchedSize({ width, height }, longest, shortest) {
  const scale = Math.min(longest / Math.max(width, height), Math.max(1, shortest / Math.min(width, height)));
  return [width, height].map((side) => Math.max(1, round(side * scale)));
}

/** The network's input, blue first, padded with zeros to the grid. */
export function networkInput(image, grid) {
  const [width, height] = [image.width, image.height].map((side) => Math.ceil(side / grid) * grid);
  const data = new Float32Array(3 * width * height);
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < image.height; y++) {
      const to = (channel * height + y) * width;
      const from = 3 * y * image.width + 2 - channel;
      for (let x = 0; x < image.width; x++) data[to + x] = image.pixels[from + 3 * x];
    }
  }
  return { data, shape: [1, 3, height, width] };
}

const share = (number) => Math.min(Math.max(number, 0), 1);

/**
 * What the network's answers say, as OpenCV's FaceDetectorYN reads them: faces, and what might be one, as {box, points,
 * confidence}, the most confident first, in pixels of the picture that was searched.
 *
 * @param answers output's name -> its numbers.
 * @param width of the padded picture.
 */
export function facesOf(answers, width, settings) {
  const faces = [];
  for (const stride of settings.strides) {
    const columns = width / stride;
    const [ofClass, ofObject, boxes, points] = ["cls", "obj", "bbox", "kps"].map((name) => answers[`${name}_${stride}`]);
    for (let place = 0; place < ofClass.length; place++) {
      const confidence = Math.sqrt(share(ofClass[place]) * share(ofObject[place]));
      if (confidence < settings.suspected) continue;
      const [x, y] = [place % columns, Math.floor(place / columns)];
      const [dx, dy, wide, tall] = boxes.subarray(4 * place, 4 * place + 4);
      const [width, height] = [Math.exp(wide), Math.exp(tall)];
      const point = (number) => [
        stride * (x + points[10 * place + 2 * number]),
        stride * (y + points[10 * place + 2 * number + 1]),
      ];
      const box = [x + dx - width / 2, y + dy - height / 2, width, height].map((number) => stride * number);
      faces.push({ box, points: [0, 1, 2, 3, 4].map(point), confidence });
    }
  }
  faces.sort((one, other) => other.confidence - one.confidence);
  const kept = [];
  for (const face of faces) {
    if (kept.every((other) => overlap(face.box, other.box) <= settings.max_overlap)) kept.push(face);
  }
  return kept;
}

/** Intersection over union of two boxes [left, top, width, height]. */
export function overlap(one, other) {
  const [width, height] = [0, 1].map((axis) =>
    Math.max(Math.min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - Math.max(one[axis], other[axis]), 0),
  );
  const shared = width * height;
  return shared / (one[2] * one[3] + other[2] * other[3] - shared);
}

/** The usable faces, and what might be one, in a picture whose longer side is shrunk to `longest` pixels. */
export async function search(image, longest, run, settings) {
  const [width, height] = searchedSize(image, longest, settings.shortest_side);
  const ratio = [image.width / width, image.height / height];
  const filter = width < image.width || height < image.height ? FILTERS.box : FILTERS.bicubic;
  const { data, shape } = networkInput(resize(image, width, height, filter), settings.grid);
  const scaled = (numbers) => numbers.map((number, axis) => number * ratio[axis % 2]);
  return facesOf(await run(data, shape), shape[3], settings)
    .map((face) => ({
      box: scaled(face.box),
      points: face.points.map(scaled),
      confidence: face.confidence,
      shown: Math.max(face.box[2], face.box[3]),
    }))
    .filter((face) => isUsable(face, image, settings));
}

function isUsable({ box, points }, { width, height }, { min_face }) {
  const inside = points.slice(0, 2).every(([x, y]) => x >= 0 && y >= 0 && x <= width && y <= height);
  return Math.min(box[2], box[3]) >= min_face && inside;
}

/** Whether the point between the eyes of a face lies in the box of another. */
function isAmong({ points }, others) {
  const [x, y] = [0, 1].map((axis) => (points[0][axis] + points[1][axis]) / 2);
  return others.some(({ box: [left, top, width, height] }) => left <= x && x <= left + width && top <= y && y <= top + height);
}

/** The faces of several searches that are sure, each once, the largest first; earlier searches count more. */
function merged(searches, settings) {
  const sure = searches.flat().filter(({ confidence }) => confidence >= settings.min_confidence);
  const tooLarge = ({ shown }) => shown > settings.largest_face; // for the search that found it
  const faces = [];
  for (const face of [...sure.filter((face) => !tooLarge(face)), ...sure.filter(tooLarge)]) {
    if (!isAmong(face, faces)) faces.push(face);
  }
  return faces.sort((one, other) => other.box[2] * other.box[3] - one.box[2] * one.box[3]);
}

/** The faces of a picture, as `YuNet.survey` finds them; but what might be a small face has all searched finely. */
export async function survey(image, run, settings) {
  const look = (longest) => search(image, longest, run, settings);
  const smallest = (found) => Math.min(...found.map(({ shown }) => shown));
  const usual = await look(settings.usual);
  const large = Math.max(...usual.map(({ shown }) => shown)) > settings.large_face;
  const near = large || !merged([usual], settings).length ? await look(settings.near) : [];
  const faces = merged([usual, near], settings);
  if (Math.max(image.width, image.height) <= settings.usual) return faces;
  if (smallest(faces) < settings.small_face || !faces.length) return merged([await look(settings.fine), near], settings);
  const suspected = usual.filter((face) => !isAmong(face, faces));
  if (smallest(suspected) < settings.small_face) return merged([usual, near, await look(settings.fine)], settings);
  return faces;
}

/** The faces of a live picture: of one fast search. */
export async function glance(image, run, settings) {
  return merged([await search(image, settings.near, run, settings)], settings);
}
