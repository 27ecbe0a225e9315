"use strict";
// Sorts tables, draws the charts, moves the histogram. Texts and tables are whole without it.
(() => {
  document.documentElement.classList.add("script");

  // Tables: a button in each head; the first click sorts numbers from the smallest, a second turns the order round.
  const collator = new Intl.Collator(undefined, { numeric: true });
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const isNumber = head.dataset.sort === "number";
        const rows = [...table.tBodies[0].rows].map((row, place) => ({ row, place, value: key(row) }));
        rows.sort((one, other) => {
          // What is not known goes last, either way round.
          if (isNumber && (one.value === "") !== (other.value === "")) return one.value === "" ? 1 : -1;
          const order = isNumber ? one.value - other.value : collator.compare(one.value, other.value);
          return (falling ? -order : order) || one.place - other.place;
        });
        table.tBodies[0].append(...rows.map((one) => one.row));
      });
    });
  }

  for (const block of navigator.clipboard ? document.querySelectorAll(".command") : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("pre").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.append(button);
  }

  // Charts: specifications without colours of their own; each is drawn again where the scheme changes.
  const specifications = JSON.parse(document.getElementById("charts").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const coloured = (part) => {
    if (typeof part === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(part);
      return name ? colour(name[1]) : part;
    }
    if (Array.isArray(part)) return part.map(coloured);
    if (part && typeof part === "object") return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, coloured(value)]));
    return part;
  };
  const config = () => ({
    background: null,
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    axis: {
      labelColor: colour("--soft"), titleColor: colour("--soft"), gridColor: colour("--line"), domainColor: colour("--faint"),
      tickColor: colour("--faint"), labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400, titlePadding: 8, tickSize: 3,
    },
    axisY: { domain: false, ticks: false },
    axisX: { grid: false },
    text: { font: getComputedStyle(document.body).fontFamily },
  });

  const slider = document.getElementById("epoch");
  let bins = null; // the histogram's view
  function show() {
    const { frames } = specifications.margins.usermeta;
    const frame = frames[slider.value];
    const total = frame.counts.reduce((sum, count) => sum + count, 0) || 1;
    const rows = frame.counts.map((count, i) => ({ low: frame.edges[i], high: frame.edges[i + 1], count, share: count / total }));
    slider.nextElementSibling.textContent =
      `epoch ${frame.epoch}: mean ${frame.mean.toPrecision(3)}, median ${frame.median.toPrecision(3)}`;
    slider.setAttribute("aria-valuetext", slider.nextElementSibling.textContent);
    if (bins) bins.change("bins", vega.changeset().remove(() => true).insert(rows)).run();
  }

  async function draw() {
    for (const place of document.querySelectorAll("[data-chart]")) {
      const { usermeta, ...specification } = specifications[place.dataset.chart];
      const drawn = await vegaEmbed(place, coloured(specification), {
        mode: "vega-lite", actions: false, renderer: "svg", ast: true, config: config(), tooltip: { theme: "custom" },
      });
      if (place.dataset.chart === "margins") {
        bins = drawn.view;
        show();
      }
    }
    document.documentElement.dataset.drawn = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  if (slider) slider.addEventListener("input", show);
  if (document.querySelector("[data-chart]")) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
})();
