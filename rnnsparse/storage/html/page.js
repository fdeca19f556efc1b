"use strict";
// The page: what is typed goes to the worker, and what it answers is shown, always as text.

const byId = id => document.getElementById(id);
const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const MOST_COLOURED = 20000; // characters that are shown one by one
const SAMPLE = 'The tower is 324 metres tall. "It was built in 1889," he said, "and (as far as I know) it was then the ' +
  'highest building in the world."\n\nIn the United States of America, it is known as the xylophone tower.\n';

function make(kind, { role, label, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

// ---- the worker

const header = JSON.parse(byId("model").textContent);
const worker = new Worker(URL.createObjectURL(new Blob([byId("engine").textContent], { type: "text/javascript" })));
const waiting = new Map();
let lastTask = 0;

/** Give the worker something to do; `news` is called with what it tells meanwhile. */
function ask(kind, options, news = () => {}) {
  const task = ++lastTask;
  return new Promise((done, failed) => {
    waiting.set(task, { done, failed, news });
    worker.postMessage({ task, kind, options });
  });
}

worker.onmessage = ({ data }) => {
  const asked = waiting.get(data.task);
  if ("news" in data) return asked.news(data.news);
  waiting.delete(data.task);
  if ("error" in data) asked.failed(new Error(data.error));
  else asked.done(data.done);
};

/** Do something in a view, which can then be stopped but not begun again; what goes wrong is said where the state is. */
async function during(view, state, work) {
  const begin = document.querySelector(`#${view}-form .main`), stop = byId(`${view}-stop`);
  begin.disabled = true;
  stop.disabled = false;
  try {
    await work();
  } catch (error) {
    state.textContent = error.message;
  }
  begin.disabled = false;
  stop.disabled = true;
}

for (const view of ["write", "score", "look"]) byId(`${view}-stop`).onclick = () => ask("stop");

// ---- views

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !chosen;
  }
}

for (const [i, tab] of tabs.entries()) {
  tab.onclick = () => show(tab);
  tab.onkeydown = event => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    show(next);
    next.focus();
  };
}

/** A text of which each character has a colour and something to tell, by pointer or by arrow keys. */
class ColouredText {
  constructor(place, label) {
    this.detail = make("div", { className: "detail", role: "status" });
    const help = `${label}; arrow keys go from character to character`;
    this.box = make("div", { className: "text", tabIndex: 0, role: "application", label: help });
    place.append(this.box, this.detail);
    this.box.onpointerover = this.box.onclick = ({ target }) => target.tagName === "I" && this.select(target);
    this.box.onfocus = () => this.now ?? this.select(this.box.firstElementChild);
    this.box.onkeydown = event => {
      const now = this.now ?? this.box.firstElementChild;
      const to = { ArrowRight: now?.nextElementSibling, ArrowLeft: now?.previousElementSibling,
        Home: this.box.firstElementChild, End: this.box.lastElementChild }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.select(to);
      this.now.scrollIntoView({ block: "nearest" });
    };
    this.clear();
  }

  clear() {
    this.box.replaceChildren();
    this.detail.textContent = "";
    this.detail.hidden = true;
    this.told = [];
    this.now = null;
  }

  /** Add characters, each with its class and a function that returns what to tell of it. */
  add(items) {
    const shown = { "\n": "↵\n", "\t": "→\t" };
    this.box.append(...items.map(({ character, colour }) =>
      make("i", { textContent: shown[character] ?? character, className: colour })));
    this.told.push(...items.map(({ tell }) => tell));
    this.detail.hidden = !this.told.length;
    if (!this.now) this.detail.textContent = "Point at a character, or go there by the arrow keys.";
  }

  select(element) {
    if (!element) return;
    this.now?.classList.remove("now");
    this.now = element;
    element.classList.add("now");
    this.detail.textContent = this.told[Array.prototype.indexOf.call(this.box.children, element)]();
  }
}

const named = character => ({ " ": "space", "\n": "line end", "\t": "tab" })[character] ?? character;

function legend(place, entries) {
  place.replaceChildren(...entries.map(([colour, text]) => make("span", { className: colour, textContent: text })));
}

// ---- write

const written = byId("written"), writeState = byId("write-state");

