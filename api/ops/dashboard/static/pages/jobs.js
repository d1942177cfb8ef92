// The list of jobs: filtered, searched by id, and acted on all at once.
import { html, useEffect, useState } from "../vendor/preact.js";
import { get, query } from "../api.js";
import { Bulk } from "../components/bulk.js";
import { Failure } from "../components/failure.js";
import { State } from "../components/state.js";
import { usePolling } from "../components/use_polling.js";
import { dollars, duration, moment, number } from "../format.js";

const STATES = ["queued", "running", "succeeded", "failed", "cancelled", "expired"];
const FILTERS = ["status", "model", "tag", "end_user", "error_code", "batch_id", "created_after", "created_before"];
const EVERY_MS = 3000;

export function Jobs({ who, search }) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, search.get(name)]).filter(([, value]) => value));
  const after = search.get("after") ?? "";
  const path = `/v1/jobs${query({ ...filter, after, limit: 50 })}`;
  const { data, error } = usePolling(() => get(path), EVERY_MS, [path]);

  function apply(event) {
    event.preventDefault();
    const sent = Object.fromEntries(new FormData(event.currentTarget));
    location.hash = `#/jobs${query(sent)}`;
  }

  function open(event) {
    event.preventDefault();
    const id = new FormData(event.currentTarget).get("id").trim();
    if (id) location.hash = `#/jobs/${encodeURIComponent(id)}`;
  }

  return html`
    <div class="row head">
      <h1>Jobs</h1>
      <span class="push"></span>
      <form class="row" onSubmit=${open} role="search">
        <input name="id" placeholder="job_… and Enter" aria-label="Job id" spellcheck="false" size="32" />
      </form>
    </div>
    <${Filter} key=${search.toString()} filter=${filter} apply=${apply} />
    ${Object.keys(filter).length > 0 && html`<${Bulk} who=${who} filter=${filter} />`}
    <${Failure} error=${error} />
    ${data && html`<${Table} page=${data} filter=${filter} isFirst=${!after} />`}
  `;
}

function Filter({ filter, apply }) {
  return html`
    <form class="row filter" onSubmit=${apply}>
      <label>State
        <select name="status" value=${filter.status ?? ""} onChange=${(event) => event.target.form.requestSubmit()}>
          <option value="">any</option>
          ${STATES.map((state) => html`<option value=${state}>${state}</option>`)}
        </select>
      </label>
      <label>Model <input name="model" defaultValue=${filter.model ?? ""} size="16" spellcheck="false" /></label>
      <label>Tag <input name="tag" defaultValue=${filter.tag ?? ""} size="10" /></label>
      <label>End user <input name="end_user" defaultValue=${filter.end_user ?? ""} size="10" /></label>
      <label>Error <input name="error_code" defaultValue=${filter.error_code ?? ""} size="14" spellcheck="false" /></label>
      <label>Batch <input name="batch_id" defaultValue=${filter.batch_id ?? ""} size="14" spellcheck="false" /></label>
      <button type="submit">Filter</button>
      <a class="hint" href="#/jobs">Clear</a>
    </form>
  `;
}

function Table({ page, filter, isFirst }) {
  if (page.data.length === 0) {
    const isFiltered = Object.keys(filter).length > 0;
    return html`<p class="empty">
      ${isFiltered ? "No job matches. " : "There are no jobs yet. "}
      ${page.next ? html`<a href=${older(filter, page)}>Look further back</a>` : !isFiltered && html`<a href="#/playground">Submit one</a>`}
    </p>`;
  }
  return html`
    <div class="wide" tabindex="0" role="region" aria-label="Jobs">
      <table>
        <thead>
          <tr>
            <th>Job</th><th>State</th><th>Model</th><th>Created</th>
            <th class="number">Waited</th><th class="number">First token</th><th class="number">In all</th>
            <th class="number">Tokens</th><th class="number">Cost</th><th>Error</th>
          </tr>
        </thead>
        <tbody>${page.data.map((job) => html`<${Row} key=${job.id} job=${job} />`)}</tbody>
      </table>
    </div>
    <p class="row">
      ${!isFirst && html`<a href=${`#/jobs${query(filter)}`}>Newest</a>`}
      ${page.next && html`<a href=${older(filter, page)}>Older</a>`}
    </p>
  `;
}

const older = (filter, page) => `#/jobs${query({ ...filter, after: page.next })}`;

function Row({ job }) {
  return html`
    <tr>
      <td><a class="id" href=${`#/jobs/${job.id}`}>${job.id}</a></td>
      <td><${State} of=${job.status} /></td>
      <td class="cut" title=${job.model}>${job.model}</td>
      <td>${moment(job.created_at)}</td>
      <td class="number">${duration(job.timing.queued_ms)}</td>
      <td class="number">${duration(job.timing.first_token_ms)}</td>
      <td class="number">${duration(job.timing.total_ms)}</td>
      <td class="number">${number(job.usage?.output_tokens)}</td>
      <td class="number">${dollars(job.cost_usd)}</td>
      <td class="cut" title=${job.error?.message}>${job.error?.code ?? ""}</td>
    </tr>
  `;
}
