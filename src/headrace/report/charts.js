// Draws every chart again with uPlot: values under the pointer or the arrow keys, and one zoom for all charts whose
// axis is the same: steps, or time. Where this does not run, the SVG that is in the page stays.
"use strict";
(() => {
  // From where to where a mark reaches, as shares of the height from the top; as in drawing.py.
  const LANES = { checkpoint: [0.955, 1], guard: [0, 0.05], alarm: [0.06, 0.11], feed: [0.12, 0.17] };
  const COLOURS = { restart: "--second", checkpoint: "--soft", guard: "--bad", alarm: "--wait", feed: "--accent" };
  const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
  const LEAST_STEPS = 4, MOST_MARKS_TOLD = 4;
  const STEPS = [0, 1, 2, 3, 4, 5, 6, 7, 8].flatMap((power) => [1, 2, 5].map((n) => n * 10 ** power));
  const BUTTONS = [["−", "Zoom out", 2], ["+", "Zoom in", 0.5], ["All", "Show all steps", Infinity]];
  const { clamp, whole, format, tick, nearest, after, ticksOfLog, coarse, aligned } = numbers;

  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const NOTHING = '{"marks": [], "steps": [], "sec": []}';
  let sharedText = NOTHING, shared = JSON.parse(NOTHING);
  const readShared = () => { // whether it is another one than before, as on a page that goes on with a run
    const text = document.querySelector("#shared")?.textContent || NOTHING, changed = text !== sharedText;
    if (changed) [sharedText, shared] = [text, JSON.parse(text)];
    return changed;
  };
  const make = (tag, text, css) => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (css) element.className = css;
    return element;
  };

  let charts = [];
  const views = new Map(); // by what x counts: the [first, last] that every chart shows; where there is none, all of its own
  const viewOf = (data) => views.get(data.along) ?? null;
  const atText = (along, x) => along === "step" ? whole(x) : format(x);
  const setView = (along, low, high) => {
    const same = charts.filter((chart) => chart.data.along === along);
    const from = Math.min(...same.map((chart) => chart.data.x[0]));
    const to = Math.max(...same.map((chart) => chart.data.x[1]));
    const width = Math.max(high - low, along === "step" ? Math.min(LEAST_STEPS, to - from) : (to - from) / 1000);
    const start = clamp((low + high - width) / 2, from, Math.max(from, to - width));
    if (width >= to - from) views.delete(along); else views.set(along, [start, start + width]);
    for (const chart of same) chart.show();
    pill.hidden = views.size === 0;
    said.textContent = [...views].map(([kind, [first, last]]) => kind === "step" ?
      `Steps ${whole(Math.max(1, first))} to ${whole(last)}` : `${format(first)} to ${format(last)} ${kind}`).join(", ");
  };
  const setAll = () => {
    for (const along of new Set(charts.map((chart) => chart.data.along))) setView(along, -Infinity, Infinity);
  };
  // What all charts show, where one may be far from the chart that was zoomed.
  const pill = make("div", "", "pill"), said = make("output"), all = make("button", "Show all");
  pill.hidden = true;
  all.type = "button";
  all.addEventListener("click", setAll);
  pill.append(said, all);
  document.body.append(pill);

  const styled = ({ style, css }) => {
    const ink = () => colour(`--${css}`), faded = (alpha) => () => {
      const [r, g, b] = colour(`--${css}`).match(/\w\w/g).map((digits) => parseInt(digits, 16));
      return `rgba(${r},${g},${b},${alpha})`;
    };
    const points = { show: false };
    if (style === "bars") return { fill: ink, width: 0, paths: uPlot.paths.stepped({ align: -1 }), points };
    if (style === "band") return { stroke: faded(0.35), width: 1, points, fade: faded(0.17) };
    if (style === "peak") return { stroke: faded(0.6), width: 1, paths: uPlot.paths.stepped({ align: -1 }), points };
    if (style === "faint") return { stroke: faded(0.35), width: 1, points };
    const round = { width: 0, fill: ink };
    if (style === "dots") return { stroke: ink, paths: () => null, points: { ...round, show: true, size: 8 } };
    return { stroke: ink, width: 2, points: { ...round, show: (u, i, from, to) => to - from < 40, size: 5 } };
  };

  class LiveChart {
    constructor(figure) {
      this.data = JSON.parse(figure.querySelector("script.values").textContent);
      this.stacked = this.data.series.some((one) => one.style === "bars");
      this.shown = this.stacked ? coarse(this.data, viewOf(this.data)) : this.data;
      this.figure = figure;
      this.area = figure.querySelector(".area");
      this.plot = figure.querySelector(".plot");
      this.tip = make("div", "", "tip");
      this.tip.setAttribute("role", "status");
      this.tip.hidden = true;
      this.u = this.draw();
      this.canvas = this.u.root.querySelector("canvas");
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-label", this.data.summary);
      this.u.over.append(this.tip);
      figure.classList.add("drawn");
      this.listen();
      this.show();
    }

    draw() {
      const { data } = this, { rows, order } = aligned(this.shown);
      const series = order.map(styled), bands = [];
      order.forEach((one, k) => {
        if (one.style === "band" && order[k - 1]?.style === "band" && series[k - 1].fade)
          bands.push({ series: [k + 1, k], fill: series[k - 1].fade });
      });
      const axis = { stroke: () => colour("--soft"), font: FONT, ticks: { show: false } };
      const grid = { stroke: () => colour("--grid"), width: 1 };
      const log = data.scale === "log";
      const logTicks = { splits: (u, i, low, high) => ticksOfLog(low, high), filter: (u, splits) => splits };
      return new uPlot({
        ...this.size(), bands, legend: { show: false },
        padding: [6, 6 + 4 * whole(data.x[1]).length, 0, 0], // half of the last step's label
        series: [{}, ...series],
        scales: {
          x: { time: false, range: () => viewOf(data) || data.x },
          y: { distr: log ? 3 : 1, range: (u, low, high) => this.range(u, low, high) },
        },
        axes: [
          { ...axis, grid: { show: false }, space: 64, size: 28, gap: 7, incrs: data.along === "step" ? STEPS : undefined,
            values: (u, places) => places.map((x) => atText(data.along, x)) },
          { ...axis, grid, gap: 8, space: 44, ...(log ? logTicks : {}), values: (u, ticks) => ticks.map(tick),
            size: (u, texts) => 16 + 7.2 * Math.max(4, ...(texts || []).map((text) => text.length)) },
        ],
        cursor: {
          y: false, points: { show: false }, drag: { x: true, y: false, setScale: false },
          bind: { dblclick: () => () => setAll() },
          sync: { key: data.along, setSeries: false, scales: ["x", null],
            // The others follow the chart that is pointed at, or read by keys, and it follows none.
            filters: {
              pub: (type) => LiveChart.active === this && (type === "mousemove" || type === "mouseleave"),
              sub: () => LiveChart.active !== this,
            } },
        },
        hooks: {
          drawClear: [(u) => this.drawLost(u)], draw: [(u) => this.drawMarks(u)],
          setSelect: [(u) => this.selected(u)], setCursor: [() => this.tell()],
        },
      }, rows, this.area);
    }

    size() { return { width: this.area.clientWidth, height: this.area.clientHeight }; }

    show() {
      const [min, max] = viewOf(this.data) || this.data.x;
      if (this.stacked) this.shown = coarse(this.data, viewOf(this.data));
      this.u.batch((u) => {
        if (this.stacked) u.setData(aligned(this.shown).rows, false);
        u.setScale("x", { min, max });
      });
      this.figure.dataset.steps = `${min} ${max}`;
      for (const button of this.buttons) button.disabled = button.needsZoom && viewOf(this.data) === null;
    }

    // The whole run is shown up to where the page cuts it; a part of it, but for a few that would dwarf the others.
    range(u, low, high) {
      const { y, scale } = this.data;
      if (viewOf(this.data) === null || low === null || low === undefined || !isFinite(low)) return y;
      if (scale === "log") return low < high ? [low, high] : [low / 2, low * 2];
      const rows = this.stacked ? u.data.slice(1, 2) : u.data.slice(1), [first, last] = u.series[0].idxs;
      const values = rows.flatMap((row) => row.slice(first, last + 1)).filter((value) => Number.isFinite(value));
      values.sort((a, b) => a - b);
      const usual = 1.3 * values[Math.min(values.length - 1, Math.floor(0.97 * values.length))];
      if (usual > 0 && high > 2 * usual) high = usual;
      if (scale === "zero") low = Math.min(low, 0);
      const margin = high > low ? 0.04 * (high - low) : Math.abs(high) / 2 || 0.5;
      return [scale === "zero" ? low : low - margin, high + margin];
    }

    drawLost(u) {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
      ctx.globalAlpha = 0.14; ctx.fillStyle = colour("--second");
      for (const mark of shared.marks) {
        if (mark.kind !== "restart" || !mark.width) continue;
        const left = u.valToPos(mark.step, "x", true), right = u.valToPos(mark.step + mark.width, "x", true);
        ctx.fillRect(left, bbox.top, right - left, bbox.height);
      }
      ctx.restore();
    }

    drawMarks(u) {
      const { ctx, bbox } = u, scale = devicePixelRatio;
      ctx.save();
      for (const mark of shared.marks) {
        const x = u.valToPos(mark.step, "x", true), [top, bottom] = LANES[mark.kind] || [0, 1];
        if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
        ctx.strokeStyle = colour(COLOURS[mark.kind]);
        ctx.lineWidth = (mark.kind === "restart" || mark.kind === "checkpoint" ? 1.5 : 4) * scale;
        ctx.setLineDash(mark.kind === "restart" ? [5 * scale, 4 * scale] : []);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top + top * bbox.height); ctx.lineTo(x, bbox.top + bottom * bbox.height);
        ctx.stroke();
      }
      ctx.fillStyle = colour("--soft"); ctx.font = FONT.replace("12px", `${12 * scale}px`);
      ctx.textAlign = "right"; ctx.textBaseline = "top";
      ctx.fillText(this.data.along, bbox.left - 14 * scale, bbox.top + bbox.height + 7 * scale);
      ctx.restore();
    }

    selected(u) {
      const { left, width } = u.select;
      u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      if (width > 3) setView(this.data.along, u.posToVal(left, "x"), u.posToVal(left + width, "x"));
    }

    // What the chart holds at the step under the cursor. Only the chart that is pointed at says it.
    tell() {
      const { u, tip, shown } = this;
      const left = u.cursor.left;
      tip.hidden = LiveChart.active !== this || left === null || left < 0;
      if (tip.hidden) return;
      const at = u.posToVal(left, "x"), pixel = u.posToVal(left + 1, "x") - at, each = shown.stepsPerPoint;
      const longest = shown.steps.reduce((a, b) => (b.length > a.length ? b : a));
      // A point stands for the steps up to its own.
      const step = longest[nearest(longest, at + (each - 1) / 2)], near = Math.max(each / 2, 4 * pixel);
      tip.replaceChildren();
      const add = (name, value) => {
        const row = make("div");
        row.append(make("span", name), make("b", value));
        tip.append(row);
      };
      if (each === 1) add(this.data.along, atText(this.data.along, step));
      else add("steps", `${whole(Math.max(1, step - each + 1))}–${whole(step)}`);
      const done = after(shared, step);
      if (done) add("after", done);
      let sum = 0;
      for (const one of shown.series) {
        const xs = shown.steps[one.steps], k = nearest(xs, step);
        if (Math.abs(xs[k] - step) > near) continue;
        if (one.style === "peak") { add("in all", format(sum)); if (each === 1) continue; }
        for (const { name, y } of one.columns) {
          if (y[k] !== null && !(one.style === "bars" && y[k] === 0)) add(name, format(y[k]));
          if (one.style === "bars") sum += y[k];
        }
      }
      const here = shared.marks.filter((mark) => mark.step > step - each - 3 * pixel && mark.step < step + 3 * pixel);
      for (const mark of here.slice(0, MOST_MARKS_TOLD)) tip.append(make("p", mark.text));
      if (here.length > MOST_MARKS_TOLD) tip.append(make("p", `and ${here.length - MOST_MARKS_TOLD} more`));
      const width = tip.offsetWidth, room = u.over.clientWidth;
      const beside = left + width + 14 > room ? left - width - 12 : left + 12;
      tip.style.left = `${clamp(beside, 0, Math.max(0, room - width))}px`;
    }

    activate() {
      const old = LiveChart.active;
      LiveChart.active = this;
      if (old && old !== this) old.tip.hidden = true;
    }

    listen() {
      const { u, plot, area, figure } = this;
      plot.tabIndex = 0;
      plot.setAttribute("aria-describedby", "keys");
      // Not when it is entered: that is also what scrolling under a resting mouse does.
      for (const kind of ["pointermove", "pointerdown"]) area.addEventListener(kind, () => this.activate(), true);
      area.addEventListener("pointermove", (event) => { // a finger moves the cursor; the mouse is uPlot's own
        if (event.pointerType === "mouse") return;
        const box = u.over.getBoundingClientRect();
        u.setCursor({ left: clamp(event.clientX - box.left, 0, box.width), top: 0 });
      });
      plot.addEventListener("focus", () => this.activate());
      plot.addEventListener("blur", () => this.hide());
      plot.addEventListener("keydown", (event) => { if (this.key(event)) event.preventDefault(); });
      this.resized = new ResizeObserver(() => u.setSize(this.size()));
      this.resized.observe(area);
      const bar = make("span", "", "zoom"), title = figure.querySelector("h3").textContent;
      this.buttons = BUTTONS.map(([text, name, factor]) => {
        const button = make("button", text);
        button.type = "button"; button.needsZoom = factor > 1;
        button.title = name; button.setAttribute("aria-label", `${name}: ${title}`);
        button.addEventListener("click", () => this.zoom(factor));
        bar.append(button);
        return button;
      });
      figure.querySelector("figcaption").append(bar);
    }

    close() {
      this.resized.disconnect();
      this.u.destroy();
      if (LiveChart.active === this) LiveChart.active = null;
    }

    hide() { this.u.setCursor({ left: -10, top: -10 }); this.tip.hidden = true; }

    // Where the cursor is; the middle where it is nowhere.
    at() {
      const { left } = this.u.cursor, { min, max } = this.u.scales.x;
      return left === null || left < 0 ? (min + max) / 2 : this.u.posToVal(left, "x");
    }

    zoom(factor) {
      if (!isFinite(factor)) { setAll(); return; }
      const { min, max } = this.u.scales.x, at = clamp(this.at(), min, max), pointed = this.u.cursor.left >= 0;
      setView(this.data.along, at - (at - min) * factor, at + (max - at) * factor);
      if (pointed) this.u.setCursor({ left: this.u.valToPos(at, "x"), top: 0 });
    }

    // To the point so many further on, or to the first or last; the view follows.
    move(by) {
      const steps = this.stacked ? this.data.steps[0] : this.u.data[0], { min, max } = this.u.scales.x;
      const pointed = this.u.cursor.left >= 0, each = this.shown.stepsPerPoint / this.data.stepsPerPoint;
      const from = pointed ? nearest(steps, this.at()) : by > 0 ? -1 : steps.length;
      const step = clamp(steps[clamp(from + by * each, 0, steps.length - 1)], ...this.data.x);
      const left = this.stacked ? Math.max(this.data.x[0], step - this.shown.stepsPerPoint) : step; // a bar's left edge
      if (left < min) setView(this.data.along, left, left + max - min);
      if (step > max) setView(this.data.along, step - (max - min), step);
      this.u.setCursor({ left: this.u.valToPos(step, "x"), top: 0 });
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target !== this.plot) return false;
      const size = this.u.data[0].length, stride = event.shiftKey ? Math.ceil(size / 20) : 1;
      const does = {
        ArrowLeft: () => this.move(-stride), ArrowRight: () => this.move(stride),
        Home: () => this.move(-Infinity), End: () => this.move(Infinity),
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), 0: () => setAll(),
        Escape: () => { if (this.tip.hidden) setAll(); else this.hide(); },
      }[event.key];
      if (does) { this.activate(); does(); }
      return Boolean(does);
    }
  }
  LiveChart.active = null;

  // Draws the charts of a part of the page that came into it, and forgets those that left it. The zoom stays.
  window.drawCharts = (part) => {
    const changed = readShared();
    for (const chart of charts) if (!chart.figure.isConnected) chart.close();
    charts = charts.filter((chart) => chart.figure.isConnected);
    if (changed) for (const chart of charts) chart.u.redraw(false);
    const figures = part.matches("figure.chart") ? [part] : part.querySelectorAll("figure.chart");
    for (const figure of figures) charts.push(new LiveChart(figure));
  };
  drawCharts(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of charts) chart.u.redraw(false);
  });
  root.classList.add("live");
})();
