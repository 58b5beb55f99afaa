// The page: its buttons, what is read when, and what is shown of it.

import { Frames, isVideo, openPicture } from "./sources.js";
import { row, save } from "./table.js";
import { Timeline } from "./timeline.js";
import { Tables, drawCrop, drawPicture, exampleButton, showContradictions, showFaces } from "./view.js";

const $ = (name) => document.getElementById(name);
const CAMERA = "camera"; // in the column `file`
const PACE = 20; // frames over which the speed is measured
const UNSEEN = 10; // frames without a face before the page says so

const settings = await loadSettings();
const weights = new URLSearchParams(location.search).get("weights") ?? Object.keys(settings.weights)[0];
const tables = new Tables($("tables"), settings.formats);
const timeline = new Timeline($("timeline"));
const worker = new Worker("worker.js", { type: "module" });
let frames = null; // of the camera or a video, while it is read
let chosen = null; // number of the face that is read
let shown = null; // {picture, faces} on the page
let lines = []; // of the table
let fileName = "";
let latest = 0; // number of what a person asked for last
let turn = Promise.resolve(); // ends when nothing is read

// ---- What the page says -------------------------------------------------------------------------------------------
function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

function complain(text) {
  $("problem").textContent = text;
  if (text) say("");
}

/** Do what a person asks for, after what was asked before has stopped; what goes wrong is shown as a sentence. */
function attempt(action) {
  const mine = ++latest;
  frames?.stop();
  turn = turn.then(async () => {
    if (mine !== latest) return;
    complain("");
    try {
      await action(() => mine === latest);
    } catch (error) {
      complain(error.message);
    }
  });
  return turn;
}

/** The content of settings.json; without it, the page stays with a sentence. */
async function loadSettings() {
  const answer = await fetch("settings.json").catch(() => ({ ok: false }));
  if (answer.ok) return answer.json();
  complain("settings.json could not be loaded: reload the page, or build its folder again.");
  return new Promise(() => {});
}

// ---- The worker ---------------------------------------------------------------------------------------------------
function ask(message, transferred = []) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.problem ? reject(new Error(data.problem)) : resolve(data));
    worker.onerror = () => reject(new Error("The model could not be started: reload the page, or use another browser."));
    worker.postMessage(message, transferred);
  });
}

// ---- Showing ------------------------------------------------------------------------------------------------------
function show({ picture, faces }) {
  if (shown?.picture !== picture) shown?.picture.close();
  shown = { picture, faces };
  const face = faces.find((face) => face.face_id === chosen && face.answers) ?? faces.find((face) => face.answers);
  $("seen").hidden = false;
  drawPicture($("picture"), picture, faces, face?.face_id);
  $("picture").ariaLabel = `${fileName}, a box around ${faces.length === 1 ? "the face" : `each of ${faces.length} faces`}`;
  showFaces($("faces"), faces, face?.face_id, choose);
  if (face) drawCrop($("crop"), face.crop);
  tables.show(face?.answers);
  showContradictions($("contradictions"), face?.contradictions);
  return face ?? null;
}

function choose(number) {
  chosen = number;
  if (!frames) show({ picture: shown.picture, faces: shown.faces });
}

function keep(place, face) {
  lines.push(row({ file: fileName, ...place }, face, settings.columns));
  $("saving").hidden = false;
  $("rows").textContent = `${lines.length} row${lines.length === 1 ? "" : "s"}`;
}

function startTable(name) {
  fileName = name;
  lines = [];
  timeline.clear();
  $("saving").hidden = true;
}

const timelineFormat = () => settings.formats.find(({ name }) => name === $("timeline-format").value);

// ---- Reading ------------------------------------------------------------------------------------------------------
async function readPicture(file, name) {
  const picture = await openPicture(file, name);
  say(`Reading ${name}.`);
  const { faces, ...answer } = await ask({ picture }, [picture]);
  chosen = null;
  startTable(name);
  show({ faces, picture: answer.picture });
  $("timeline-section").hidden = true;
  $("speed").textContent = "";
  if (!faces.length) throw new Error(`${name} shows no face whose two eyes can be seen.`);
  for (const face of faces) keep({ frame: 1, time: 0 }, face);
  say(`${name}: ${faces.length} face${faces.length > 1 ? "s" : ""}`);
}

