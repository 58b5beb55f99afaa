// Reads pictures, beside the page, so that the page never stands still.
//
// From the page: {settings, weights} once, then {picture (ImageBitmap), live, chosen} for each picture or frame. To the
// page: {ready}, then for each picture {picture, faces, times}; or {problem}, a sentence. Faces have box, points (the eyes
// first) and confidence; those that were read also have crop, answers and contradictions, a pose and better points.

import { cropFace } from "./crop.js";
import { Engine } from "./engine.js";
import { Follower } from "./follow.js";
import { placed } from "./points.js";
import { answerOf, contradictions, pixelValues } from "./reading.js";
import { glance, survey } from "./yunet.js";

let engine;
let follower = new Follower();

self.onmessage = async ({ data }) => {
  try {
    if (data.settings) {
      engine = await Engine.load(data.settings, data.weights);
      self.postMessage({ ready: { kind: engine.kind, threads: engine.threads } });
    } else {
      const answer = await (data.live ? readFrame(data) : readPicture(data));
      self.postMessage({ ...answer, picture: data.picture }, [data.picture]);
    }
  } catch (error) {
    self.postMessage({ problem: error.message });
  }
};

/** All faces of a picture, searched for as in Python; all are read. */
async function readPicture({ picture }) {
  follower = new Follower();
  const image = pixelsOf(picture);
  const faces = await survey(image, detect, engine.settings.detector);
  for (const [number, face] of faces.entries()) Object.assign(face, { face_id: number }, await read(image, face));
  return { faces };
}

/** The faces of a frame; only the chosen one is read, or the largest. */
async function readFrame({ picture, chosen, restart }) {
  if (restart) follower = new Follower();
  const begun = performance.now();
  const image = pixelsOf(picture);
  const faces = follower.number(await glance(image, detect, engine.settings.detector));
  const found = performance.now();
  const face = faces.find((face) => face.face_id === chosen) ?? faces[0];
  if (face) Object.assign(face, await read(image, face));
  return { faces, times: { find: found - begun, read: performance.now() - found } };
}

const detect = (values, shape) => engine.detect(values, shape);

async function read(image, face) {
  const { crop: geometry, input, formats, band, contradictions: rules } = engine.settings;
  const look = (values, shape) => engine.place(values, shape);
  const { points, pose } = await placed(image, face.points, look, engine.settings.points);
  const crop = cropFace(image, points, geometry);
  const shares = await engine.distributions(pixelValues(crop, input));
  const answers = Object.fromEntries(
    formats.map((format) => [format.name, answerOf(shares[format.name], format, band)]),
  );
  return { points, pose, crop, answers, contradictions: contradictions(answers, rules) };
}

/** Red, green and blue of a bitmap, over white. */
function pixelsOf(picture) {
  const { width, height } = picture;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    pixels[to] = data[from];
    pixels[to + 1] = data[from + 1];
    pixels[to + 2] = data[from + 2];
  }
  return { width, height, pixels };
}
