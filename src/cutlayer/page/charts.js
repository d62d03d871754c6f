// What the pointer is near in a chart of lines is said in words; the buttons of a legend take series out of the charts.
const tip = document.getElementById("tip");
const REACH = 32; // pixels of the page

function sayAt(words, x, y) {
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  const right = Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8));
  const below = y + 16, above = y - tip.offsetHeight - 14;
  tip.style.left = `${right}px`;
  tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : above}px`;
}

function nearest(chart, event) {
  const matrix = chart.getScreenCTM();
  let best = null;
  for (const series of chart.querySelectorAll(".series:not(.hidden)")) {
    const line = series.querySelector(".line");
    [...line.points].forEach((point, index) => {
      const seen = point.matrixTransform(matrix);
      const distance = Math.hypot(seen.x - event.clientX, seen.y - event.clientY);
      if (distance < REACH && (!best || distance < best.distance))
        best = { distance, series, seen, point, index: index + Number(line.dataset.first) };
    });
  }
  return best;
}

function pointIn(chart, event, wordsOf) {
  const found = event && nearest(chart, event), ring = chart.querySelector(".ring");
  chart.classList.toggle("pointed", Boolean(found));
  for (const series of chart.querySelectorAll(".series")) series.classList.toggle("near", found?.series === series);
  ring.setAttribute("visibility", found ? "visible" : "hidden");
  if (!found) return sayAt("");
  ring.setAttribute("cx", found.point.x);
  ring.setAttribute("cy", found.point.y);
  sayAt(wordsOf(chart, Number(found.series.dataset.series), found.index), found.seen.x, found.seen.y);
}

// wordsOf(chart, series, index) says what a point of a chart is.
function watchCharts(charts, wordsOf) {
  for (const chart of charts) {
    chart.addEventListener("pointermove", (event) => pointIn(chart, event, wordsOf));
    chart.addEventListener("pointerdown", (event) => pointIn(chart, event, wordsOf));
    chart.addEventListener("pointerleave", () => pointIn(chart, null, wordsOf));
  }
}

function dataOf(id) {
  const element = document.getElementById(id);
  return element && JSON.parse(element.textContent);
}
