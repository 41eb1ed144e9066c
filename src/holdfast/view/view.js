// What pages do besides being pages: keys, what changes while a run is at work, and files of figures.
// All of it is an addition: without this script every page and every link works.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Keys ---------------------------------------------------------------------------------------------

function step(by) {
  const rows = all("[data-row]");
  if (!rows.length) {
    document.querySelector(`a[rel=${by > 0 ? "next" : "prev"}]`)?.click();
    return;
  }
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), rows.length - 1);
  rows[next].focus();
  rows[next].scrollIntoView({ block: "nearest" });
}

const keys = {
  j: () => step(1),
  k: () => step(-1),
  n: () => document.querySelector("a[rel=next]")?.click(),
  p: () => document.querySelector("a[rel=prev]")?.click(),
  u: () => document.querySelector("a[data-up]")?.click(),
  "/": () => document.querySelector("[data-find], .filters select, .filters input")?.focus(),
  "?": () => document.querySelector("dialog.keys")?.showModal(),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});

all("[data-keys]").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", keys["?"]);
});

// Links to pass on: a form leaves out what was not asked ---------------------------------------------

all("form.filters").forEach((form) =>
  form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData.entries()]) if (value === "") formData.delete(name);
  }),
);

// What changes while a run is at work ----------------------------------------------------------------

async function renew() {
  const answer = await fetch(location.href, { credentials: "same-origin" });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of all("[data-live]")) {
    const now = page.querySelector(`[data-live="${part.dataset.live}"]`);
    if (!now) return location.reload(); // the run is finished: its page is another one
    if (now.innerHTML === part.innerHTML) continue;
    const row = all("[data-row]", part).indexOf(document.activeElement);
    part.replaceChildren(...now.childNodes);
    if (row >= 0) all("[data-row]", part)[row]?.focus();
  }
}

if (document.querySelector("[data-live]") && document.documentElement.dataset.events) {
  const events = new EventSource(document.documentElement.dataset.events);
  events.addEventListener("message", renew);
  window.addEventListener("pagehide", () => events.close());
}

// How much a change is magnified: mid-grey, which is unchanged, stays as it is ----------------------

all("img[data-change]").forEach((picture) => {
  const caption = picture.nextElementSibling;
  const drawn = parseFloat(caption.textContent.split("×")[1]);
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: -2, max: 5, step: 0.5, value: 0 }); // powers of two
  slider.setAttribute("aria-label", "How much the change is magnified");
  slider.addEventListener("input", () => {
    const more = 2 ** slider.value;
    picture.style.filter = `contrast(${more})`;
    caption.textContent = `change × ${Number((drawn * more).toPrecision(2))}`;
  });
  caption.after(slider);
});

// Copies: commands, and figures as files -------------------------------------------------------------

function button(label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "small";
  made.textContent = label;
  made.addEventListener("click", () => act(made));
  return made;
}

all("code.block").forEach((code) =>
  code.after(
    button("Copy", async (made) => {
      await navigator.clipboard.writeText(code.textContent);
      made.textContent = "Copied";
    }),
  ),
);

function standalone(svg) {
  // colours come from the page; a file has to hold them itself
  const copy = svg.cloneNode(true);
  const [from, to] = [svg, copy].map((root) => all("*", root));
  from.forEach((element, i) => {
    const seen = getComputedStyle(element);
    for (const name of ["fill", "stroke"])
      if (to[i].hasAttribute(name)) to[i].setAttribute(name, seen[name]);
  });
  const { width, height } = svg.viewBox.baseVal;
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.setAttribute("color", getComputedStyle(svg).color);
  return { text: new XMLSerializer().serializeToString(copy), width, height };
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function picture(svg) {
  const { text, width, height } = standalone(svg);
  const image = new Image();
  image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  const scale = 1600 / width;
  [canvas.width, canvas.height] = [1600, Math.round(height * scale)];
  const paint = canvas.getContext("2d");
  paint.fillStyle = getComputedStyle(document.body).backgroundColor;
  paint.fillRect(0, 0, canvas.width, canvas.height);
  paint.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

all("figure > svg.figure").forEach((svg) => {
  const name = svg.classList[1] ?? "figure";
  const files = document.createElement("p");
  files.className = "files";
  files.append(
    button("SVG", () => save(new Blob([standalone(svg).text], { type: "image/svg+xml" }), `${name}.svg`)),
    button("PNG", async () => save(await picture(svg), `${name}.png`)),
  );
  svg.after(files);
});
