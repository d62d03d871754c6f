const tips = dataOf("points"), charts = [...document.querySelectorAll("svg.curves")];
watchCharts(charts, (_chart, series, index) => tips[series][index]);
for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const chart of charts)
      for (const series of chart.querySelectorAll(`[data-series="${button.dataset.series}"]`))
        series.classList.toggle("hidden", !shown);
  });
