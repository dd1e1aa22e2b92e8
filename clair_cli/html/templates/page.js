(() => {
  "use strict";
  const root = document.documentElement;
  const grids = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const number = (value) => {
    if (Math.abs(value) >= 1e6) return value.toExponential(2);
    return value.toFixed(Math.abs(value) >= 100 ? 0 : 3).replace(/^-(0\.?0*)$/, "$1");
  };

  // --- sorting and filtering the clients
  const table = document.getElementById("clients");
  const rows = all("tbody tr", table);
  const key = (row, column) => row.cells[column].dataset.key;
  const numeric = (text) => text !== "" && Number.isFinite(Number(text));
  const compare = (one, other) => {
    if (numeric(one) && numeric(other)) return Number(one) - Number(other);
    return one < other ? -1 : one > other ? 1 : 0;
  };
  all("thead th", table).forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of all("thead th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const sorted = rows.map((row, i) => [row, i]).sort(
        ([a, i], [b, j]) => sign * compare(key(a, column), key(b, column)) || i - j);
      table.tBodies[0].append(...sorted.map(([row]) => row));
    });
  });
  const find = document.getElementById("find");
  const chips = all(".chip");
  const words = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const text = find.value.trim().toLowerCase();
    const wanted = chips.filter((c) => c.getAttribute("aria-pressed") === "true").map((c) => c.dataset.verdict);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words[i].includes(text) || (wanted.length > 0 && !wanted.includes(row.dataset.verdict));
      shown += row.hidden ? 0 : 1;
    });
    document.getElementById("shown").textContent = `${shown} of ${rows.length} shown`;
  };
  find.addEventListener("input", filter);
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      filter();
    });
  }
  document.getElementById("filters").hidden = rows.length < 2;
  filter();

  // --- heat maps
  const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const palette = () => {
    const style = getComputedStyle(root);
    const read = (name) => {
      const text = style.getPropertyValue(name).trim();
      return text.length === 4 ? "#" + [...text.slice(1)].map((c) => c + c).join("") : text;
    };
    const low = rgb(read("--low")), mid = rgb(read("--mid")), high = rgb(read("--high"));
    const steps = Array.from({ length: 129 }, (_, i) => {
      const t = (i - 64) / 64, end = t < 0 ? low : high;
      return [...mid.map((c, k) => Math.round(c + Math.abs(t) * (end[k] - c))), 255];
    });
    return { steps, none: read("--none"), ink: read("--ink"), line: read("--line"), accent: read("--accent") };
  };
  const sayings = {
    similarity: (value) => `similarity ${number(value)}`,
    share: (value) => `${number(value)} of what typical members share there`,
    size: (value) => `${number(2 ** value)} times the median client's size there`,
  };
  const charts = [];
  for (const canvas of all("canvas[data-grid]")) {
    const name = canvas.dataset.grid, grid = grids[name];
    const columns = grid.columns || grid.rows, n = columns.length, m = grid.rows.length;
    const readout = canvas.closest("section").querySelector(".readout");
    const chart = { picked: null };
    const small = document.createElement("canvas");
    small.width = n;
    small.height = m;
    const cut = (context, text, width) => {
      if (context.measureText(text).width <= width) return text;
      let letters = [...text];
      while (letters.length > 1 && context.measureText(letters.join("") + "…").width > width) letters = letters.slice(0, -1);
      return letters.join("") + "…";
    };
    chart.draw = () => {
      const room = canvas.parentElement.clientWidth, font = "12px system-ui, sans-serif";
      if (!room) return;
      const context = canvas.getContext("2d", { alpha: false });
      context.font = font;
      const named = m <= grid.most_labels, headed = grid.labels !== null && n <= grid.most_labels && room > 34 * 16;
      const widest = named ? Math.max(...grid.rows.map((r) => context.measureText(r).width)) : 0;
      const left = Math.ceil(Math.min(widest, room * 0.3)) + (named ? 8 : 0);
      const top = headed ? Math.ceil(Math.min(150, Math.max(...grid.labels.map((c) => context.measureText(c).width)))) + 8 : 0;
      const width = Math.min((room - left) / n, 28), height = named ? Math.max(15, Math.min(width, 24)) : Math.max(2, Math.min(width, 24));
      const ratio = Math.max(2, window.devicePixelRatio || 1);
      Object.assign(chart, { left, top, width, height });
      canvas.style.width = `${left + width * n}px`;
      canvas.style.height = `${top + height * m}px`;
      canvas.width = Math.round((left + width * n) * ratio);
      canvas.height = Math.round((top + height * m) * ratio);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.font = font;
      const colours = palette();
      context.fillStyle = colours.none;
      context.fillRect(0, 0, left + width * n, top + height * m);
      const x = (j) => Math.round((left + j * width) * ratio) / ratio, y = (i) => Math.round((top + i * height) * ratio) / ratio;
      const cells = new ImageData(n, m);
      grid.values.forEach((value, i) => {
        if (value === null) return;
        const t = Math.max(-1, Math.min(1, (value / grid.scale - grid.middle) / grid.bound));
        cells.data.set(colours.steps[Math.round(64 * t) + 64], 4 * i);
      });
      small.getContext("2d").putImageData(cells, 0, 0);  // one pixel a cell: fast for any number
      context.imageSmoothingEnabled = false;
      context.drawImage(small, left, top, width * n, height * m);
      if (width > 5 && height > 5) {
        context.strokeStyle = colours.line;
        context.beginPath();
        grid.values.forEach((value, k) => {
          if (value !== null) return;
          const i = Math.floor(k / n), j = k % n;
          context.moveTo(x(j) + 1, y(i + 1) - 1);
          context.lineTo(x(j + 1) - 1, y(i) + 1);
        });
        context.stroke();
      }
      context.strokeStyle = colours.ink;
      context.lineWidth = 1.5;
      for (const end of grid.ends) {
        context.beginPath();
        context.moveTo(left, y(end));
        context.lineTo(left + width * n, y(end));
        if (!grid.columns) {
          context.moveTo(x(end), top);
          context.lineTo(x(end), top + height * m);
        }
        context.stroke();
      }
      context.fillStyle = colours.ink;
      context.textBaseline = "middle";
      context.textAlign = "right";
      if (named) grid.rows.forEach((text, i) => context.fillText(cut(context, text, left - 6), left - 6, y(i) + height / 2));
      if (headed) {
        context.textAlign = "left";
        grid.labels.forEach((text, j) => {
          context.save();
          context.translate(x(j) + width / 2, top - 5);
          context.rotate(-Math.PI / 2);
          context.fillText(cut(context, text, top - 8), 0, 0);
          context.restore();
        });
      }
      if (chart.picked) {
        const [i, j] = chart.picked;
        context.strokeStyle = colours.accent;
        context.lineWidth = 3;
        context.strokeRect(x(j), y(i), Math.max(width, 4), Math.max(height, 4));
      }
    };
    chart.pick = (i, j) => {
      chart.picked = i < 0 || j < 0 || i >= m || j >= n ? null : [i, j];
      chart.draw();
      if (!chart.picked) { readout.textContent = ""; return; }
      const value = grid.values[i * n + j];
      const what = value !== null ? sayings[name](value / grid.scale) : !grid.columns && i === j ? "the client itself" : "nothing can be told";
      readout.textContent = `${grid.rows[i]} ${grid.columns ? "in" : "and"} ${columns[j]}: ${what}`;
    };
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      chart.pick(Math.floor((event.clientY - box.top - chart.top) / chart.height), Math.floor((event.clientX - box.left - chart.left) / chart.width));
    };
    canvas.addEventListener("pointermove", at);
    canvas.addEventListener("pointerdown", at);
    canvas.addEventListener("keydown", (event) => {
      const [i, j] = chart.picked || [0, 0];
      const to = { ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], Home: [i, 0], End: [i, n - 1] }[event.key];
      if (event.key === "Escape") chart.pick(-1, -1);
      if (!to) return;
      event.preventDefault();
      chart.pick(...(chart.picked ? [Math.max(0, Math.min(m - 1, to[0])), Math.max(0, Math.min(n - 1, to[1]))] : [0, 0]));
    });
    charts.push(chart);
  }
  const draw = () => charts.forEach((chart) => chart.draw());
  draw();
  window.addEventListener("resize", draw);

  // --- marks of drawings: hover, and arrow keys
  for (const drawing of all(".drawn, .evidence")) {
    const section = drawing.closest("section");
    let readout = section.querySelector(".readout");
    if (!readout) {
      readout = document.createElement("output");
      readout.className = "readout";
      section.append(readout);
    }
    const tips = all("[data-tip]", drawing);
    let picked = -1;
    const pick = (to) => {
      if (picked >= 0) tips[picked].classList.remove("picked");
      picked = to;
      if (picked >= 0) tips[picked].classList.add("picked");
      readout.textContent = picked >= 0 ? tips[picked].dataset.tip : "";
    };
    for (const kind of ["pointerover", "pointerdown"]) {
      drawing.addEventListener(kind, (event) => {
        const tip = event.target.closest("[data-tip]");
        if (tip) pick(tips.indexOf(tip));
      });
    }
    if (!drawing.hasAttribute("tabindex")) continue;
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step || !tips.length) return;
      event.preventDefault();
      pick((picked + step + tips.length) % tips.length);
    });
  }

  // --- light, dark, print
  const theme = document.getElementById("theme"), themes = ["system", "light", "dark"];
  let chosen = 0;
  const use = (name) => {
    if (name) root.dataset.theme = name;
    else delete root.dataset.theme;
    draw();
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    chosen = (chosen + 1) % 3;
    theme.textContent = `Theme: ${themes[chosen]}`;
    use(chosen ? themes[chosen] : "");
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const opened = [];
  window.addEventListener("beforeprint", () => {
    for (const details of all("details.rows:not([open])")) opened.push(details);
    for (const details of opened) details.open = true;
    use("light");
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened.splice(0)) details.open = false;
    use(chosen ? themes[chosen] : "");
  });
})();
