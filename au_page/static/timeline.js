// The last seconds as a heat map: a row for each AU, from left to right in time.

const SPAN = 30; // seconds shown
const ROW = 15; // pixels of the screen, and of the letters a little less
const LABELS = 56;

export class Timeline {
  #moments = []; // {time, answers}; answers are null where no face was seen

  constructor(canvas) {
    this.canvas = canvas;
  }

  clear() {
    this.#moments = [];
  }

  add(time, answers) {
    this.#moments.push({ time, answers });
    while (this.#moments[0].time < time - SPAN) this.#moments.shift();
  }

  draw(format) {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = ROW * (format.labels.length + 1.4);
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    canvas.style.height = `${height}px`;
    canvas.setAttribute("aria-label", `${format.name}, ${format.heading}, of the last ${SPAN} seconds`);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const color = (name) => getComputedStyle(canvas).getPropertyValue(`--${name}`);
    context.fillStyle = color("ground");
    context.fillRect(LABELS, 0, width - LABELS, ROW * format.labels.length);
    const end = Math.max(SPAN, this.#moments.at(-1)?.time ?? 0);
    const x = (time) => LABELS + ((time - end + SPAN) / SPAN) * (width - LABELS);
    context.fillStyle = color("present");
    const edge = (time) => Math.round(x(time) * ratio) / ratio; // on a pixel: halves would overlap
    this.#moments.forEach(({ time, answers }, place) => {
      const next = this.#moments[place + 1]?.time ?? time + 0.1;
      if (!answers) return;
      answers[format.name][format.measure].forEach((number, row) => {
        context.globalAlpha = Math.min(number / format.values.at(-1), 1);
        context.fillRect(edge(time), ROW * row + 1, edge(Math.min(next, time + 1)) - edge(time), ROW - 1);
      });
    });
    context.globalAlpha = 1;
    context.fillStyle = color("ink");
    context.font = `${ROW - 3.5}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    format.labels.forEach((label, row) => context.fillText(label, 0, ROW * (row + 0.55)));
    context.textAlign = "right";
    context.fillText(`${end.toFixed(0)} s`, width, ROW * (format.labels.length + 0.8));
    context.textAlign = "left";
    context.fillText(`${(end - SPAN).toFixed(0)} s`, LABELS, ROW * (format.labels.length + 0.8));
  }
}
