// Values under the pointer, or under the arrow keys. The page reads without this.
"use strict";
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script.values").textContent);
  const plot = figure.querySelector(".plot"), area = figure.querySelector(".area");
  const longest = data.series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
  const cross = document.createElement("div"), tip = document.createElement("div");
  cross.className = "cross"; tip.className = "tip"; tip.setAttribute("role", "status");
  cross.hidden = tip.hidden = true;
  area.append(cross, tip);
  plot.tabIndex = 0;
  let at = -1;

  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  const format = (value) => value === null || value === undefined ? "–" :
    Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toPrecision(3) :
    value.toLocaleString("en", { maximumSignificantDigits: 4 });

  const show = (index) => {
    at = Math.max(0, Math.min(longest.x.length - 1, index));
    const x = longest.x[at], near = 1.5 / Math.max(1, longest.x.length);
    tip.replaceChildren();
    const add = (name, value) => {
      const row = document.createElement("div"), label = document.createElement("span"), strong = document.createElement("b");
      label.textContent = name; strong.textContent = value;
      row.append(label, strong); tip.append(row);
    };
    add("step", longest.step[at].toLocaleString("en"));
    for (const series of data.series) {
      const k = nearest(series.x, x);
      if (k >= 0 && Math.abs(series.x[k] - x) <= near && series.y[k] !== null) add(series.name, format(series.y[k]));
    }
    cross.style.left = 100 * x + "%";
    cross.hidden = tip.hidden = false;
    const place = x * area.clientWidth, width = tip.offsetWidth;
    tip.style.left = Math.max(0, Math.min(area.clientWidth - width, place + width + 14 > area.clientWidth ? place - width - 12 : place + 12)) + "px";
  };
  const hide = () => { cross.hidden = tip.hidden = true; };

  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    show(nearest(longest.x, (event.clientX - box.left) / box.width));
  });
  area.addEventListener("pointerdown", (event) => {
    const box = area.getBoundingClientRect();
    show(nearest(longest.x, (event.clientX - box.left) / box.width));
  });
  area.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const stride = event.shiftKey ? Math.ceil(longest.x.length / 20) : 1;
    const moves = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: longest.x.length - 1 };
    if (event.key === "Escape") hide();
    else if (event.key in moves) { show(moves[event.key]); event.preventDefault(); }
  });
}
