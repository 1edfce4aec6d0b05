// The page's behaviour: take an image, ask POST /predict, show the answer. Text from outside is only ever set as text.

const TOP_K = 5;
const TITLES = {
  // by the problem's code, as gateway/errors.py has them
  bad_request: "The classifier did not understand the request",
  unauthorized: "This classifier asks for an API key",
  url_not_allowed: "The classifier may not open that address",
  not_found: "There is nothing at that address",
  method_not_allowed: "The classifier does not answer that kind of request",
  request_timeout: "Sending the image took too long",
  too_large: "That is too large",
  uri_too_long: "That address is too long",
  unsupported_media: "That is not an image the classifier can read",
  bad_image: "That image is damaged",
  headers_too_large: "The browser sent too much beside the image",
  internal_error: "Something broke inside the classifier",
  unsupported_coding: "The classifier cannot read what was sent",
  unsupported_version: "The browser used a version of HTTP that the classifier does not speak",
  fetch_failed: "That image could not be fetched",
  fetch_timeout: "That image took too long to arrive",
  model_failed: "The model could not answer",
  model_unavailable: "No model is ready at the moment",
  model_timeout: "The model took too long",
  overloaded: "The classifier is busy",
  no_connection: "No connection to the classifier",
  unreadable: "That file cannot be read",
};

const $ = (id) => document.getElementById(id);
let key = ""; // the API key, in memory only
let image = null; // the last one asked about: {url} or {file}
let running = null; // the AbortController of the newest request; an older one never shows anything
let shown = {}; // the image and the version that the page shows at the moment

// ---- taking an image

$("link").addEventListener("submit", (event) => {
  event.preventDefault();
  if (matchMedia("(pointer: coarse)").matches) $("url").blur(); // puts a phone's keyboard away, the result is under it
  const text = $("url").value.trim();
  if (text) classify(named(text));
});

/** Return what a text names: a URL, or the image that a data: URL contains; search engines give those for their own. */
function named(text) {
  const [, type, base64] = text.match(/^data:(image\/[\w.+-]+)[^,]*;base64,([A-Za-z0-9+/]+)=*$/i) ?? [];
  if (base64 && base64.length % 4 !== 1) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return { file: new File([bytes], `image.${type.split("/")[1]}`, { type }) };
  }
  return { url: /^([a-z][a-z0-9+.-]*:\/\/|data:)/i.test(text) ? text : `https://${text.replace(/^\/\//, "")}` };
}

for (const input of [$("file"), $("camera")]) {
  const choose = () => {
    if (input.files.length) classify({ file: input.files[0] });
    input.value = ""; // so that choosing the same file again counts as a change
  };
  input.addEventListener("change", choose);
  choose(); // what was chosen before this script came
}

/** Classify what was dropped or pasted; return whether it contained an image or a URL. */
function take(data) {
  const [file] = data.files;
  const lines = (data.getData("text/uri-list") || data.getData("text/plain")).split("\n");
  const text = lines.map((line) => line.trim()).find((line) => line && !line.startsWith("#")); // of URLs, with comments
  if (file) classify({ file });
  else if (/^(https?:\/\/|data:image\/)\S+$/i.test(text)) classify(named(($("url").value = text)));
  else return false;
  return true;
}

/** Tell whether a text field takes what is pasted or dropped, as text; a link would be glued to what is there. */
function isTyped({ target, type }, data) {
  const isLink = type !== "paste" && data.types.includes("text/uri-list");
  return target.matches?.("input:not([type=file])") && data.types.includes("text/plain") && !isLink;
}

document.addEventListener("paste", (event) => {
  if (!isTyped(event, event.clipboardData) && take(event.clipboardData)) event.preventDefault();
});
document.addEventListener("dragover", (event) => {
  const typed = isTyped(event, event.dataTransfer);
  if (!typed) event.preventDefault(); // else the browser leaves the page to show the file
  $("drop").classList.toggle("over", !typed);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  $("drop").classList.remove("over");
  if (isTyped(event, event.dataTransfer)) return;
  event.preventDefault();
  take(event.dataTransfer);
});

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("refused").hidden = true;
  if (image) classify(image);
  else showModel();
});
addEventListener("pagehide", () => (key = $("key").value = "")); // a browser may keep the page, to go back to
addEventListener("pageshow", ({ persisted }) => persisted && showModel());
$("again").addEventListener("click", () => classify(image));
$("cancel").addEventListener("click", () => {
  running.abort();
  show(null);
  say("Cancelled");
  $("url").focus();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
    say("Copied");
  } catch { // no clipboard on plain http, or not allowed: select it, so that the person can
    getSelection().selectAllChildren($("curl"));
    say("Selected; copy it with your keyboard");
  }
});