function writing(goOn) {
  const field = id => byId(id).valueAsNumber;
  const escapes = { n: "\n", t: "\t", r: "\r", "\\": "\\" };
  const stop = byId("stop-text").value.replace(/\\([ntr\\])/g, (_, letter) => escapes[letter]);
  const prompt = byId("prompt").value;
  const options = { prompt, goOn, temperature: field("temperature"), topK: field("top-k") || null,
    topP: field("top-p") || null, seed: field("seed"), length: field("length"), stops: stop ? [stop] : [] };
  if (!goOn) written.replaceChildren(make("span", { className: "prompt", textContent: prompt }));
  byId("go-on").disabled = byId("copy").disabled = true;
  const end = document.createTextNode("");
  written.append(end);
  during("write", writeState, async () => {
    const news = ({ text, written: count, reading }) => {
      const follows = written.scrollTop + written.clientHeight > written.scrollHeight - 30;
      end.data += text;
      if (follows) written.scrollTop = written.scrollHeight;
      writeState.textContent = reading ? "Reading the prompt …" : `${number(count)} symbols …`;
    };
    const done = await ask("write", options, news);
    end.data += done.text ?? "";
    const speed = done.written > 50 ? `, ${number(done.written / done.seconds)} a second` : "";
    writeState.textContent = done.written === undefined ? "Stopped."
      : `${number(done.written)} symbols${speed}${done.stopped ? "; stopped before the text that you named" : ""}.`;
    byId("go-on").disabled = done.written === undefined;
  }).then(() => { byId("copy").disabled = !written.textContent; });
}

byId("write-form").onsubmit = event => { event.preventDefault(); writing(false); };
byId("go-on").onclick = () => { if (byId("write-form").reportValidity()) writing(true); };
byId("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(written.textContent);
    writeState.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(written);
    writeState.textContent = document.execCommand("copy") ? "Copied." : "Selected; copy it with your keyboard.";
  }
};

// ---- score

const scored = new ColouredText(byId("scored"), "Scored text");
const scoreState = byId("score-state");
const BITS = [0.5, 1, 2, 4, 6, 9]; // where the next colour starts
const bitsColour = bits => `p${BITS.filter(bound => bits >= bound).length}`;
legend(byId("score-legend"), [["", "bits:"], ["p0", "0"], ...BITS.map((bits, i) => [`p${i + 1}`, `${bits}`])]);

function tellScore(character, { bits, likeliest }) {
  if (bits === null) return `${named(character)}: the first, which nothing predicts.`;
  const others = likeliest.map(([name, share]) => `${name} ${number(100 * share, 1)} %`).join(", ");
  return `${named(character)}: ${number(bits, 2)} bits.${others ? ` Likeliest: ${others}.` : ""}`;
}

byId("score-form").onsubmit = event => {
  event.preventDefault();
  const text = byId("score-text").value, characters = [...text], bits = [];
  scored.clear();
  byId("words").replaceChildren();
  byId("words-title").hidden = true;
  during("score", scoreState, async () => {
    const news = ({ found, at, size }) => {
      const start = at - found.length;
      bits.push(...found.map(one => one.bits));
      scored.add(found.slice(0, Math.max(0, MOST_COLOURED - start)).map((one, i) => {
        const character = characters[start + i];
        return { character, colour: one.bits === null ? "" : bitsColour(one.bits), tell: () => tellScore(character, one) };
      }));
      scoreState.textContent = `${number(at)} of ${number(size)} characters …`;
    };
    const total = await ask("score", { text }, news);
    if (!total.characters) return void (scoreState.textContent = "There is nothing to score: give at least two characters.");
    scoreState.textContent = `${number(total.bits / total.characters, 4)} bits per character: ` +
      `${number(total.bits, 1)} bits for ${number(total.characters)} characters.` +
      (bits.length < characters.length ? " Stopped before the end." : "") +
      (bits.length > MOST_COLOURED ? ` The first ${number(MOST_COLOURED)} are coloured.` : "");
    showWords(characters, bits);
  });
};

function showWords(characters, bits) {
  const words = [];
  let word = "", cost = 0;
  for (let i = 0; i <= bits.length; i++) {
    if (i < bits.length && !/\s/u.test(characters[i])) {
      word += characters[i];
      cost += bits[i] ?? 0;
    } else if (word) {
      words.push([word, cost]);
      [word, cost] = ["", 0];
    }
  }
  words.sort((a, b) => b[1] - a[1]);
  const items = words.slice(0, 20).map(([text, bits]) => make("li", { textContent: `${text}: ${number(bits, 1)} bits` }));
  byId("words").replaceChildren(...items);
  byId("words-title").hidden = !items.length;
}

