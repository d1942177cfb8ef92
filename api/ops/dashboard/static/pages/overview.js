// What happens now: the queue, the workers, the LLMs, Redis, and what today has cost.
import { html } from "../vendor/preact.js";
import { get } from "../api.js";
import { Failure } from "../components/failure.js";
import { State } from "../components/state.js";
import { usePolling } from "../components/use_polling.js";
import { dollars, duration, moment, number } from "../format.js";

const EVERY_MS = 2000;
const CODES = { ok: "succeeded", degraded: "failed", down: "failed" };

async function ask(who) {
  const today = new Date().toISOString().slice(0, 10);
  const isOperator = who.scopes.includes("operator");
  const [health, usage, recent, waiting, workers] = await Promise.all([
    get("/health"),
    get(`/v1/usage?from=${today}&to=${today}&group_by=model`),
    get("/v1/jobs?limit=8"),
    isOperator ? get("/v1/jobs?tenant=*&sort=oldest_waiting&limit=1") : null,
    isOperator ? get("/v1/workers") : null,
  ]);
  return { health, usage, recent: recent.data, oldest: waiting?.data[0] ?? null, workers: workers?.data ?? null };
}

export function Overview({ who }) {
  const { data, error } = usePolling(() => ask(who), EVERY_MS, [who]);
  if (!data) return html`<h1>Overview</h1><${Failure} error=${error} />`;
  const { health, usage, recent, oldest, workers } = data;
  return html`
    <div class="row head">
      <h1>Overview</h1>
      <span class=${`state ${CODES[health.status] ?? ""}`}>${health.status}</span>
    </div>
    <${Failure} error=${error} />
    ${health.redis_problems.map((problem) => html`<div class="failure" role="alert"><p>${problem.detail}</p></div>`)}
    <dl class="figures">
      <${Figure} name="Waiting" value=${number(health.queue?.queued)}
        more=${oldest ? `the oldest for ${duration(Date.now() - Date.parse(oldest.created_at))}` : ""} />
      <${Figure} name="Running" value=${number(health.queue?.running)} />
      <${Figure} name="Workers" value=${number(health.workers)} more=${health.workers === 0 ? "no job starts" : ""} />
      <${Figure} name="Spent today" value=${dollars(usage.total.cost_usd)} more=${`${number(usage.total.calls)} calls, UTC`} />
      <${Figure} name="Tokens today" value=${number(usage.total.output_tokens)} more=${`${number(usage.total.input_tokens)} in`} />
    </dl>
    <div class="columns">
      <section class="card">
        <h2>LLMs</h2>
        <${Routes} routes=${health.routes} llm=${health.llm} />
      </section>
      ${workers && html`<section class="card"><h2>Workers</h2><${Workers} workers=${workers} /></section>`}
    </div>
    <section class="card">
      <div class="row"><h2>Newest jobs</h2><span class="push"></span><a href="#/jobs">All jobs</a></div>
      ${recent.length === 0 && html`<p class="empty">None yet. <a href="#/playground">Try one in the playground</a></p>`}
      <ul class="list">
        ${recent.map((job) => html`
          <li key=${job.id}>
            <${State} of=${job.status} />
            <a class="id" href=${`#/jobs/${job.id}`}>${job.id}</a>
            <span class="cut">${job.model}</span>
            <span class="push"></span>
            <span class="hint">${moment(job.created_at)}</span>
            <span class="number span">${duration(job.timing.total_ms)}</span>
          </li>`)}
      </ul>
    </section>
  `;
}

function Figure({ name, value, more = "" }) {
  return html`<div class="card figure"><dt>${name}</dt><dd>${value}</dd><dd class="hint">${more}</dd></div>`;
}

function Routes({ routes, llm }) {
  if (routes.length === 0) return html`<p class="empty">State: ${llm.replaceAll("_", " ")}. No route was in trouble lately.</p>`;
  return html`<ul class="list">${routes.map((one) => html`
    <li key=${one.route}>
      <span class="cut">${one.route}</span><span class="push"></span>
      <span class=${`state ${one.circuit === "closed" && !one.shut_for_s ? "succeeded" : "failed"}`}>
        ${one.shut_for_s ? `shut for ${duration(one.shut_for_s * 1000)}` : `circuit ${one.circuit}`}
      </span>
      ${one.reason && html`<span class="hint">${one.reason}</span>`}
    </li>`)}</ul>`;
}

function Workers({ workers }) {
  if (workers.length === 0) return html`<p class="empty">None lives. Start one: <code>tokenspool worker</code></p>`;
  return html`
    <ul class="list">${workers.map((one) => html`
      <li key=${one.name}>
        <span class="cut" title=${one.name}>${one.name}</span><span class="push"></span>
        ${one.draining && html`<span class="state queued">draining</span>`}
        <span class="hint">${one.version}</span>
        <meter min="0" max=${one.slots} value=${one.running} aria-label=${`${one.running} of ${one.slots} slots`}></meter>
        <span class="number span">${one.running}/${one.slots}</span>
      </li>`)}</ul>`;
}
