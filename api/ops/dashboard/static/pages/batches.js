// The batches, newest first, and a place to drop a new one.
import { html, useRef, useState } from "../vendor/preact.js";
import { get, query } from "../api.js";
import { Failure } from "../components/failure.js";
import { usePolling } from "../components/use_polling.js";
import { dollars, moment, number } from "../format.js";
import { newKey, upload } from "../transfer.js";

const EVERY_MS = 3000;

export function Batches({ who, search }) {
  const after = search.get("after");
  const path = `/v1/batches${query({ after, limit: 50 })}`;
  const { data, error } = usePolling(() => get(path), EVERY_MS, [path]);
  return html`
    <h1>Batches</h1>
    ${who.scopes.includes("submit") && html`<${Drop} />`}
    <${Failure} error=${error} />
    ${data?.data.length === 0 && html`<p class="empty">There are no batches ${after ? "before these" : "yet"}.</p>`}
    ${data?.data.length > 0 && html`<${Table} batches=${data.data} />`}
    <p class="row">
      ${after && html`<a href="#/batches">Newest</a>`}
      ${data?.next && html`<a href=${`#/batches${query({ after: data.next })}`}>Older</a>`}
    </p>
  `;
}

function Drop() {
  const [sent, setSent] = useState(null);
  const [isOver, setOver] = useState(false);
  const [error, setError] = useState(null);
  const input = useRef(null);

  // A file keeps its key, so that sending it again after a broken response makes no second batch.
  async function send(file, key = newKey()) {
    setError(null);
    setSent({ name: file.name, share: 0 });
    const headers = { "Content-Type": "application/jsonl", "Idempotency-Key": key };
    try {
      const batch = await upload("/v1/batches", file, headers, (share) => setSent({ name: file.name, share }));
      location.hash = `#/batches/${batch.id}`;
    } catch (failure) {
      setError({ failure, again: () => send(file, key) });
      setSent(null);
    }
  }

  function drop(event) {
    event.preventDefault();
    setOver(false);
    const [file] = event.dataTransfer.files;
    if (file && !sent) send(file);
  }

  return html`
    <section class=${`card drop${isOver ? " over" : ""}`} aria-label="New batch" onDrop=${drop}
      onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}>
      ${sent
        ? html`<p role="status">Sending ${sent.name}: ${Math.round(sent.share * 100)} % <progress max="1" value=${sent.share} aria-label="Upload"></progress></p>`
        : html`
          <p>Drop a JSON-lines file here, or <button type="button" onClick=${() => input.current.click()}>Choose a file</button></p>
          <p class="hint">A request a line: <code>${'{"custom_id": "row-1", "params": {"prompt": "Why is the sky blue?"}}'}</code></p>
          <input ref=${input} type="file" hidden aria-label="Batch file" accept=".jsonl,.ndjson,.json,.txt"
            onChange=${(event) => event.target.files[0] && send(event.target.files[0])} />`}
      <${Failure} error=${error?.failure} again=${error?.again} />
    </section>
  `;
}

function Table({ batches }) {
  return html`
    <div class="wide" tabindex="0" role="region" aria-label="Batches">
      <table>
        <thead><tr><th>Batch</th><th>State</th><th>Ended</th><th class="number">Items</th><th class="number">Failed</th><th>Created</th><th>Ended at</th><th class="number">Cost</th></tr></thead>
        <tbody>
          ${batches.map((batch) => {
            const { total, queued, running, failed } = batch.counts;
            return html`
              <tr key=${batch.id}>
                <td><a class="id" href=${`#/batches/${batch.id}`}>${batch.id}</a></td>
                <td><span class=${`state ${batch.status === "ended" ? "" : "running"}`}>${batch.status}</span></td>
                <td><progress max=${total} value=${total - queued - running} aria-label=${`${total - queued - running} of ${total} ended`}></progress></td>
                <td class="number">${number(total)}</td>
                <td class="number">${failed ? html`<span class="state failed">${number(failed)}</span>` : "0"}</td>
                <td>${moment(batch.created_at)}</td>
                <td>${moment(batch.ended_at)}</td>
                <td class="number">${dollars(batch.cost_usd)}</td>
              </tr>`;
          })}
        </tbody>
      </table>
    </div>
  `;
}
