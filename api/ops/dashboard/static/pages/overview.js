// What happens now and in the last hour: the queue, the LLMs, the workers, Redis, and what today has cost.
import { html } from "../vendor/preact.js";
import { get } from "../api.js";
import { Failure } from "../components/failure.js";
import { Lines } from "../components/lines.js";
import { State } from "../components/state.js";
import { useLive } from "../components/use_live.js";
import { usePolling } from "../components/use_polling.js";
import { bytes, dollars, duration, moment, number } from "../format.js";

const EVERY_MS = 3000;

// What the live figures leave out, since it is each tenant's own.
async function ask() {
  const today = new Date().toISOString().slice(0, 10);
  const [usage, recent] = await Promise.all([
    get(`/v1/usage?from=${today}&to=${today}&group_by=model`),
    get("/v1/jobs?limit=8"),
  ]);
  return { usage, recent: recent.data };
}

export function Overview({ who }) {
  const { stats, history, isCut, error: cut } = useLive([who]);
  const { data: own, error } = usePolling(ask, EVERY_MS, [who]);
  return html`
    <div class="row head">
      <h1>Overview</h1>
      ${isCut && html`<span class="state queued" role="status">connecting again</span>`}
    </div>
    <${Failure} error=${cut ?? error} />
    ${stats && html`<${Figures} stats=${stats} usage=${own?.usage} />`}
    ${history && html`<${Hour} history=${history} />`}
    ${stats && html`
      <div class="columns">
        <section class="card"><h2>Queue</h2><${Queue} jobs=${stats.jobs} /></section>
        <section class="card"><h2>LLMs</h2><${Upstreams} upstreams=${stats.upstreams} /></section>
        <section class="card"><h2>Workers</h2><${Workers} workers=${stats.workers} /></section>
        <section class="card"><h2>Redis</h2><${Redis} redis=${stats.redis} /></section>
      </div>`}
    ${own && html`<section class="card"><${Newest} jobs=${own.recent} /></section>`}
  `;
}

function Figures({ stats, usage }) {
  const waits = Object.values(stats.jobs.by_priority).map((band) => band.oldest_wait_s).filter((value) => value !== null);
  const oldest = waits.length ? `the oldest for ${duration(Math.max(...waits) * 1000)}` : "";
  const { p50, p95 } = stats.first_token_ms;
  const ended = stats.ended_last_hour;
  return html`
    <dl class="figures">
      <${Figure} name="Waiting" value=${number(stats.jobs.waiting)} more=${oldest} />
      <${Figure} name="Running" value=${number(stats.jobs.running)} more=${`${number(stats.followers)} followers`} />
      <${Figure} name="Tokens a second" value=${number(stats.tokens_per_s)} />
      <${Figure} name="First token" value=${duration(p50)} more=${p95 === null ? "none in the last minute" : `p95 ${duration(p95)}, last minute`} />
      <${Figure} name="Succeeded" value=${number(ended.succeeded ?? 0)} more=${`${number(ended.failed ?? 0)} failed, last hour`} />
      <${Figure} name="Spent today" value=${dollars(usage?.total.cost_usd)} more=${usage ? `${number(usage.total.calls)} calls` : ""} />
    </dl>
  `;
}

function Figure({ name, value, more = "" }) {
  return html`<div class="card figure"><dt>${name}</dt><dd>${value}</dd><dd class="hint">${more}</dd></div>`;
}

function Hour({ history }) {
  const tokens = history.tokens.map((count) => count / history.bucket_s);
  const rate = (value) => (value === null ? "–" : `${number(Math.round(value * 10) / 10)}/s`);
  return html`
    <section class="card hour" aria-label="The last hour">
      <${Lines} title="Jobs" history=${history} series=${[["waiting", history.waiting], ["running", history.running]]} show=${number} />
      <${Lines} title="Output tokens" history=${history} series=${[["all answers", tokens]]} show=${rate} />
      <${Lines} title="First token" history=${history}
        series=${[["p50", history.first_token_p50_ms], ["p95", history.first_token_p95_ms]]} show=${duration} />
      <${Lines} title="Ended" history=${history} series=${[["succeeded", history.succeeded], ["failed", history.failed]]} show=${number} />
    </section>
  `;
}

