// What was used and what it cost, as a chart and as a table; and the limits, with what is left of them.
import { html } from "../vendor/preact.js";
import { get, query } from "../api.js";
import { Chart } from "../components/chart.js";
import { Failure } from "../components/failure.js";
import { LimitUses } from "../components/limits.js";
import { usePolling } from "../components/use_polling.js";
import { dollars, number } from "../format.js";

const EVERY_MS = 10_000;
const GROUPS = { model: "Model", key: "Key", end_user: "End user", tenant: "Tenant" };
const MEASURES = {
  cost: { title: "Cost", of: (line) => line.cost_usd ?? 0, show: dollars },
  tokens: { title: "Tokens", of: (line) => line.input_tokens + line.output_tokens, show: number },
  calls: { title: "Calls", of: (line) => line.calls, show: number },
};
const NOBODY = "none";

export function Usage({ who, search }) {
  const isOperator = who.scopes.includes("operator");
  const asked = Object.fromEntries(["from", "to", "end_user", "tenant"].map((name) => [name, search.get(name) ?? ""]));
  const by = search.get("by") in GROUPS ? search.get("by") : "model";
  const measure = MEASURES[search.get("measure")] ? search.get("measure") : "cost";
  const tenant = by === "tenant" ? asked.tenant || "*" : asked.tenant;
  const path = `/v1/usage${query({ ...asked, tenant, group_by: `day,${by}` })}`;
  const { data, error } = usePolling(() => get(path), EVERY_MS, [path]);
  const limits = usePolling(() => get("/v1/limits"), EVERY_MS);

  function apply(event) {
    event.preventDefault();
    location.hash = `#/usage${query(Object.fromEntries(new FormData(event.currentTarget)))}`;
  }
  const now = (event) => event.target.form.requestSubmit();

  return html`
    <h1>Usage</h1>
    <form class="row filter" key=${search.toString()} onSubmit=${apply}>
      <label>Split by
        <select name="by" value=${by} onChange=${now}>
          ${Object.entries(GROUPS).filter(([name]) => name !== "tenant" || isOperator).map(([name, title]) => html`<option value=${name}>${title}</option>`)}
        </select>
      </label>
      <label>Show
        <select name="measure" value=${measure} onChange=${now}>
          ${Object.entries(MEASURES).map(([name, one]) => html`<option value=${name}>${one.title}</option>`)}
        </select>
      </label>
      <label>From <input name="from" type="date" defaultValue=${asked.from} /></label>
      <label>To <input name="to" type="date" defaultValue=${asked.to} /></label>
      <label>End user <input name="end_user" defaultValue=${asked.end_user} size="12" spellcheck="false" /></label>
      ${isOperator && html`<label>Tenant <input name="tenant" defaultValue=${asked.tenant} size="12" placeholder="yours; * is all" spellcheck="false" /></label>`}
      <button type="submit">Show</button> <a class="hint" href="#/usage">Clear</a>
    </form>
    <${Failure} error=${error} />
    ${data && html`
      <section class="card">
        <div class="row"><h2>${MEASURES[measure].title} by day (UTC) and ${GROUPS[by].toLowerCase()}</h2><span class="push"></span>
          <b>${MEASURES[measure].show(MEASURES[measure].of(data.total))}</b></div>
        <${Chart} days=${daysOf(data)} rows=${data.data.map((line) => ({ day: line.day, name: line[by] ?? NOBODY, value: MEASURES[measure].of(line) }))} show=${MEASURES[measure].show} />
        ${data.total.unpriced_calls > 0 && html`<p class="hint">The price of ${number(data.total.unpriced_calls)} calls is not known: they are not in the cost.</p>`}
      </section>
      ${data.data.length > 0 && html`<${Table} report=${data} by=${by} />`}`}
    <div class="columns">
      ${limits.data && html`<section class="card"><h2>Limits of the tenant ${limits.data.tenant.id}</h2><${LimitUses} uses=${limits.data.tenant} /></section>`}
      ${limits.data?.key && html`<section class="card"><h2>Limits of this key</h2><${LimitUses} uses=${limits.data.key} /></section>`}
    </div>
    <${Failure} error=${limits.error} />
  `;
}

function daysOf(report) {
  const days = [];
  const last = new Date(report.to);
  for (let day = new Date(report.from); day <= last; day.setUTCDate(day.getUTCDate() + 1)) days.push(day.toISOString().slice(0, 10));
  return days;
}

function Table({ report, by }) {
  return html`
    <div class="wide" tabindex="0" role="region" aria-label="Usage">
      <table>
        <thead><tr><th>Day</th><th>${GROUPS[by]}</th><th class="number">Calls</th><th class="number">Tokens in</th><th class="number">Tokens out</th><th class="number">Cost</th></tr></thead>
        <tbody>${[...report.data].reverse().map((line) => html`
          <tr><td>${line.day}</td><td class="cut">${line[by] ?? NOBODY}</td><${Sums} line=${line} /></tr>`)}</tbody>
        <tfoot><tr><th>All</th><th></th><${Sums} line=${report.total} /></tr></tfoot>
      </table>
    </div>
    ${report.has_more && html`<p class="hint">These are the first ${number(report.data.length)} rows; choose fewer days to see all.</p>`}
  `;
}

const Sums = ({ line }) => html`
  <td class="number">${number(line.calls)}</td><td class="number">${number(line.input_tokens)}</td>
  <td class="number">${number(line.output_tokens)}</td><td class="number">${dollars(line.cost_usd)}</td>`;
