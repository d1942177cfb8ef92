// Bars by day, each split by name: the largest names in colours of their own, the others together.
import { html } from "../vendor/preact.js";

const MOST_NAMES = 6;
const HEIGHT = 100;
const OTHERS = "others";

// rows: [{day, name, value}]; show(value) is the value as a text
export function Chart({ days, rows, show }) {
  const sums = new Map();
  for (const { name, value } of rows) sums.set(name, (sums.get(name) ?? 0) + value);
  const ranked = [...sums].sort(([, one], [, other]) => other - one).map(([name]) => name);
  const names = ranked.slice(0, MOST_NAMES);
  const stacks = new Map(days.map((day) => [day, new Map()]));
  for (const { day, name, value } of rows) {
    const stack = stacks.get(day);
    const shown = names.includes(name) ? name : OTHERS;
    stack?.set(shown, (stack.get(shown) ?? 0) + value);
  }
  if (ranked.length > MOST_NAMES) names.push(OTHERS);
  const most = Math.max(...[...stacks.values()].map((stack) => [...stack.values()].reduce((sum, value) => sum + value, 0)), 0);
  if (most === 0) return html`<p class="empty">Nothing in these days.</p>`;
  return html`
    <p class="hint">At most ${show(most)} a day</p>
    <svg class="chart" viewBox=${`0 0 ${days.length} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label="Chart; the table below has its figures">
      ${days.map((day, place) => {
        let top = HEIGHT;
        return names.map((name, number) => {
          const value = stacks.get(day).get(name) ?? 0;
          const height = (value / most) * HEIGHT;
          top -= height;
          return value > 0 && html`
            <rect class=${`series-${number}`} x=${place + 0.1} width="0.8" y=${top} height=${height}><title>${day}, ${name}: ${show(value)}</title></rect>`;
        });
      })}
    </svg>
    <p class="row hint"><span>${days[0]}</span><span class="push"></span><span>${days.at(-1)}</span></p>
    <ul class="row legend">${names.map((name, number) => html`<li><svg class="key" viewBox="0 0 1 1"><rect class=${`series-${number}`} width="1" height="1" /></svg> ${name}</li>`)}</ul>
  `;
}
