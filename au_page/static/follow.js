// Which face of a frame is which face of the frame before: by place alone, the nearest first.

import { overlap } from "./yunet.js";

const SAME_PLACE = 0.3; // intersection over union, as in au_faces/follow.py
const FORGOTTEN = 20; // frames after which a face that left is another one

export class Follower {
  #known = new Map(); // number -> {box, seen}
  #frame = 0;
  #next = 0;

  /** Give each face its `face_id`, from 0 in the order of appearance. */
  number(faces) {
    this.#frame += 1;
    const pairs = [];
    for (const face of faces) {
      for (const [number, { box }] of this.#known) pairs.push([overlap(face.box, box), face, number]);
    }
    pairs.sort(([one], [other]) => other - one);
    const taken = new Map(); // face -> number
    for (const [share, face, number] of pairs) {
      if (share >= SAME_PLACE && !taken.has(face) && ![...taken.values()].includes(number)) taken.set(face, number);
    }
    for (const face of faces) {
      face.face_id = taken.has(face) ? taken.get(face) : this.#next++;
      this.#known.set(face.face_id, { box: face.box, seen: this.#frame });
    }
    for (const [number, { seen }] of this.#known) {
      if (this.#frame - seen > FORGOTTEN) this.#known.delete(number);
    }
    return faces;
  }
}
