// Figures over time, drawn as SVG. Each has a text for those who cannot see it.
import { html, useState } from "../lib/view.js";
import { axisTime, count, span } from "../lib/format.js";

// A line of small bars: how often something failed, in order of time.
export function Sparkline({ values, label, width = 120, height = 24 }) {
  const highest = Math.max(1, ...values);
  const step = width / values.length;
  return html`<svg class="sparkline bad" viewBox=${`0 0 ${width} ${height}`} width=${width} height=${height} role="img" aria-label=${label}>
    ${values.map((value, index) => {
      const size = value === 0 ? 1 : Math.max(2, (value / highest) * height);
      return html`<rect key=${index} class=${value === 0 ? "none" : ""} x=${index * step + 0.5} y=${height - size} width=${Math.max(1, step - 1)} height=${size} />`;
    })}
  </svg>`;
}

const WIDTH = 720;
const HEIGHT = 150;
const LEFT = 48;
const BOTTOM = 20;

// The ends of an axis that people read: 0 and a round number at least `highest`.
function roundUp(highest) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, highest)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= highest);
}

const ROUND_SPANS = [1, 2, 5, 10, 15, 30].flatMap((size) => [size * 1000, size * 60_000]).concat([1, 2, 6, 12, 24, 48, 96, 168].map((hours) => hours * 3_600_000)).sort((a, b) => a - b);

// The same for a span in milliseconds.
const roundUpSpan = (highest) => (highest <= 500 ? roundUp(highest) : ROUND_SPANS.find((top) => top >= highest) ?? roundUp(highest));

// Stacked bars over time: series [{name, className, values}], one value a step.
export function Bars({ label, series, fromMs, stepMs, format = count }) {
  const [at, setAt] = useState(null);
  const steps = series[0].values.length;
  const sums = Array.from({ length: steps }, (_, index) => series.reduce((sum, one) => sum + one.values[index], 0));
  const top = roundUp(Math.max(...sums));
  const width = (WIDTH - LEFT) / steps;
  const scale = (HEIGHT - BOTTOM) / top;
  const bar = (index) => {
    let y = HEIGHT - BOTTOM;
    return series.map((one) => {
      const size = one.values[index] * scale;
      y -= size;
      return size > 0 && html`<rect key=${one.name} class=${one.className} x=${LEFT + index * width + 0.5} y=${y} width=${Math.max(1, width - 1)} height=${size} />`;
    });
  };
  return html`<${Chart} label=${label} top=${format(top)} fromMs=${fromMs} stepMs=${stepMs} steps=${steps} at=${at} setAt=${setAt}
    legend=${series.map((one) => ({ name: one.name, className: one.className, value: format(at === null ? one.values.reduce((a, b) => a + b, 0) : one.values[at]) }))}>
    ${sums.map((_, index) => html`<g key=${index}>${bar(index)}</g>`)}
  <//>`;
}

// Lines over time; null is a gap.
export function Lines({ label, series, fromMs, stepMs, format = span }) {
  const [at, setAt] = useState(null);
  const steps = series[0].values.length;
  const highest = Math.max(1, ...series.flatMap((one) => one.values.filter((value) => value !== null)));
  const top = format === span ? roundUpSpan(highest) : roundUp(highest);
  const width = (WIDTH - LEFT) / steps;
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM);
  const path = (values) => {
    let pen = "M";
    return values.map((value, index) => {
      if (value === null) {
        pen = "M";
        return "";
      }
      const x = LEFT + (index + 0.5) * width;
      const alone = pen === "M" && (values[index + 1] ?? null) === null;
      const point = `${pen}${x.toFixed(1)} ${y(value).toFixed(1)}${alone ? "h3" : ""}`;
      pen = "L";
      return point;
    }).join("");
  };
  const last = (values) => values.findLast((value) => value !== null) ?? null;
  return html`<${Chart} label=${label} top=${format(top)} fromMs=${fromMs} stepMs=${stepMs} steps=${steps} at=${at} setAt=${setAt}
    legend=${series.map((one) => ({ name: one.name, className: one.className, value: format(at === null ? last(one.values) : one.values[at]) }))}>
    ${series.map((one) => html`<path key=${one.name} class=${`line ${one.className}`} d=${path(one.values)} />`)}
  <//>`;
}

function Chart({ label, top, fromMs, stepMs, steps, at, setAt, legend, children }) {
  const width = (WIDTH - LEFT) / steps;
  const move = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH - LEFT;
    setAt(x < 0 ? null : Math.min(steps - 1, Math.floor(x / width)));
  };
  const summary = legend.map((one) => `${one.name} ${one.value}`).join(", ");
  const marks = [0, Math.floor(steps / 2), steps - 1];
  return html`<figure class="chart">
    <figcaption><span>${label}</span><span class="legend">${legend.map((one) => html`<span key=${one.name}><i class=${one.className}></i>${one.name} <b>${one.value}</b></span>`)}
      <span class="quiet">${at === null ? "" : axisTime(fromMs + at * stepMs, steps * stepMs)}</span></span></figcaption>
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label=${`${label}: ${summary}`} onMouseMove=${move} onMouseLeave=${() => setAt(null)}>
      <line class="axis" x1=${LEFT} x2=${WIDTH} y1=${HEIGHT - BOTTOM} y2=${HEIGHT - BOTTOM} /><line class="grid" x1=${LEFT} x2=${WIDTH} y1="0.5" y2="0.5" />
      ${children}
      ${at !== null && html`<rect class="at" x=${LEFT + at * width} y="0" width=${width} height=${HEIGHT - BOTTOM} />`}
    </svg>
    <div class="axes" aria-hidden="true"><span class="top">${top}</span><span class="zero">0</span>
      <span class="times">${marks.map((index) => html`<span key=${index}>${axisTime(fromMs + index * stepMs, steps * stepMs)}</span>`)}</span></div>
  </figure>`;
}
