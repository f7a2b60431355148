// Strokes and files go to the documented JSON endpoint, and its answers to the page.
const find = (selector) => element.querySelector(selector);
const [pad, status, invert] = [".drawing", "[role=status]", "[type=checkbox]"].map(find);
let strokes = [], dropped = null; // lists of points [x, y], in % of the pad's width; or an image file
let busy = false, again = false, pen = null; // the pointer that draws
async function ask() { // one request at a time; what changes meanwhile is asked after it
  if (busy) return (again = true);
  busy = true;
  do {
    again = false;
    const drawn = new Blob([JSON.stringify({ strokes })], { type: "application/json" });
    const body = dropped ?? (strokes.length ? drawn : null);
    const url = `api/predict?explain=1&invert=${Number(invert.checked)}`;
    const reply = body && await fetch(url, { method: "POST", body }).catch(() => null);
    const answer = await reply?.json().catch(() => null); // cut off, or no answer of ours
    const named = Object.entries(answer?.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
    const confidences = named.slice(0, 5).map(([label, confidence]) => ({ label, confidence }));
    props.value = answer?.probabilities ? [{ label: answer.label, confidences }, answer] : [{}, null];
    trigger("answer");
    const none = "No answer: is the file readable, and does the command still run?";
    const failure = answer?.probabilities ? "" : `⚠ ${answer?.detail ?? none}`;
    status.textContent = body ? failure || `It looks like ${answer.label}` : "";
  } while (again);
  busy = false;
}
function show(newStrokes, file = null) {
  [strokes, dropped] = [newStrokes, file];
  if (file !== find("[type=file]").files[0]) find("[type=file]").value = "";
  const path = strokes.map((stroke) => `M${stroke[0]}L${stroke.join("L")}`).join(" ");
  pad?.firstElementChild.setAttribute("d", path);
  ask();
}
function draw(event) {
  if (event.type === "pointerdown" && pen === null && !event.button) { // no palm, no menu
    pad.setPointerCapture(event.pointerId);
    pen = event.pointerId;
    strokes.push([]);
  }
  if (event.pointerId !== pen) return;
  const box = pad.getBoundingClientRect();
  // All the places since the last frame: a fast hand keeps its curves.
  const moved = event.type === "pointermove" && event.getCoalescedEvents?.();
  const events = moved?.length ? moved : [event];
  for (const { clientX, clientY } of events)
    strokes.at(-1).push([clientX - box.left, clientY - box.top].map((v) => (100 * v) / box.width));
  show(strokes);
}
if (pad) {
  pad.onpointerdown = pad.onpointermove = draw;
  pad.onlostpointercapture = (event) => { if (event.pointerId === pen) pen = null; };
}
for (const button of element.querySelectorAll("button"))
  button.onclick = () => { // another finger may draw meanwhile; "Undo" has no strokes for a value
    pen = null;
    show(button.value ? JSON.parse(button.value) : strokes.slice(0, -1));
  };
const take = (files) => {
  if (!files.length) return;
  pen = null; // as a button does
  show([], files[0]);
};
find("[type=file]").onclick = (event) => (event.target.value = ""); // the same may be chosen again
find("[type=file]").onchange = (event) => take(event.target.files);
invert.onchange = () => dropped && ask();
document.ondragover = (event) => event.preventDefault(); // a file must not replace the page
document.ondrop = (event) => { event.preventDefault(); take(event.dataTransfer.files); };
document.onpaste = (event) => take(event.clipboardData.files);
