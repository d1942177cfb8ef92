// Deliveries of webhooks: what was sent where, each attempt, and how to send it again.
import { html, useState } from "../vendor/preact.js";
import { get, post, query } from "../api.js";
import { Failure } from "../components/failure.js";
import { usePolling } from "../components/use_polling.js";
import { duration, moment } from "../format.js";

const EVERY_MS = 3000;
const FILTERS = ["status", "job_id", "batch_id"];
const COLOURS = { delivered: "succeeded", failed: "failed", pending: "queued" };

export function Webhooks({ who, search }) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, search.get(name) ?? ""]));
  const after = search.get("after");
  const path = `/v1/webhooks/deliveries${query({ ...filter, after, limit: 50 })}`;
  const [rounds, setRounds] = useState(0);
  const [failure, setFailure] = useState(null);
  const { data, error } = usePolling(() => get(path), EVERY_MS, [path, rounds]);

  async function redeliver(delivery) {
    try {
      await post(`/v1/webhooks/deliveries/${delivery.id}/redeliver`);
      setFailure(null);
      setRounds((last) => last + 1);
    } catch (refused) {
      setFailure(refused);
    }
  }

  function apply(event) {
    event.preventDefault();
    location.hash = `#/webhooks${query(Object.fromEntries(new FormData(event.currentTarget)))}`;
  }

  return html`
    <div class="row head"><h1>Webhooks</h1><span class="push"></span>${who.scopes.includes("admin") && html`<${Secret} />`}</div>
    <form class="row filter" key=${search.toString()} onSubmit=${apply}>
      <label>State
        <select name="status" value=${filter.status} onChange=${(event) => event.target.form.requestSubmit()}>
          <option value="">any</option>${Object.keys(COLOURS).map((state) => html`<option value=${state}>${state}</option>`)}
        </select>
      </label>
      <label>Job <input name="job_id" defaultValue=${filter.job_id} size="30" spellcheck="false" /></label>
      <label>Batch <input name="batch_id" defaultValue=${filter.batch_id} size="30" spellcheck="false" /></label>
      <button type="submit">Filter</button> <a class="hint" href="#/webhooks">Clear</a>
    </form>
    <${Failure} error=${failure ?? error} />
    ${data?.data.length === 0 && html`<p class="empty">No delivery matches. A job or a batch that names a webhook has one at its end.</p>`}
    ${data?.data.map((one) => html`<${Delivery} key=${one.id} delivery=${one} redeliver=${who.scopes.includes("submit") ? redeliver : null} />`)}
    <p class="row">
      ${after && html`<a href=${`#/webhooks${query(filter)}`}>Newest</a>`}
      ${data?.next && html`<a href=${`#/webhooks${query({ ...filter, after: data.next })}`}>Older</a>`}
    </p>
  `;
}

function Delivery({ delivery, redeliver }) {
  const subject = delivery.job_id ? `jobs/${delivery.job_id}` : `batches/${delivery.batch_id}`;
  return html`
    <section class="card delivery" aria-label=${delivery.id}>
      <div class="row">
        <span class=${`state ${COLOURS[delivery.status]}`}>${delivery.status}</span>
        <b>${delivery.event}</b>
        <span class="hint">${moment(delivery.created_at)}</span>
        <span class="push"></span>
        ${delivery.next_attempt_at && html`<span class="hint">next attempt at ${moment(delivery.next_attempt_at)}</span>`}
        ${redeliver && html`<button type="button" onClick=${() => redeliver(delivery)}>Send again</button>`}
      </div>
      <p class="row"><code class="wrap">${delivery.url}</code><span class="push"></span><a class="id" href=${`#/${subject}`}>${delivery.job_id ?? delivery.batch_id}</a></p>
      ${delivery.attempts.length > 0 && html`
        <details open=${delivery.status === "failed"}>
          <summary>${delivery.attempts.length === 1 ? "1 attempt" : `${delivery.attempts.length} attempts`}</summary>
          <ol class="story">
            ${delivery.attempts.map((one) => html`
              <li><time>${moment(one.at)}</time> ${one.status ?? "no response"}${one.error ? `, ${one.error.replaceAll("_", " ")}` : ""}, after ${duration(one.took_ms)}</li>`)}
          </ol>
        </details>`}
    </section>
  `;
}

function Secret() {
  const [secret, setSecret] = useState(null);
  const [error, setError] = useState(null);
  if (secret) return html`<code class="wrap">${secret}</code> <button type="button" onClick=${() => setSecret(null)}>Hide</button>`;
  return html`
    <button type="button" onClick=${() => get("/v1/webhooks/secret").then((found) => setSecret(found.secret), setError)}>Show the signing secret</button>
    <${Failure} error=${error} />`;
}
