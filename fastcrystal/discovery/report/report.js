"use strict";
// Draws the charts of #data with Plotly when they come into view, sorts tables, and shows structures in a 3-D scene.
// Text from the run is only ever set as textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  // ---- charts
  function draw(place) {
    const chart = data.charts[place.dataset.chart];
    if (!chart || place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const layout = { ...chart.layout, autosize: true };
    if (coarse) layout.dragmode = false; // a finger on a chart scrolls the page
    Plotly.newPlot(place, chart.data, layout, { ...config, displayModeBar: coarse ? false : "hover" });
    place.on("plotly_click", (event) => {
      const number = data.structures.findIndex((s) => s.id === event.points[0].customdata);
      if (number >= 0) { show(number); reveal(); }
    });
  }
  const places = [...document.querySelectorAll("[data-chart]")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "500px" });
  for (const place of places) seen.observe(place);
  window.addEventListener("beforeprint", () => places.forEach(draw));

  // ---- tables
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  function sort(table, column, direction) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[column];
      const key = "sort" in cell.dataset ? cell.dataset.sort : cell.textContent;
      return { row, number: "sort" in cell.dataset, key, empty: key === "" || key === "–" };
    });
    rows.sort((a, b) => {
      if (a.empty || b.empty) return a.empty - b.empty; // what is not known comes last, either way
      return direction * (a.number ? Number(a.key) - Number(b.key) : compare(a.key, b.key));
    });
    body.append(...rows.map((r) => r.row));
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((h) => h.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(table, column, ascending ? 1 : -1);
    }));
    table.tBodies[0].addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-structure]");
      if (row) { show(Number(row.dataset.structure)); reveal(); }
    });
  }
  const filter = byId("filter");
  if (filter) filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    const rows = [...document.querySelectorAll("table.ranking tbody tr")];
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    byId("filtered").textContent = wanted ? `${rows.filter((r) => !r.hidden).length} of ${rows.length}` : "";
  });

  // ---- structures
  const scene = byId("crystal");
  let current = -1;
  if (!scene) return;

  // corners and faces of a sphere of radius 1, by latitude and longitude
  const [RINGS, SPOKES] = [12, 20];
  const corners = [], faces = [];
  for (let r = 0; r <= RINGS; r++) for (let s = 0; s < SPOKES; s++) {
    const [theta, phi] = [Math.PI * r / RINGS, 2 * Math.PI * s / SPOKES];
    corners.push([Math.sin(theta) * Math.cos(phi), Math.sin(theta) * Math.sin(phi), Math.cos(theta)]);
  }
  for (let r = 0; r < RINGS; r++) for (let s = 0; s < SPOKES; s++) {
    const [a, b] = [r * SPOKES + s, r * SPOKES + (s + 1) % SPOKES];
    if (r > 0) faces.push([a, b, a + SPOKES]);
    if (r < RINGS - 1) faces.push([b, b + SPOKES, a + SPOKES]);
  }

  function atoms(element) {
    const mesh = { x: [], y: [], z: [], i: [], j: [], k: [], text: [] };
    for (const [x, y, z, site] of element.atoms) {
      const first = mesh.x.length;
      for (const [u, v, w] of corners) {
        mesh.x.push(x + element.radius * u); mesh.y.push(y + element.radius * v); mesh.z.push(z + element.radius * w);
        mesh.text.push(`${element.symbol}, site ${site + 1}`);
      }
      for (const [a, b, c] of faces) { mesh.i.push(first + a); mesh.j.push(first + b); mesh.k.push(first + c); }
    }
    return { type: "mesh3d", name: element.symbol, color: element.color, hoverinfo: "text", showlegend: true, ...mesh,
      lighting: { ambient: 0.55, diffuse: 0.75, specular: 0.25, roughness: 0.5, fresnel: 0.1 },
      // with an orthographic camera plotly takes this in the camera's frame: left, above, and from the viewer (-z)
      lightposition: { x: -4, y: 6, z: -4 } };
  }

  function lines(points, look, more) { // points: x, y, z of both ends of each line, one after the other
    const trace = { type: "scatter3d", mode: "lines", x: [], y: [], z: [], hoverinfo: "skip", line: look, ...more };
    for (let n = 0; n < points.length; n += 6) {
      trace.x.push(points[n], points[n + 3], null);
      trace.y.push(points[n + 1], points[n + 4], null);
      trace.z.push(points[n + 2], points[n + 5], null);
    }
    return trace;
  }

  const corner = (rows, i, j, k) => [0, 1, 2].map((x) => i * rows[0][x] + j * rows[1][x] + k * rows[2][x]);
  // where the letters of the axes stand: beyond the atom at the end of the edge
  const names = (rows) => rows.map((row) => row.map((x) => x * (1 + 1 / Math.hypot(...row))));

  function cell(rows) {
    const at = (i, j, k) => corner(rows, i, j, k);
    const edges = [];
    for (const u of [0, 1]) for (const v of [0, 1]) {
      edges.push(...at(0, u, v), ...at(1, u, v), ...at(u, 0, v), ...at(u, 1, v), ...at(u, v, 0), ...at(u, v, 1));
    }
    const ends = names(rows);
    const letters = { type: "scatter3d", mode: "text", text: ["a", "b", "c"], hoverinfo: "skip", showlegend: false,
      textfont: { size: 15, color: "#1a1a1a" }, legendgroup: "cell",
      x: ends.map((e) => e[0]), y: ends.map((e) => e[1]), z: ends.map((e) => e[2]) };
    return [lines(edges, { color: "#444444", width: 3 }, { name: "cell", legendgroup: "cell" }), letters];
  }

  // ranges and proportions of the axes: a box around atoms and cell that stays in the picture however it is turned
  function box(s) {
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    const cover = (point, radius) => point.slice(0, 3).forEach((x, n) => {
      low[n] = Math.min(low[n], x - radius); high[n] = Math.max(high[n], x + radius);
    });
    for (const element of s.elements) for (const atom of element.atoms) cover(atom, element.radius);
    for (const i of [0, 1]) for (const j of [0, 1]) for (const k of [0, 1]) cover(corner(s.cell, i, j, k), 0.3);
    for (const end of names(s.cell)) cover(end, 0.2);
    const size = low.map((x, n) => high[n] - x), diagonal = Math.hypot(...size);
    return [0, 1, 2].map((n) => ({ range: [low[n], high[n]], ratio: FILL * size[n] / diagonal }));
  }

  const FILL = 2.8;
  const EYE = { x: 0.95, y: -1.05, z: 0.42 };
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const vector = (v, length) => { const n = length / Math.hypot(...v); return { x: v[0] * n, y: v[1] * n, z: v[2] * n }; };
  function camera(along) {
    const common = { center: { x: 0, y: 0, z: 0 }, projection: { type: "orthographic" } };
    if (along === "") return { ...common, eye: EYE, up: { x: 0, y: 0, z: 1 } };
    const rows = data.structures[current].cell, view = rows[along], next = rows[(along + 1) % 3];
    return { ...common, eye: vector(view, 1.48), up: vector(cross(view, next), 1) };
  }

  function show(number) {
    if (number === current) return;
    current = number;
    const s = data.structures[number];
    const bonds = s.bonds.filter((b) => b.ends.length).map((b, n) => lines(b.ends, { color: b.color, width: 7 },
      { name: "bonds", legendgroup: "bonds", showlegend: n === 0 }));
    const [x, y, z] = box(s), axis = { visible: false, showspikes: false };
    const layout = { autosize: true, margin: { l: 0, r: 0, t: 36, b: 0 }, uirevision: s.id, paper_bgcolor: "white",
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", itemsizing: "constant" },
      scene: { aspectmode: "manual", aspectratio: { x: x.ratio, y: y.ratio, z: z.ratio }, dragmode: "orbit",
        xaxis: { ...axis, range: x.range }, yaxis: { ...axis, range: y.range }, zaxis: { ...axis, range: z.range },
        camera: camera("") } };
    Plotly.react(scene, [...s.elements.map(atoms), ...bonds, ...cell(s.cell)], layout,
      { ...config, displayModeBar: false, scrollZoom: true });
    const facts = byId("facts");
    facts.replaceChildren();
    for (const [name, text] of [["id", s.id], ...s.facts]) {
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name; value.textContent = text;
      facts.append(term, value);
    }
    byId("structure").value = String(number);
    for (const row of document.querySelectorAll("tr[data-structure]")) {
      row.classList.toggle("chosen", Number(row.dataset.structure) === number);
    }
  }
  function reveal() { // below the table on a phone
    if (window.matchMedia("(max-width: 900px)").matches) byId("viewer").scrollIntoView({ behavior: "smooth" });
  }

  const select = byId("structure"), count = data.structures.length;
  data.structures.forEach((s, n) => select.add(new Option(`${n + 1}. ${s.title} (${s.id})`, String(n))));
  select.addEventListener("change", () => show(Number(select.value)));
  byId("previous").addEventListener("click", () => show((current + count - 1) % count));
  byId("next").addEventListener("click", () => show((current + 1) % count));
  for (const button of document.querySelectorAll("[data-along]")) button.addEventListener("click", () => {
    const along = button.dataset.along;
    Plotly.relayout(scene, { "scene.camera": camera(along === "" ? "" : Number(along)) });
  });
  byId("cif").addEventListener("click", () => {
    const s = data.structures[current], link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([s.cif], { type: "chemical/x-cif" }));
    link.download = `${s.id.replace(/[^\w.+-]+/g, "_")}.cif`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  const opened = new IntersectionObserver((entries) => {
    if (entries.some((e) => e.isIntersecting)) { opened.disconnect(); if (current < 0) show(0); }
  }, { rootMargin: "300px" });
  opened.observe(scene);
})();
