// Draws the charts in the colors of the page.
"use strict";

const report = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axis(settings) {
  const { title, ...rest } = settings || {};
  return {
    gridcolor: color("--grid"), linecolor: color("--line"), zeroline: false, automargin: true, exponentformat: "power",
    title: { text: title || "", standoff: 8 }, ...rest,
  };
}

function labelOf(label) {
  return { ...label, showarrow: false, xanchor: "left", xshift: 3, bgcolor: color("--card"), opacity: 0.85, font: { size: 10 } };
}

function layoutOf(chart) {
  return {
    ...chart.layout,
    xaxis: axis(chart.layout.xaxis),
    yaxis: axis(chart.layout.yaxis),
    annotations: (chart.labels || []).map(labelOf),
    font: { color: color("--text"), size: 12, family: "system-ui, sans-serif" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 12, t: 12, b: 40 },
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
    hoverlabel: { align: "left", bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--text") } },
    hovermode: "closest",
    // On a phone, a finger scrolls the page
    dragmode: window.innerWidth < 600 ? false : "zoom",
  };
}

function traceOf(trace) {
  const { trials, ...rest } = trace;
  if (trials) return { ...rest, text: trials.map((number) => report.trials[number]), hoverinfo: "text" };
  return rest;
}

function draw() {
  const config = { displayModeBar: false };
  for (const [name, chart] of Object.entries(report.charts)) {
    const element = document.getElementById(`chart-${name}`);
    if (chart.min_width) element.style.minWidth = `${chart.min_width}px`;
    Plotly.react(element, chart.data.map(traceOf), layoutOf(chart), config);
  }
}

draw();
dark.addEventListener("change", draw);
// Charts follow the width of their sections, which may change without a resize of the window
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) Plotly.Plots.resize(target);
});
for (const name of Object.keys(report.charts)) observer.observe(document.getElementById(`chart-${name}`));
