// What the page shows of a reading: the picture with its faces, the crop, the tables, the contradictions.
//
// Nothing is told by color alone: what is present is also bold, and named for screen readers.

const STROKE = 3; // of a box, in pixels of the screen

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Draw the picture with a box around each face; the box of face `chosen` is the thickest. */
export function drawPicture(canvas, picture, faces, chosen) {
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const unit = Math.max(1, picture.width / (canvas.clientWidth || picture.width));
  const color = getComputedStyle(canvas).getPropertyValue("--present");
  for (const { box, face_id } of faces) {
    const width = STROKE * unit * (face_id === chosen ? 1 : 0.6);
    for (const [style, more] of [["white", 2 * unit], [color, 0]]) {
      context.strokeStyle = style;
      context.lineWidth = width + more;
      context.strokeRect(...box);
    }
    if (faces.length > 1) {
      context.font = `600 ${15 * unit}px system-ui, sans-serif`;
      context.lineWidth = 4 * unit;
      context.strokeStyle = "white";
      context.fillStyle = "black";
      const place = [box[0] + 2 * unit, box[1] - 6 * unit > 12 * unit ? box[1] - 6 * unit : box[1] + 16 * unit];
      context.strokeText(`face ${face_id}`, ...place);
      context.fillText(`face ${face_id}`, ...place);
    }
  }
}

export function drawCrop(canvas, { width, height, pixels }) {
  [canvas.width, canvas.height] = [width, height];
  const data = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) data.set(pixels.subarray(from, from + 3), to);
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

/** A table for each format, made once and filled with every reading. */
export class Tables {
  #rows = new Map(); // format's name -> its rows, each a function of an answer

  constructor(place, formats) {
    for (const format of formats) place.append(this.#section(format));
  }

  #section(format) {
    const graded = format.scale !== "occurrence";
    const numbers = graded ? ["expected", "probability"] : ["probability"];
    const names = { expected: "mean", probability: "prob." };
    const head = element("tr", {}, element("th", { scope: "col", textContent: "action unit" }), element("td"));
    for (const kind of numbers) {
      head.append(element("th", { scope: "col", className: "number", textContent: names[kind] }));
    }
    const body = element("tbody");
    this.#rows.set(format.name, format.labels.map((_, place) => this.#row(body, format, place, numbers)));
    const title = element("h2", {}, `${format.name} `, element("span", { className: "quiet", textContent: format.heading }));
    return element("section", {}, title, element("table", {}, element("thead", {}, head), body));
  }

  #row(body, format, place, numbers) {
    const top = format.values.at(-1);
    const digits = { expected: format.scale === "intensity" ? 1 : 2, probability: 2 };
    const said = element("span", { className: "hidden" });
    const name = element("span", { className: "quiet", textContent: format.names[place] });
    const bar = element("div", { className: "bar" });
    const band = element("div", { className: "band", hidden: format.scale === "occurrence" });
    const track = element("div", { className: "track" }, bar, band);
    track.setAttribute("aria-hidden", "true");
    const label = element("th", { scope: "row", title: format.definitions[place] }, `${format.labels[place]} `, name, said);
    const cells = numbers.map((kind) => [kind, element("td", { className: "number" })]);
    const row = element("tr", {}, label, element("td", { className: "wide" }, track), ...cells.map(([, cell]) => cell));
    body.append(row);
    return (answer) => {
      row.className = answer?.present[place] ? "present" : "";
      said.textContent = answer?.present[place] ? ", present" : "";
      const percent = (kind) => (answer ? (100 * answer[kind][place]) / top : 0);
      bar.style.width = `${percent(format.measure)}%`;
      band.style.left = `${percent("low")}%`;
      band.style.width = `${percent("high") - percent("low")}%`;
      for (const [kind, cell] of cells) cell.textContent = answer ? answer[kind][place].toFixed(digits[kind]) : "";
    };
  }

  /** Show the answers about a face; nothing, if there are none. */
  show(answers) {
    for (const [name, rows] of this.#rows) for (const fill of rows) fill(answers?.[name]);
  }
}

export function showContradictions(place, sentences = []) {
  const shown = sentences.map((sentence) => element("li", { textContent: sentence }));
  place.replaceChildren(...(shown.length ? [element("p", { textContent: "The formats contradict each other:" }), element("ul", {}, ...shown)] : []));
}

/** Radio buttons for the faces, if there are several. Calls `choose` with the number of the chosen one. */
export function showFaces(fieldset, faces, chosen, choose) {
  fieldset.hidden = faces.length < 2;
  const numbers = faces.map(({ face_id }) => face_id).sort((one, other) => one - other);
  const shown = [...fieldset.querySelectorAll("input")];
  if (shown.map(({ value }) => value).join() === numbers.join()) {
    for (const input of shown) input.checked = Number(input.value) === chosen;
    return;
  }
  const focused = fieldset.contains(document.activeElement);
  const labels = numbers.map((number) => {
    const input = element("input", { type: "radio", name: "face", value: number, checked: number === chosen });
    input.addEventListener("change", () => choose(number));
    return element("label", {}, input, ` face ${number}`);
  });
  fieldset.replaceChildren(fieldset.querySelector("legend"), ...labels);
  if (focused) fieldset.querySelector(":checked")?.focus();
}

export function exampleButton({ file, name }, open) {
  const button = element("button", { type: "button" }, element("img", { src: file, alt: "", width: 44, height: 44 }), name);
  button.addEventListener("click", () => open(file));
  return button;
}
