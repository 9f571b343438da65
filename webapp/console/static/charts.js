// The charts of the last ten minutes, and the same numbers as tables. A gap in the data is a gap in the chart.

/* global uPlot */

const KEPT = 600;
const HEIGHT = 180;
const ROWS = 10;
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

const colours = new Map();

function colour(name) {
  if (!colours.has(name)) {
    // The value of a variable is light-dark(...): a property has what that comes to.
    document.body.style.setProperty("accent-color", `var(${name})`);
    colours.set(name, getComputedStyle(document.body).accentColor);
    document.body.style.removeProperty("accent-color");
  }
  return colours.get(name);
}

function time(at) {
  return new Date(at * 1000).toLocaleTimeString(document.documentElement.lang, { hour12: false });
}

function short(value) {
  if (value === null || value === undefined) return "–";
  return value === 0 ? "0" : value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

class Chart {
  constructor(figure, names) {
    this.places = figure.dataset.columns.split(" ").map((name) => names.indexOf(name));
    this.figure = figure;
    this.isOptional = "optional" in figure.dataset;
    this.plot = figure.querySelector(".plot");
    this.details = figure.querySelector("details");
    this.body = figure.querySelector("tbody");
    this.labels = [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent);
    this.details.addEventListener("toggle", () => this.fill());
    this.chart = new uPlot(this.options(), [[], ...this.places.map(() => [])], this.plot);
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  options() {
    const axis = { stroke: () => colour("--soft"), grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { stroke: () => colour("--line"), width: 1 }, font: "12px system-ui" };
    return {
      width: this.plot.clientWidth || 320,
      height: HEIGHT,
      cursor: { drag: { x: false, y: false } },
      scales: { x: { range: (_, __, last) => [last - KEPT, last] }, y: { range: (_, __, most) => [0, (most || 1) * 1.1] } },
      axes: [
        { ...axis, space: 80, values: (_, splits) => splits.map((at) => time(at).slice(0, 5)) },
        { ...axis, size: 48, values: (_, splits) => splits.map((value) => String(+value.toFixed(3))) },
      ],
      series: [
        { label: this.labels[0], value: (_, at) => (at ? time(at) : "–") },
        ...this.places.map((_, n) => ({
          label: this.labels[n + 1],
          stroke: () => colour(`--series-${n + 1}`),
          width: 1.75,
          dash: DASHES[n],
          points: { show: false },
          // Without a cursor in the chart: the newest.
          value: (chart, value, place, at) => short(at === null ? chart.data[place].at(-1) : value),
        })),
      ],
    };
  }

  draw(rows) {
    this.rows = rows;
    this.chart.setData([rows.map((row) => row[0]), ...this.places.map((place) => rows.map((row) => row[place]))]);
    this.plot.dataset.points = rows.filter((row) => row[this.places[0]] !== null).length;
    this.figure.hidden = this.isOptional && !Number(this.plot.dataset.points);
    this.fill();
  }

  resize() {
    const width = this.plot.clientWidth;
    if (width && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
  }

  fill() {
    if (!this.details.open || !this.rows) return;
    const step = Math.max(1, Math.ceil(this.rows.length / ROWS));
    const chosen = this.rows.filter((_, n) => (this.rows.length - 1 - n) % step === 0);
    this.body.replaceChildren(...chosen.map((row) => {
      const line = document.createElement("tr");
      const head = Object.assign(document.createElement("th"), { scope: "row", textContent: time(row[0]) });
      const cells = this.places.map((place) =>
        Object.assign(document.createElement("td"), { textContent: short(row[place]) }));
      line.append(head, ...cells);
      return line;
    }));
  }
}

export function charts() {
  const names = document.getElementById("main").dataset.point.split(" ");
  const drawn = [...document.querySelectorAll(".chart")].map((figure) => new Chart(figure, names));
  let rows = [];
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colours.clear();
    for (const each of drawn) each.chart.redraw();
  });
  return {
    add(points, isNew) {
      rows = [...(isNew ? [] : rows), ...points].slice(-KEPT);
      if (points.length) for (const each of drawn) each.draw(rows);
    },
  };
}
