// Charts as SVG: lines, stacked areas, and bars; read by pointer or by arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 220, LEFT = 64, RIGHT = 12, TOP = 10, BOTTOM = 26;

export function make(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// By number, or by the name of a phase.
export const colour = (at) => typeof at === "string" ? `var(--${at})` : `var(--c${at % 6})`;

// A number as people read it.
export function short(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return trim(value / (limit === 1e4 ? 1e3 : limit), 1) + unit;
  }
  if (size >= 100) return trim(value, 0);
  if (size >= 1) return trim(value, 2);
  return size >= 1e-3 ? trim(value, 4) : value.toExponential(1);
}

const trim = (value, digits) => value.toFixed(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");

// Round values between two, few enough to be read.
function ticks(low, high, count) {
  const span = high - low || 1, raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const marks = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) marks.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return marks;
}

export class Chart {
  // options: title, unit (a function from a number to text), kind: "lines", "stack" or "bars".
  constructor(options) {
    this.options = { kind: "lines", unit: short, ...options };
    this.series = [];
    this.tip = html("div", { class: "tip", hidden: true });
    this.body = html("div", { class: "chart" });
    this.legend = html("ul", { class: "legend" });
    this.element = html("section", { class: "card" }, html("h2", {}, options.title), this.body, this.legend);
    new ResizeObserver(() => {
      if (this.series.length > 0 && this.body.clientWidth !== this.width) this.draw();
    }).observe(this.body);
  }

  // series: [{name, points: [[x, y], …]}], of a stack with the same x each.
  show(series) {
    this.series = series.filter((one) => one.points.length > 0);
    const drawn = JSON.stringify(this.series);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.legend.replaceChildren(...(this.series.length > 1 ? this.series.map((one, at) => {
      const swatch = html("i");
      swatch.style.background = colour(one.colour ?? at);
      return html("li", {}, swatch, one.name);
    }) : []));
    if (this.series.length === 0) {
      this.body.replaceChildren(html("p", { class: "none" }, this.options.none ?? "Nothing yet"));
      return;
    }
    this.draw();
  }