function Queue({ jobs }) {
  return html`
    <ul class="list">${Object.entries(jobs.by_priority).map(([name, band]) => html`
      <li key=${name}>
        <span>${name}</span><span class="push"></span>
        <span class="hint">${band.oldest_wait_s === null ? "" : `oldest ${duration(band.oldest_wait_s * 1000)}`}</span>
        <span class="number span">${number(band.startable)} could start</span>
      </li>`)}</ul>`;
}

function Upstreams({ upstreams }) {
  if (upstreams.length === 0) return html`<p class="empty">None was called in the last hour.</p>`;
  return html`<ul class="list">${upstreams.map((one) => html`
    <li key=${one.route}>
      <span class="cut" title=${one.route}>${one.route}</span><span class="push"></span>
      ${one.requests && html`<span class="hint">${number(one.requests.left)} of ${number(one.requests.limit)} requests left</span>`}
      ${one.output_tokens && html`<span class="hint">${number(one.output_tokens.left)} of ${number(one.output_tokens.limit)} output tokens left</span>`}
      <span class=${`state ${one.circuit === "closed" && !one.shut_for_s ? "succeeded" : "failed"}`} title=${one.reason}>
        ${one.shut_for_s ? `shut for ${duration(one.shut_for_s * 1000)}` : one.circuit === "closed" ? "open to calls" : "circuit open"}
      </span>
    </li>`)}</ul>`;
}

function Workers({ workers }) {
  if (workers.length === 0) return html`<p class="empty">None lives, so no job starts: run <code>tokenspool worker</code></p>`;
  return html`
    <ul class="list">${workers.map((one) => html`
      <li key=${one.name}>
        <span class="cut" title=${`${one.name}, last sign of life ${moment(one.last_seen_at)}`}>${one.name}</span><span class="push"></span>
        ${one.draining && html`<span class="state queued">draining</span>`}
        <span class="hint">${one.version}</span>
        <meter min="0" max=${one.slots} value=${one.running} aria-label=${`${one.running} of ${one.slots} slots`}></meter>
        <span class="number span">${one.running}/${one.slots}</span>
      </li>`)}</ul>`;
}

function Redis({ redis }) {
  const limit = redis.max_bytes ? `of ${bytes(redis.max_bytes)}` : "without a limit";
  return html`
    ${redis.problems.map((problem) => html`<div class="failure" role="alert"><p>${problem.detail}</p></div>`)}
    <dl class="facts">
      <dt>Memory</dt><dd>${bytes(redis.used_bytes)} ${limit}</dd>
      <dt>When full</dt><dd>${redis.policy ?? "–"}</dd>
      <dt>Kept on disk</dt><dd>${redis.persistence === "aof" ? "append-only file" : redis.persistence === "none" ? "no: a restart loses every job" : "–"}</dd>
    </dl>`;
}

function Newest({ jobs }) {
  return html`
    <div class="row"><h2>Newest jobs</h2><span class="push"></span><a href="#/jobs">All jobs</a></div>
    ${jobs.length === 0 && html`<p class="empty">None yet. <a href="#/playground">Try one in the playground</a></p>`}
    <ul class="list">${jobs.map((job) => html`
      <li key=${job.id}>
        <${State} of=${job.status} />
        <a class="id" href=${`#/jobs/${job.id}`}>${job.id}</a>
        <span class="cut">${job.model}</span>
        <span class="push"></span>
        <span class="hint">${moment(job.created_at)}</span>
        <span class="number span">${duration(job.timing.total_ms)}</span>
      </li>`)}</ul>
  `;
}
