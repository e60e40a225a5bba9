// The numbers of charts: as words, and as what uPlot draws. Nothing here knows of the page.
"use strict";
const numbers = (() => {
  const MOST_BARS = 150;

  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
  const whole = (value) => Math.round(value).toLocaleString("en");
  const format = (value) => value === null || value === undefined ? "–" :
    Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toPrecision(3) :
    value.toLocaleString("en", { maximumSignificantDigits: 4 });
  const tick = (value) => { // a round number, in full
    const exact = Number(value.toPrecision(9));
    const size = Math.abs(exact);
    return exact !== 0 && (size >= 1e6 || size < 1e-4) ? exact.toExponential().replace("e+", "e") :
      exact.toLocaleString("en", { maximumFractionDigits: 9 });
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };

  // How long after the run's start a step was done, as far as the page knows; null where it does not.
  const after = ({ steps, sec }, step) => {
    const k = steps.findIndex((other) => other >= step);
    if (k < 0) return null;
    const before = Math.max(0, k - 1), width = steps[k] - steps[before];
    const share = width > 0 ? clamp((step - steps[before]) / width, 0, 1) : 1;
    return duration(sec[before] + (sec[k] - sec[before]) * share);
  };
  const duration = (sec) => {
    const words = [];
    let rest = sec;
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
      const number = Math.floor(rest / size);
      if (number > 0 || words.length) words.push(`${number} ${unit}`);
      rest -= number * size;
    }
    return words.length ? words.slice(0, 2).join(" ") : `${sec.toFixed(1)} s`;
  };

  const ticksOfLog = (low, high) => {
    let ticks = [];
    for (const factors of [[1], [1, 3], [1, 2, 5]]) {
      ticks = [];
      for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
        for (const factor of factors) {
          const tick = Number(`${factor}e${p}`);
          if (low <= tick && tick <= high) ticks.push(tick);
        }
      if (ticks.length >= 3) break;
    }
    return ticks;
  };

  // Bars as a screen shows them: neighbours that are too many become their mean, and their largest value is kept.
  const coarse = (data, view) => {
    const xs = data.steps[0], [low, high] = view || data.x;
    const until = (value) => { const k = xs.findIndex((x) => x >= value); return k < 0 ? xs.length - 1 : k; };
    const first = until(low + 1e-9), last = until(high), each = Math.ceil((last - first + 1) / MOST_BARS);
    const starts = [];
    for (let k = first - (first % each); k <= last; k += each) starts.push(k);
    const groups = (ys, reduce) => starts.map((k) => reduce(ys.slice(k, k + each)));
    const mean = (ys) => ys.reduce((sum, y) => sum + (y || 0), 0) / ys.length;
    const largest = (ys) => ys.reduce((most, y) => (y !== null && (most === null || y > most) ? y : most), null);
    return {
      left: starts[0] ? xs[starts[0] - 1] : data.x[0],
      steps: [groups(xs, (some) => some[some.length - 1])],
      stepsPerPoint: each * data.stepsPerPoint,
      series: data.series.map((one) => ({ ...one, columns: one.columns.map(
        ({ name, y }) => ({ name, y: groups(y, one.style === "peak" ? largest : mean) })) })),
    };
  };

  // The numbers as uPlot wants them: all series over one row of steps. Bars are sums; the largest is drawn first.
  const aligned = ({ series, steps, left }) => {
    if (left !== undefined) {
      const sums = steps[0].map(() => 0), drawn = [];
      for (const one of series)
        if (one.style === "bars") {
          one.columns[0].y.forEach((value, k) => { sums[k] += value; });
          drawn.unshift({ ...one, y: [sums[0], ...sums] }); // the first bar needs a left edge: there it is as high
        }
      for (const one of series) if (one.style === "peak") drawn.push({ ...one, y: [null, ...one.columns[0].y] });
      return { rows: [[left, ...steps[0]], ...drawn.map((one) => one.y)], order: drawn };
    }
    const tables = steps.map((xs) => [xs]), orders = steps.map(() => []);
    for (const one of series)
      for (const { y } of one.columns) { tables[one.steps].push(y); orders[one.steps].push(one); }
    return { rows: tables.length === 1 ? tables[0] : uPlot.join(tables), order: orders.flat() };
  };

  return { clamp, whole, format, tick, nearest, after, ticksOfLog, coarse, aligned };
})();
