// The last hour of one figure or two as lines on one scale.
import { html } from "../vendor/preact.js";
import { clock } from "../format.js";

const WIDTH = 360; // buckets of an hour
const HEIGHT = 60;

// series: [[name, values], ...] with one value for each bucket, null where there is none; show(value) is it as a text
export function Lines({ title, history, series, show }) {
  const count = series[0][1].length;
  const most = Math.max(...series.flatMap(([, values]) => values.filter((value) => value !== null)), 0);
  const newest = (values) => values.findLast((value) => value !== null);
  const place = (value, number) => `${WIDTH - count + number + 0.5},${(HEIGHT - 2 - (value / (most || 1)) * (HEIGHT - 6)).toFixed(1)}`;
  return html`
    <figure class="lines">
      <figcaption class="row">
        <span>${title}</span><span class="push"></span>
        ${series.map(([name, values], number) => html`
          <span class="hint"><svg class="key" viewBox="0 0 1 1"><rect class=${`series-${number}`} width="1" height="1" /></svg> ${name} ${values.length ? show(newest(values) ?? null) : "–"}</span>`)}
      </figcaption>
      <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label=${`${title}, the last hour; at most ${show(most)}`}>
        ${series.map(([, values], number) => runsOf(values).map((run) => html`
          <polyline class=${`series-${number}`} points=${run.map(([value, at]) => place(value, at)).join(" ")} />`))}
      </svg>
      <p class="row hint"><span>${count ? clock(Date.parse(history.from) - (WIDTH - count) * history.bucket_s * 1000) : "an hour ago"}</span><span class="push"></span><span>at most ${show(most)}</span></p>
    </figure>
  `;
}

// The parts of a line between the gaps; a single value is drawn as a short stroke.
function runsOf(values) {
  const runs = [];
  let run = [];
  values.forEach((value, at) => {
    if (value !== null) run.push([value, at]);
    if ((value === null || at === values.length - 1) && run.length) {
      runs.push(run.length === 1 ? [run[0], [run[0][0], run[0][1] + 1]] : run);
      run = [];
    }
  });
  return runs;
}