  draw() {
    this.width = this.body.clientWidth || 520;
    const stack = this.options.kind === "stack", bars = this.options.kind === "bars";
    const xs = this.series.flatMap((one) => one.points.map((point) => point[0]));
    const tops = stack ? this.series[0].points.map((_, at) => this.series.reduce((sum, one) => sum + (one.points[at]?.[1] ?? 0), 0))
      : this.series.flatMap((one) => one.points.map((point) => point[1]));
    let [low, high] = [Math.min(...tops), Math.max(...tops)];
    if (stack || bars || this.options.zero) low = 0;
    const margin = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
    high += margin;
    if (low !== 0) low = low >= 0 && low < margin ? 0 : low - margin;
    this.range = { first: Math.min(...xs), last: Math.max(...xs), low, high };
    if (bars) [this.range.first, this.range.last] = [-0.5, Math.max(8, this.range.last) + 0.5];
    if (this.range.first === this.range.last) this.range.last += 1;
    const label = this.series.map((one) => `${one.name} ${this.options.unit(one.points.at(-1)[1])}`).join(", ");
    const svg = make("svg", { viewBox: `0 0 ${this.width} ${HEIGHT}`, tabindex: 0, role: "img",
      "aria-label": `${this.options.title}. Last: ${label}. Arrow keys read values.` });
    for (const y of ticks(low, high, 4)) {
      svg.append(make("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(y), y2: this.y(y) }));
      const text = make("text", { x: LEFT - 7, y: this.y(y) + 4, "text-anchor": "end" });
      text.textContent = this.options.unit(y);
      svg.append(text);
    }
    svg.append(make("line", { class: "axis", x1: LEFT, x2: this.width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
    for (const x of ticks(this.range.first, this.range.last, 5)) {
      if (bars && !Number.isInteger(x)) continue;
      const text = make("text", { x: this.x(x), y: HEIGHT - 8, "text-anchor": "middle" });
      text.textContent = short(x);
      svg.append(text);
    }
    if (stack) this.areas(svg);
    else if (bars) this.bars(svg);
    else this.lines(svg);
    this.cross = make("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    svg.append(this.cross);
    svg.addEventListener("pointermove", (event) => this.point(event));
    svg.addEventListener("pointerleave", () => this.unread());
    svg.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("blur", () => this.unread());
    const focused = this.body.contains(document.activeElement);
    this.body.replaceChildren(svg, this.tip);
    if (focused) svg.focus();
    if (this.at != null) this.read(this.at);
  }

  x(value) { return LEFT + (value - this.range.first) / (this.range.last - this.range.first) * (this.width - LEFT - RIGHT); }
  y(value) { return HEIGHT - BOTTOM - (value - this.range.low) / (this.range.high - this.range.low) * (HEIGHT - TOP - BOTTOM); }

  lines(svg) {
    this.series.forEach((one, at) => {
      const stroke = colour(one.colour ?? at);
      const points = one.points.map(([x, y]) => `${this.x(x).toFixed(1)},${this.y(y).toFixed(1)}`);
      const line = make("polyline", { class: "line", points: points.join(" ") });
      line.style.stroke = stroke;
      svg.append(line);
      if (points.length <= 40) {
        for (const [x, y] of one.points) {
          const dot = make("circle", { cx: this.x(x), cy: this.y(y), r: 3 });
          dot.style.fill = stroke;
          svg.append(dot);
        }
      }
    });
  }

  areas(svg) {
    const base = this.series[0].points.map(() => 0);
    this.series.forEach((one, at) => {
      const below = [...base];
      one.points.forEach(([, y], i) => { base[i] += y; });
      const xs = one.points.map(([x]) => this.x(x).toFixed(1));
      const upper = xs.map((x, i) => `${x},${this.y(base[i]).toFixed(1)}`);
      const lower = xs.map((x, i) => `${x},${this.y(below[i]).toFixed(1)}`).reverse();
      const area = make("polygon", { points: [...upper, ...lower].join(" ") });
      area.style.fill = colour(one.colour ?? at);
      area.style.stroke = "var(--card)";
      svg.append(area);
    });
  }

  bars(svg) {
    const width = Math.min(44, Math.max(1, (this.x(1) - this.x(0)) - 2));
    for (const [x, y] of this.series[0].points) {
      const bar = make("rect", { x: this.x(x) - width / 2, width, y: this.y(y), height: Math.max(0, this.y(0) - this.y(y)), rx: Math.min(3, width / 4) });
      bar.style.fill = colour(0);
      svg.append(bar);
    }
  }

  longest() { return this.series.reduce((one, other) => other.points.length > one.points.length ? other : one); }

  point(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * this.width;
    const points = this.longest().points;
    let nearest = 0;
    points.forEach(([x], i) => { if (Math.abs(this.x(x) - at) < Math.abs(this.x(points[nearest][0]) - at)) nearest = i; });
    this.read(nearest);
  }

  key(event) {
    const last = this.longest().points.length - 1;
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") return this.unread();
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.read(Math.min(last, Math.max(0, (this.at ?? last) + moves[event.key])));
  }

  read(at) {
    const x = this.longest().points[Math.min(at, this.longest().points.length - 1)]?.[0];
    if (x == null) return this.unread();
    this.at = at;
    this.cross.setAttribute("x1", this.x(x));
    this.cross.setAttribute("x2", this.x(x));
    this.cross.setAttribute("visibility", "visible");
    const rows = this.series.map((one, i) => {
      const point = one.points.reduce((best, next) => Math.abs(next[0] - x) < Math.abs(best[0] - x) ? next : best);
      const swatch = html("i");
      swatch.style.cssText = `display:inline-block;width:.6rem;height:.6rem;border-radius:2px;margin-right:.4rem;background:${colour(one.colour ?? i)}`;
      return html("div", {}, swatch, `${one.name} ${this.options.unit(point[1])}`);
    });
    this.tip.replaceChildren(html("div", {}, `${this.options.across ?? "step"} ${short(x)}`), ...rows);
    this.tip.hidden = false;
    const share = this.x(x) / this.width * this.body.clientWidth, width = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(this.body.clientWidth - width, share > this.body.clientWidth / 2 ? share - width - 10 : share + 10))}px`;
    this.tip.style.top = "8px";
  }

  unread() {
    this.at = null;
    this.tip.hidden = true;
    this.cross?.setAttribute("visibility", "hidden");
  }
}
