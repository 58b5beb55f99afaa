// The table of what was read, with the columns of au_recognition/tables.py, which come with the settings.

/** One line of CSV for a face, or for a frame without one (`face` is null). */
export function row(place, face, columns) {
  const cells = { file: place.file, frame: place.frame, timestamp: place.time };
  if (face) {
    const round = (digits) => (number) => Number(number.toFixed(digits));
    const eyes = face.points.slice(0, 2).flat().map(round(2));
    const [confidence] = [face.confidence].map(round(4));
    Object.assign(cells, { face_id: face.face_id, success: 1, confidence, FaceScore: confidence });
    columns.box.forEach((name, number) => (cells[name] = round(2)(face.box[number])));
    columns.eyes.forEach((name, number) => (cells[name] = eyes[number]));
    columns.pose.forEach((name, number) => (cells[name] = face.pose && round(4)(face.pose[number])));
    for (const [name, [format, number, kind]] of Object.entries(columns.aus)) {
      cells[name] = Number(face.answers[format][kind][number]);
    }
  } else {
    Object.assign(cells, { success: 0, confidence: 0 });
  }
  return line(names(columns).map((name) => cells[name] ?? ""));
}

const names = (columns) => [...columns.face, ...Object.keys(columns.aus)];

const line = (cells) => `${cells.map(quoted).join(",")}\r\n`;

function quoted(cell) {
  const text = String(cell);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Let the browser save the lines as a file. */
export function save(name, lines, columns) {
  const content = new Blob([line(names(columns)), ...lines], { type: "text/csv" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
