"use strict";
// P(t) of Eq. 4: a softmax over score / tau inside each segment.
function probabilities(data, tau) {
  if (!data.similarity) return data.scores.slice();
  const p = new Array(data.scores.length).fill(0);
  for (const [start, end] of data.bounds) {
    const part = data.scores.slice(start, end), top = Math.max(...part);
    const powers = part.map((s) => Math.exp((s - top) / tau));
    const total = powers.reduce((a, b) => a + b, 0);
    powers.forEach((value, i) => { p[start + i] = value / total; });
  }
  return p;
}
// The inverse-CDF draw of `importance`, on the uniform numbers of a training step.
function draw(data, p, step) {
  if (!data.points.length) return data.picks;
  const total = []; let sum = 0;
  for (const value of p) { sum += value; total.push(sum); }
  return data.points[step].map((row) => row.map((u, k) => {
    const [start, end] = data.bounds[k];
    const before = start ? total[start - 1] : 0, point = before + u * (total[end - 1] - before);
    let i = start;
    while (i < end - 1 && total[i] <= point) i += 1;
    return i;
  }));
}
function measures(data, p, picks) {
  const filled = data.bounds.filter(([a, b]) => b > a);
  const effective = filled.map(([a, b]) =>
    Math.exp(-p.slice(a, b).reduce((h, v) => h + (v > 0 ? v * Math.log(v) : 0), 0)));
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const shared = [], sets = picks.map((row) => new Set(row));
  sets.forEach((a, i) => sets.slice(i + 1).forEach((b) => {
    shared.push([...a].filter((f) => b.has(f)).length / Math.max(a.size, b.size));
  }));
  return {
    effective: mean(effective),
    share: mean(effective.map((e, k) => e / (filled[k][1] - filled[k][0]))),
    overlap: mean(filled.map(([a, b]) => p.slice(a, b).reduce((h, v) => h + v * v, 0))),
    here: shared.length ? mean(shared) : NaN,
    seen: data.evidence && picks.map((row) => row.some((f) => data.evidence[f])),
  };
}
function show(section, data, tau, step) {
  const p = probabilities(data, tau), picks = draw(data, p, step), c = data.chart;
  const set = (name, text) => { const e = section.querySelector(name); if (e) e.textContent = text; };
  const percent = (value) => (100 * value).toFixed(1) + " %";
  section.querySelectorAll("svg .bar").forEach((bar, i) => {
    const height = p[i] * (c.p_bottom - c.p_top);
    bar.setAttribute("y", c.p_bottom - height); bar.setAttribute("height", height);
  });
  const width = c.width / p.length;
  section.querySelectorAll("svg .picks").forEach((row, m) => {
    row.querySelectorAll(".pick").forEach((dot, k) =>
      dot.setAttribute("cx", c.left + (picks[m][k] + 0.5) * width));
  });
  section.querySelectorAll(".film .cell").forEach((cell) => {
    const f = Number(cell.dataset.frame);
    cell.style.setProperty("--prob", p[f].toFixed(4));
    cell.title = cell.title.replace(/P [\d.]+/, "P " + p[f].toFixed(3));
    const tags = cell.querySelector(".tags"); tags.replaceChildren();
    picks.forEach((row, m) => {
      if (!row.includes(f)) return;
      const tag = document.createElement("span");
      tag.className = "tag v" + (m % 6); tag.textContent = "V" + (m + 1);
      tags.append(tag, " ");
    });
  });
  const now = measures(data, p, picks);
  set(".effective", now.effective.toFixed(2)); set(".share", percent(now.share));
  set(".overlap", percent(now.overlap)); set(".here", percent(now.here));
  if (now.seen) set(".seen", now.seen.map((s, m) => `V${m + 1} ${s ? "yes" : "no"}`).join(", "));
  set(".tau-out", tau >= 1 ? tau.toFixed(2) : tau.toPrecision(2));
  set(".step-out", String(data.step + step));
}
for (const section of document.querySelectorAll("section.question")) {
  const data = JSON.parse(section.querySelector("script.data").textContent);
  const tau = section.querySelector(".tau"), step = section.querySelector(".step");
  section.querySelector(".controls").hidden = false;
  // The slider moves in powers of ten; until it is touched the exact configured value holds.
  let touched = false;
  const update = () => show(section, data, touched ? 10 ** Number(tau.value) : data.tau,
    step ? Number(step.value) : 0);
  const reset = () => {
    touched = false;
    if (tau) tau.value = Math.log10(data.tau);
    if (step) step.value = 0;
    update();
  };
  if (tau) tau.addEventListener("input", () => { touched = true; update(); });
  if (step) step.addEventListener("input", update);
  const button = section.querySelector(".reset");
  if (button) button.addEventListener("click", reset);
  reset();
}