// ---- asking

/** Ask about an image, and show the answer unless a newer question was asked meanwhile. */
async function classify(next) {
  running?.abort();
  const mine = (running = new AbortController());
  image = next;
  say("Looking at the image");
  const slow = setTimeout(show, 150, "busy"); // a quick answer takes the old one's place without a flicker
  try {
    const body = await ask(mine.signal);
    if (mine.signal.aborted) return;
    showResult(body);
    closeAccess();
  } catch (problem) {
    if (!mine.signal.aborted) showProblem(problem);
  } finally {
    clearTimeout(slow);
  }
}

/** Return the request for the image: a file's bytes, or a URL in JSON. */
function question() {
  const { file, url } = image;
  if (!file) return { path: "predict", type: "application/json", body: JSON.stringify({ url, top_k: TOP_K }) };
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return { path: `predict?top_k=${TOP_K}`, type, body: file };
}

/** Return the answer's body, or throw a problem: {code, status, detail}. */
async function ask(signal) {
  const { path, type, body } = question();
  let answer;
  try {
    answer = await fetch(path, { method: "POST", signal, body, headers: { "Content-Type": type, ...authorization() } });
  } catch {
    if (type !== "application/json" && !(await canRead(body))) {
      throw { code: "unreadable", detail: `${body.name} is a folder, or was moved or changed. Choose an image again.` };
    }
    const also = image.file ? " A file that is much too large can cause this too." : "";
    throw { code: "no_connection", detail: `No answer came from ${location.host}.${also}` };
  }
  const read = await answer.json().catch(() => null);
  if (answer.ok && read?.predictions) return read;
  const { status } = answer;
  throw { code: "", status, detail: "Something other than the classifier answered.", ...read };
}

async function canRead(file) {
  return file.slice(0, 1).arrayBuffer().then(() => true, () => false);
}

/** Return the header with the key, as curl sends it: in bytes, of which fetch makes one of each character. */
function authorization() {
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return key ? { Authorization: `Bearer ${bytes}` } : {};
}

/** Return the request as a command for a POSIX shell; a key stays out of it, since commands are kept and shared. */
function curlCommand() {
  const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const { path, type, body } = question();
  return [
    `curl -s ${quote(new URL(path, document.baseURI).href)}`,
    ...(key ? ['-H "Authorization: Bearer $API_KEY"'] : []),
    `-H ${quote(`Content-Type: ${type}`)}`,
    image.file ? `--data-binary ${quote(`@${image.file.name}`)}` : `-d ${quote(body)}`,
  ].join(" \\\n  ");
}

// ---- showing

