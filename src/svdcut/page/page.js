
"use strict";
(() => {
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);
  const { rows, csv } = JSON.parse(at("data").textContent);
  const body = at("table").tBodies[0];
  const frame = at("table").parentElement;
  const heads = [...at("table").tHead.rows[0].cells];
  const lines = [...at("table").querySelectorAll("tbody tr")];
  const NAME = 1, SHAPE = 2, DTYPE = 3;

  // A row is [place of the row it belongs to or -1, name, shape, dtype, numbers ...].
  const tops = rows.flatMap((row, place) => (row[0] < 0 ? [place] : []));
  const experts = new Map(tops.map((place) => [place, []]));
  rows.forEach((row, place) => row[0] < 0 || experts.get(row[0]).push(place));
  const open = new Set();
  let sorted = null;

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const nameTheme = () => { at("theme").textContent = isDark() ? "Light" : "Dark"; };
  at("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  dark.addEventListener("change", nameTheme);

  const value = (place, column) => {
    const found = rows[place][column];
    return column === SHAPE ? found.reduce((size, length) => size * length, 1) : found;
  };
  const collator = new Intl.Collator("en", { numeric: true });
  const compare = (column, sign) => (a, b) => {
    const x = value(a, column), y = value(b, column);
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    const order = typeof x === "string" ? collator.compare(x, y) : x - y;
    return sign * order || a - b;
  };

  // What Python's fnmatch makes of a pattern: --only takes it too. As there, what a star has
  // once passed over is not tried again: else a pattern of many stars would take for ever.
  function glob(pattern) {
    const plain = (text) => text.replace(/[\\^$.*+?()[\]{}|\/]/gu, "\\$&");
    const parts = [""];
    for (const token of pattern.match(/\[(?:![^]|[^!])[^\]]*\]|\*+|./gsu) ?? []) {
      if (token[0] === "*") parts.push("");
      else if (token === "?") parts[parts.length - 1] += ".";
      else if (token.length === 1) parts[parts.length - 1] += plain(token);
      else {
        const set = token.slice(1, -1).replace(/[\\\][^]/gu, "\\$&").replace(/^!/u, "^");
        parts[parts.length - 1] += `[${set}]`;
      }
    }
    const last = parts.length > 1 ? `.*${parts.pop()}` : "";
    const steps = parts.map((part, i) => (i ? `(?=(.*?${part}))\\${i}` : part));
    try {
      return new RegExp(`^${steps.join("")}${last}$`, "su");
    } catch {
      return /$^/u; // a range from its end to its begin holds nothing
    }
  }
  function finder(word) {
    const part = word.toLowerCase(), whole = glob(word);
    return (name) => name.toLowerCase().includes(part) || whole.test(name);
  }

  // Only what is near is laid out: thousands of rows take a browser seconds.
  const STEP = 500;
  let queue = [];
  let drawn = 0;

  function more(count) {
    const next = document.createDocumentFragment();
    for (const place of queue.slice(drawn, drawn + count)) {
      lines[place].hidden = false;
      next.append(lines[place]);
    }
    body.append(next);
    drawn = Math.min(drawn + count, queue.length);
  }

  function draw() {
    const by = sorted && compare(sorted.column, sorted.sign);
    const inOrder = (places) => (by ? [...places].sort(by) : places);
    const words = at("filter").value.split(/\s+/).map(finder);
    const fits = (place) => words.every((finds) => finds(rows[place][NAME]));
    const shown = tops.filter((place) => fits(place) || experts.get(place).some(fits));
    queue = inOrder(shown).flatMap((place) => (
      open.has(place) ? [place, ...inOrder(experts.get(place))] : [place]));
    body.replaceChildren();
    drawn = 0;
    more(STEP);
    heads.forEach((head) => {
      if (!head.hasAttribute("aria-sort")) return;
      const is = sorted && Number(head.dataset.column) === sorted.column;
      head.setAttribute("aria-sort", is ? (sorted.sign > 0 ? "ascending" : "descending") : "none");
    });
    at("order").hidden = !sorted;
    at("shown").textContent = `${shown.length} of ${tops.length}`;
  }

  function sortBy(column) {
    // What is largest comes first; names and dtypes start at their beginning.
    const first = column === NAME || column === DTYPE ? 1 : -1;
    sorted = { column, sign: sorted && sorted.column === column ? -sorted.sign : first };
    draw();
    frame.scrollTop = 0;
  }

  function fold(places, isOpen) {
    for (const place of places) {
      const button = lines[place].querySelector(".fold");
      if (!button) continue;
      open[isOpen ? "add" : "delete"](place);
      button.setAttribute("aria-expanded", isOpen);
    }
    at("unfold").textContent = open.size ? "Hide experts" : "Show experts";
    at("unfold").setAttribute("aria-expanded", open.size > 0);
    const { scrollTop } = frame;
    const before = drawn;
    draw();
    more(Math.max(before - drawn, 0));
    frame.scrollTop = scrollTop;
  }

  async function save() {
    const packed = Uint8Array.from(atob(csv), (letter) => letter.charCodeAt(0));
    const text = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await new Response(text).blob());
    link.download = "svdcut-spectrum.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  heads.forEach((head) => {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sortBy(Number(head.dataset.column)));
  });
  body.addEventListener("click", (event) => {
    const button = event.target.closest(".fold");
    if (!button) return;
    const place = lines.indexOf(button.closest("tr"));
    fold([place], !open.has(place));
    button.focus({ preventScroll: true });
  });
  at("order").addEventListener("click", () => {
    sorted = null;
    draw();
    heads[0].querySelector("button").focus();
  });
  at("unfold").addEventListener("click", () => fold(tops, open.size === 0));
  at("unfold").hidden = !lines.some((line) => line.querySelector(".fold"));
  at("filter").addEventListener("input", draw);
  at("filter").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { at("filter").value = ""; draw(); }
  });
  at("csv").addEventListener("click", save);
  frame.addEventListener("scroll", () => {
    if (frame.scrollTop + 3 * frame.clientHeight > frame.scrollHeight) more(STEP);
  }, { passive: true });
  addEventListener("beforeprint", () => more(queue.length));

  for (const rest of [...at("table").tBodies].slice(1)) rest.remove();
  root.className = "live";
  nameTheme();
  draw();
})();
