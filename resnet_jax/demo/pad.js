// Strokes and files go to the documented JSON endpoint, and its answers to the page.
const [pad, status, file, invert] = element.querySelectorAll(".drawing, [role=status], input");
let strokes = [], question = null; // lists of points [x, y], in % of the pad's width; a body
let pen = null, newest = 0, asked = null; // the pointer that draws; the last question's number
async function ask() { // one question at a time; of those that come meanwhile only the newest
  const number = ++newest;
  await asked;
  if (number === newest) asked = answer(question);
}
async function answer(body) {
  const url = `api/predict?explain=1&invert=${Number(invert.checked)}`;
  const reply = body && await fetch(url, { method: "POST", body }).catch(() => null);
  const found = await reply?.json().catch(() => null); // cut off, or no answer of ours
  const named = Object.entries(found?.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  const confidences = named.slice(0, 5).map(([label, confidence]) => ({ label, confidence }));
  props.value = named.length ? [{ label: found.label, confidences }, found] : [{}, null];
  trigger("answer");
  const none = "No answer: is the file readable, and does the command still run?";
  const said = named.length ? `It looks like ${found.label}` : `⚠ ${found?.detail ?? none}`;
  status.textContent = body ? said : "";
}
function show(newStrokes, image = null, pointer = null) {
  [strokes, pen] = [newStrokes, pointer];
  const drawn = new Blob([JSON.stringify({ strokes })], { type: "application/json" });
  question = image ?? (strokes.length ? drawn : null);
  if (image !== file.files[0]) file.value = "";
  pad.lastChild.setAttribute("d", strokes.map((line) => `M${line[0]}L${line.join("L")}`).join(""));
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
  for (const { clientX, clientY } of moved?.length ? moved : [event])
    strokes.at(-1).push([clientX - box.left, clientY - box.top].map((v) => (100 * v) / box.width));
  show(strokes, null, pen);
}
pad.onpointerdown = pad.onpointermove = draw;
pad.onlostpointercapture = (event) => { if (event.pointerId === pen) pen = null; };
for (const button of element.querySelectorAll("button")) // without a value: "Undo"
  button.onclick = () => show(button.value ? JSON.parse(button.value) : strokes.slice(0, -1));
const take = (files) => files.length && show([], files[0]);
file.onclick = () => (file.value = ""); // the same may be chosen again
file.onchange = () => take(file.files);
invert.onchange = ask;
document.ondragover = (event) => event.preventDefault(); // a file must not replace the page
document.ondrop = (event) => { event.preventDefault(); take(event.dataTransfer.files); };
document.onpaste = (event) => take(event.clipboardData.files);