// ---- look inside

const traced = new ColouredText(byId("traced"), "Text coloured by a unit");
const lookState = byId("look-state"), unitField = byId("unit");
let tracedText = [];

function unitColour(value) {
  const size = Math.min(6, Math.ceil(Math.abs(value) * 6 - 0.5));
  return size < 1 ? "" : `${value < 0 ? "n" : "p"}${size}`;
}

byId("look-form").onsubmit = event => {
  event.preventDefault();
  const text = byId("look-text").value;
  during("look", lookState, async () => {
    const news = ({ at, size }) => { lookState.textContent = `${number(at)} of ${number(size)} characters …`; };
    const { ranking, characters, hidden } = await ask("trace", { text }, news);
    if (!ranking) return void (lookState.textContent = text ? "Stopped." : "There is nothing to read.");
    tracedText = [...text].slice(0, Math.min(characters, MOST_COLOURED));
    const name = unit => header.layers > 1 ? `layer ${Math.floor(unit / hidden) + 1}, unit ${unit % hidden}` : `unit ${unit}`;
    unitField.replaceChildren(...ranking.map(([unit, spread]) =>
      make("option", { value: unit, textContent: `${name(unit)} (± ${number(spread, 2)})` })));
    byId("units").hidden = false;
    lookState.textContent = `${number(ranking.length)} units, read over ${number(characters)} characters; ` +
      "those that vary most come first.";
    legend(byId("look-legend"), [-1, -0.67, -0.33, 0, 0.33, 0.67, 1].map(x => [unitColour(x), `${x}`]));
    await showUnit();
  });
};

async function showUnit() {
  const values = await ask("unit", { unit: Number(unitField.value) });
  traced.clear();
  traced.add(tracedText.map((character, i) => ({
    character, colour: unitColour(values[i]), tell: () => `After ${named(character)}: ${number(values[i], 3)}`,
  })));
}

function otherUnit(step) {
  unitField.selectedIndex = Math.min(Math.max(unitField.selectedIndex + step, 0), unitField.length - 1);
  showUnit();
}

unitField.onchange = showUnit;
byId("unit-before").onclick = () => otherUnit(-1);
byId("unit-after").onclick = () => otherUnit(1);

function bar(share) {
  const element = make("span");
  element.style.width = `${100 * share}%`;
  return element;
}

function showConnections({ gates, symbols, most }) {
  byId("gates").replaceChildren(...gates.map(({ name, rows, cols, connections, height, width, counts }) => {
    const words = `${name}: ${number(connections)} of ${number(rows * cols)}`;
    const canvas = make("canvas", { width, height, role: "img", label: words });
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const full = Math.max(1, ...counts), ink = getComputedStyle(document.body).getPropertyValue("--ink").split(",");
    counts.forEach((count, i) => image.data.set([...ink.map(Number), 255 * count / full], 4 * i));
    context.putImageData(image, 0, 0);
    return make("figure", {}, canvas, make("figcaption", { textContent: words }));
  }));
  const ranked = symbols.slice().sort((a, b) => b[1] - a[1]).slice(0, 1000);
  byId("symbols").replaceChildren(...ranked.map(([name, count]) => make("li", {},
    make("span", { textContent: name }), make("span", { className: "bar" }, bar(count / most)),
    make("span", { textContent: number(count) }))));
}

// ---- start

byId("title").textContent = document.title = header.title;
byId("facts").append(...header.facts.flatMap(([name, text]) =>
  [make("dt", { textContent: name }), make("dd", { textContent: text })]));
const fits = [...SAMPLE].every(c => header.vocabulary.kind === "byte" || header.vocabulary.characters.includes(c));
byId("score-text").value = byId("look-text").value = fits ? SAMPLE : "";
if (!fits) byId("prompt").value = "";
ask("load", { header, weights: byId("weights").textContent }).then(connections => {
  byId("state").textContent = "Ready.";
  showConnections(connections);
}, error => { byId("state").textContent = error.message; });
