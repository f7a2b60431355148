// The pad: strokes and files go to the documented JSON address, and its answers to the page.
const pad = element.querySelector(".pad");
const canvas = pad.querySelector("canvas");
const context = canvas.getContext("2d");
const drop = pad.querySelector(".drop");
const file = pad.querySelector("input[type=file]");
const invert = pad.querySelector(".invert input");
const status = pad.querySelector(".status");
const PEN = 0.075; // of the canvas's side
const STEP = 0.04; // of an arrow key

let strokes = []; // of points [x, y], in shares of the canvas's side
let current = null; // the stroke that grows under a pressed pointer or a lowered pen
let pen = null; // where the keyboard's pen is
let dropped = null; // the file shown last

// One request at a time; of those that wait, the newest.
let waiting = null;
let busy = false;

async function send(body, type, query, mark) {
  waiting = { body, type, query, mark };
  if (busy) return;
  busy = true;
  while (waiting) {
    const { body, type, query, mark } = waiting;
    waiting = null;
    try {
      const reply = await fetch("api/predict?explain=1" + query, {
        method: "POST", body, headers: { "Content-Type": type },
      });
      const answer = await reply.json();
      if (reply.ok) show(answer, mark);
      else say(answer.detail, true);
    } catch (error) {
      say("The server does not answer: is the command still running?", true);
    }
  }
  busy = false;
}

function show(answer, mark) {
  if (mark !== null && !strokes.length) return; // cleared meanwhile
  props.value = answer;
  trigger("answer");
  say(`It looks like ${answer.label}: ${(100 * answer.probability).toFixed(1)} %`, false);
  status.dataset.points = mark ?? "";
}

function say(text, isError) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function sendStrokes() {
  const count = strokes.reduce((sum, stroke) => sum + stroke.length, 0);
  if (count) send(JSON.stringify({ strokes }), "application/json", "", count);
  else forget();
}

function sendFile(chosen) {
  if (!chosen) return;
  dropped = chosen;
  strokes = [];
  paint();
  send(chosen, chosen.type || "application/octet-stream", invert.checked ? "&invert=1" : "", null);
}

function forget() {
  waiting = null;
  props.value = null;
  trigger("answer");
  say("", false);
  delete status.dataset.points;
}

function paint() {
  const side = canvas.width;
  context.clearRect(0, 0, side, side);
  context.strokeStyle = context.fillStyle = "#fff";
  context.lineWidth = PEN * side;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
    for (const [x, y] of stroke) context.lineTo(x * side, y * side);
    context.stroke();
  }
  if (pen) {
    context.beginPath();
    context.arc(pen[0] * side, pen[1] * side, (PEN / 2) * side, 0, 2 * Math.PI);
    context.fillStyle = current ? "#f59e0b" : "#60a5fa";
    context.fill();
  }
}

function begin(point) {
  dropped = null;
  file.value = "";
  current = [point];
  strokes.push(current);
}

function changed() {
  paint();
  sendStrokes();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  pen = null;
  begin(place(event));
  changed();
});
canvas.addEventListener("pointermove", (event) => {
  if (!current || pen) return;
  // All the positions since the last frame: a fast hand keeps its curves.
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) current.push(place(each));
  changed();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (!pen) current = null;
  });
}

canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in moves) {
    pen ??= [0.5, 0.5];
    pen = pen.map((x, axis) => Math.min(1, Math.max(0, x + STEP * moves[event.key][axis])));
    if (current) current.push(pen);
    current ? changed() : paint();
  } else if (event.key === " ") {
    pen ??= [0.5, 0.5];
    if (current) current = null;
    else begin(pen);
    changed();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else return;
  event.preventDefault();
});
canvas.addEventListener("blur", () => {
  if (pen) current = pen = null;
  paint();
});

function clear() {
  strokes = [];
  current = pen = dropped = null;
  file.value = "";
  changed();
}
pad.querySelector(".clear").addEventListener("click", clear);
pad.querySelector(".undo").addEventListener("click", () => {
  current = null;
  strokes.pop();
  changed();
});

file.addEventListener("change", () => sendFile(file.files[0]));
invert.addEventListener("change", () => sendFile(dropped));
// A file that misses the frame must not replace the page.
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => event.preventDefault());
}
document.addEventListener("dragover", () => drop.classList.add("over"));
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  sendFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => sendFile(event.clipboardData.files[0]));
paint();
