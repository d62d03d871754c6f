"use strict";
// What the pointer is near is said in words; the buttons of the legend take methods out of the charts.
const tips = JSON.parse(document.getElementById("points").textContent);
const tip = document.getElementById("tip");
const charts = [...document.querySelectorAll("svg.curves")];
const REACH = 32; // pixels of the page

function nearest(chart, event) {
  const matrix = chart.getScreenCTM();
  let best = null;
  for (const series of chart.querySelectorAll(".series:not(.hidden)")) {
    const line = series.querySelector(".line");
    [...line.points].forEach((point, index) => {
      const seen = point.matrixTransform(matrix);
      const distance = Math.hypot(seen.x - event.clientX, seen.y - event.clientY);
      if (distance < REACH && (!best || distance < best.distance))
        best = { distance, series, seen, point, words: tips[series.dataset.series][index + Number(line.dataset.first)] };
    });
  }
  return best;
}

function point(chart, event) {
  const found = event && nearest(chart, event), ring = chart.querySelector(".ring");
  chart.classList.toggle("pointed", Boolean(found));
  for (const series of chart.querySelectorAll(".series")) series.classList.toggle("near", found?.series === series);
  ring.setAttribute("visibility", found ? "visible" : "hidden");
  tip.hidden = !found;
  if (!found) return;
  ring.setAttribute("cx", found.point.x);
  ring.setAttribute("cy", found.point.y);
  tip.textContent = found.words;
  const right = Math.max(8, Math.min(found.seen.x + 14, innerWidth - tip.offsetWidth - 8));
  const below = found.seen.y + 16, above = found.seen.y - tip.offsetHeight - 14;
  tip.style.left = `${right}px`;
  tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : above}px`;
}

for (const chart of charts) {
  chart.addEventListener("pointermove", (event) => point(chart, event));
  chart.addEventListener("pointerdown", (event) => point(chart, event));
  chart.addEventListener("pointerleave", () => point(chart, null));
}
for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const chart of charts)
      for (const series of chart.querySelectorAll(`[data-series="${button.dataset.series}"]`))
        series.classList.toggle("hidden", !shown);
  });