/** Show one panel of the result card, or no card; keep the focus in it if it was there. */
function show(panel) {
  const focused = $("stage").contains(document.activeElement);
  for (const id of ["busy", "problem", "result"]) $(id).hidden = id !== panel;
  $("request").hidden = panel !== "result" && panel !== "problem";
  $("stage").hidden = !panel;
  $("stage").ariaBusy = String(panel === "busy");
  if (!panel) return;
  if (focused) $("stage").focus({ preventScroll: true });
  if (shown.image !== image) showImage();
  $("curl").textContent = curlCommand();
  $("copy").textContent = "Copy the command";
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("stage").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

function say(text) {
  $("status").textContent = text;
}

/** Show which image it is: a file's pixels, or a URL's host and name (gateway/page.py says why not pixels). */
function showImage() {
  shown.image = image;
  URL.revokeObjectURL($("thumbnail").src);
  $("thumbnail").hidden = !image.file;
  $("original").hidden = !/^https?:/i.test(image.url);
  if (image.file) $("thumbnail").src = URL.createObjectURL(image.file);
  else $("thumbnail").removeAttribute("src");
  $("original").href = $("original").hidden ? "" : image.url;
  $("name").textContent = image.file ? image.file.name : shortName(image.url);
}
$("thumbnail").addEventListener("error", () => ($("thumbnail").hidden = true)); // a format this browser cannot show

function shortName(url) {
  try {
    const { host, pathname } = new URL(url);
    return `${pathname.split("/").pop()} ${host && `from ${host}`}`.trim();
  } catch {
    return url;
  }
}

const number = (value, options) => new Intl.NumberFormat("en", options).format(value);
const readable = (name) => name.replaceAll("_", " ");

/** Return a probability as a percentage that never rounds to certain or impossible. */
function percent(probability) {
  if (probability < 0.001) return "< 0.1%";
  if (probability > 0.999 && probability < 1) return "> 99.9%";
  return number(probability, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

/** Return a new element; its children are text or elements. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

function showResult({ model, predictions, unknown, image: facts, timing_ms }) {
  const plain = predictions.map((each) => readable(each.class));
  const isOne = (name) => plain.indexOf(name) === plain.lastIndexOf(name); // ImageNet has two cranes
  const names = plain.map((name, at) => (isOne(name) ? name : `${name} (${predictions[at].index})`));
  $("unknown").hidden = !unknown;
  $("predictions").replaceChildren(
    ...predictions.map((prediction, at) => {
      const fill = element("i", "");
      fill.style.setProperty("--share", `${prediction.probability * 100}%`); // CSSOM: the policy has no inline styles
      const name = element("span", "class", names[at]);
      const share = element("span", "probability", percent(prediction.probability));
      return element("li", "", name, " ", share, element("div", "bar", fill));
    }),
  );
  const [unit, scale] = facts.bytes < 1e6 ? ["kB", 1e3] : ["MB", 1e6];
  const size = `${number(facts.bytes / scale, { maximumFractionDigits: 1 })} ${unit}`;
  const stages = Object.entries(timing_ms).filter(([stage]) => stage !== "fetch" || image.url); // nothing was fetched
  const rows = {
    Image: `${facts.format}, ${facts.width} × ${facts.height} pixels, ${size}`,
    Model: `${model.name}, ${versionText(model)}`,
    Time: stages.map(([stage, ms]) => `${stage}\u00a0${number(ms)}\u00a0ms`).join(", "),
  };
  $("facts").replaceChildren(
    ...Object.entries(rows).flatMap(([term, text]) => [element("dt", "", term), element("dd", "", text)]),
  );
  show("result");
  const [best] = predictions;
  const first = `${names[0]}, ${percent(best.probability)}`;
  say(`${unknown ? `${$("unknown").textContent} ` : ""}${first}. ${predictions.length} predictions are listed.`);
  // a new version took over, a trial may have ended, or a key opened /model
  if (shown.trial || shown.version !== versionText(model)) showModel();
}

function showProblem({ code, status, detail }) {
  $("problem-title").textContent = TITLES[code] ?? "The classifier did not answer as expected";
  $("problem-detail").textContent = detail;
  $("problem-code").textContent = [status, code].filter(Boolean).join(" ");
  $("again").hidden = status < 500 && status !== 408; // another try would end the same
  say("");
  show("problem");
  if (status === 401) openAccess();
}

/** Show the form for the key, and what is wrong with the last one. */
function openAccess(wrong = key && "The classifier does not know that key") {
  $("access").hidden = false;
  $("refused").textContent = wrong;
  $("refused").hidden = !wrong;
  if (key || image) $("key").select(); // not when the page opens
}

/** Take the form for the key away, and move the focus out of it. */
function closeAccess() {
  const next = $("stage").hidden ? $("file") : $("stage");
  if ($("access").contains(document.activeElement)) next.focus({ preventScroll: true });
  $("access").hidden = true;
}

/** The version, and which export of it answered. */
function versionText({ version, identity }) {
  return `version ${version}${identity ? ` (${identity})` : ""}`;
}

/** Which version is tried beside the stable one, and how. */
function trialText({ mode, share, ...model }) {
  const part = `share ${number(share, { style: "percent", maximumFractionDigits: 2 })}`;
  return `${versionText(model)} is being tried (${mode === "shadow" ? "in shadow" : part})`;
}

/** Show the model's facts in the header, and the trial under them, if the gateway answers them. */
async function showModel() {
  const asked = key;
  const answer = await fetch("model", { cache: "no-store", headers: authorization() }).catch(() => null);
  if (key !== asked) return; // another one was entered meanwhile
  const { code, contract, trial, ...model } = (await answer?.json().catch(() => null)) ?? {};
  if (answer?.status === 401) openAccess();
  else if (answer?.ok || code === "model_unavailable") closeAccess(); // the key is right, perhaps no model is ready
  else if (!$("access").hidden) openAccess(TITLES.no_connection); // or only a proxy answers
  if (!answer?.ok) return;
  shown.version = versionText(model);
  shown.trial = trial;
  $("model").textContent = `${model.name}, ${shown.version}, ${number(contract.classes.length)} classes`;
  $("trial").textContent = trial ? trialText(trial) : "";
  $("model").hidden = false;
  $("trial").hidden = !trial;
}

showModel();
