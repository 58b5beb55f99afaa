// Where pictures come from: the camera, a video, a picture. Errors are sentences.

const MOST_PIXELS = 50e6;
const CAMERA = { video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "user" }, audio: false };
const REFUSALS = {
  NotAllowedError: "The camera is not allowed: allow it for this page in the browser, or open a picture or a video.",
  NotFoundError: "No camera was found: connect one, or open a picture or a video.",
  NotReadableError: "The camera cannot be used, perhaps because another program uses it: close that, and try again.",
};

/** The picture in a file, upright. */
export async function openPicture(file, name) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${name} is not a picture or video that this browser can read.`);
  });
  const pixels = picture.width * picture.height;
  if (pixels > MOST_PIXELS) {
    const [million, most] = [pixels, MOST_PIXELS].map((number) => Math.round(number / 1e6));
    throw new Error(`${name} has ${million} million pixels, more than ${most}: make it smaller.`);
  }
  return picture;
}

export const isVideo = ({ type, name = "" }) => type.startsWith("video/") || /\.(mp4|m4v|mov|webm|mkv|ogv)$/i.test(name);

/** Frames of a video or of the camera, whatever comes while one is read being left out. */
export class Frames {
  #video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  #stopped = false;

  static async ofCamera() {
    if (!navigator.mediaDevices) {
      throw new Error("The browser gives the camera only to pages of https and of localhost: open a picture or a video.");
    }
    const frames = new Frames();
    frames.stream = await navigator.mediaDevices.getUserMedia(CAMERA).catch((error) => {
      throw new Error(REFUSALS[error.name] ?? `The camera cannot be used: ${error.message}`);
    });
    const [track] = frames.stream.getVideoTracks();
    track.addEventListener("ended", () => frames.stop());
    frames.#video.srcObject = frames.stream;
    await frames.#video.play();
    return frames;
  }

  static async ofVideo(file) {
    const frames = new Frames();
    frames.#video.src = URL.createObjectURL(file);
    await frames.#video.play().catch(() => {
      frames.stop();
      throw new Error(`${file.name} is not a picture or video that this browser can read.`);
    });
    if (!frames.#video.videoWidth) {
      frames.stop();
      throw new Error(`${file.name} holds no moving pictures that this browser can show.`);
    }
    return frames;
  }

  /** The next frame, as {picture, time in seconds}; null at the end. */
  async next() {
    const video = this.#video;
    while (!this.#stopped && !video.ended) {
      if (video.error) throw new Error("The video breaks off here: it is damaged, or this browser cannot read on.");
      const time = await this.#shown();
      if (time !== null && video.videoWidth) return { picture: await createImageBitmap(video), time };
    }
    return null;
  }

  /** Wait for another frame; its time, or null after a while without one. */
  #shown() {
    return new Promise((resolve) => {
      const video = this.#video;
      const late = setTimeout(() => resolve(null), 500);
      const come = (time) => {
        clearTimeout(late);
        resolve(time);
      };
      if (video.requestVideoFrameCallback) video.requestVideoFrameCallback((_, { mediaTime }) => come(mediaTime));
      else requestAnimationFrame(() => come(video.currentTime));
    });
  }

  stop() {
    this.#stopped = true;
    this.#video.pause();
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    if (this.#video.src) URL.revokeObjectURL(this.#video.src);
  }
}