async function readFrames(open, name, isWanted) {
  const reading = `Reading ${name === CAMERA ? "the camera" : name}.`;
  frames = await open();
  if (!isWanted()) frames.stop();
  chosen = null;
  startTable(name);
  $("stop").hidden = false;
  $("timeline-section").hidden = false;
  say(reading);
  try {
    await loop(frames, reading);
    say(`Stopped after ${lines.length} frame${lines.length === 1 ? "" : "s"}.`);
  } finally {
    frames.stop();
    frames = null;
    $("stop").hidden = true;
  }
}

async function loop(source, reading) {
  const moments = [];
  let unseen = 0;
  let frame = 0;
  let begun = null;
  let coming = source.next();
  for (let next = await coming; next; next = await coming) {
    coming = source.next(); // taken while this one is read
    const answer = await ask({ picture: next.picture, live: true, restart: frame === 0, chosen }, [next.picture]);
    const face = show(answer);
    chosen = face?.face_id ?? chosen;
    frame += 1;
    begun ??= next.time;
    const time = Number((next.time - begun).toFixed(4));
    keep({ frame, time }, face);
    timeline.add(time, face?.answers);
    timeline.draw(timelineFormat());
    unseen = face ? 0 : unseen + 1;
    if (unseen === UNSEEN) say("No face whose two eyes can be seen.");
    if (unseen === 0) say(reading);
    moments.push(performance.now());
    if (moments.length > PACE) moments.shift();
    showSpeed(moments, answer.times);
  }
}

function showSpeed(moments, times) {
  const seconds = (moments.at(-1) - moments[0]) / 1000;
  if (moments.length < PACE) return;
  const [find, read] = [times.find, times.read].map(Math.round);
  $("speed").textContent = `${((PACE - 1) / seconds).toFixed(1)} frames a second: ${find} ms to find the face, ${read} ms to read it`;
}

const openFile = (file) =>
  attempt((isWanted) =>
    isVideo(file) ? readFrames(() => Frames.ofVideo(file), file.name, isWanted) : readPicture(file, file.name),
  );

// ---- Buttons ------------------------------------------------------------------------------------------------------
$("camera").addEventListener("click", () => attempt((isWanted) => readFrames(Frames.ofCamera, CAMERA, isWanted)));
$("stop").addEventListener("click", () => frames?.stop());
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) openFile(file);
});
$("save").addEventListener("click", () => save(`${fileName.replace(/\.[^.]*$/, "")}-aus.csv`, lines, settings.columns));
$("clear").addEventListener("click", () => startTable(fileName));
$("timeline-format").addEventListener("change", () => timeline.draw(timelineFormat()));
$("weights").addEventListener("change", () => (location.search = `?weights=${$("weights").value}`));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file && !$("open").disabled) openFile(file);
});

for (const example of settings.examples) {
  const open = (file) =>
    attempt(async () => readPicture(await fetch(file).then((answer) => answer.blob()), file.split("/").at(-1)));
  $("examples").append(exampleButton(example, open));
}
for (const { name } of settings.formats) $("timeline-format").append(new Option(name));
for (const [name, { note }] of Object.entries(settings.weights)) {
  $("weights").append(new Option(`${name}: ${note}`, name, false, name === weights));
}

// ---- Start --------------------------------------------------------------------------------------------------------
await attempt(async () => {
  if (!(weights in settings.weights)) throw new Error(`There are no weights ${weights}: choose ${Object.keys(settings.weights).join(" or ")}.`);
  say("The model is loaded.");
  const { ready } = await ask({ settings, weights });
  for (const button of document.querySelectorAll(".controls button")) button.disabled = false;
  const threads = ready.threads > 1 ? `${ready.threads} threads` : "one thread";
  $("engine").textContent = `Computed by ${ready.kind === "webgpu" ? "the graphics card (WebGPU)" : `WebAssembly, ${threads}`}.`;
  say("Ready: use the camera, or open a picture or a video.");
});
