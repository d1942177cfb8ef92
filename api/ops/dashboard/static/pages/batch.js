// One batch: how far it is, its items as a grid of coloured cells, and the tokens of the chosen one.
import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { get, post, query } from "../api.js";
import { Answer } from "../components/answer.js";
import { Failure } from "../components/failure.js";
import { State } from "../components/state.js";
import { answerAfter, ENDS, follow } from "../follow.js";
import { dollars, moment, number } from "../format.js";
import { download, newKey } from "../transfer.js";

const STATES = ["succeeded", "failed", "cancelled", "expired", "running", "queued"];
const PAGE = 100;
const MOST_CELLS = 500;
const REST_MS = 1500;
const EVERY_MS = 3000;

// Returns {batch, progress, error, load}: the batch, kept up to date by its events.
function useBatch(path) {
  const [state, setState] = useState({ batch: null, progress: null, error: null });
  const load = () => get(path).then((batch) => setState((last) => ({ ...last, batch })));
  const fail = (error) => setState((last) => ({ ...last, error }));
  useEffect(() => {
    load().catch(fail);
    const following = follow(
      `${path}/events`,
      (event) => {
        if (event.name === "refused") return fail(event.error);
        if (event.name === "progress") return setState((last) => ({ ...last, progress: JSON.parse(event.data) }));
        if (event.name === "ended") return setState((last) => ({ ...last, batch: JSON.parse(event.data), progress: null }));
        return undefined;
      },
      ["ended"],
    );
    return following.stop;
  }, [path]);
  // Events have the counts; cost, usage and failures are read beside them.
  const hasEnded = state.batch?.status === "ended";
  useEffect(() => {
    if (hasEnded) return undefined;
    const timer = setInterval(() => document.hidden || load().catch(fail), EVERY_MS);
    return () => clearInterval(timer);
  }, [path, hasEnded]);
  return { ...state, load, fail };
}

export function BatchPage({ who, id }) {
  const path = `/v1/batches/${encodeURIComponent(id)}`;
  const { batch, progress, error, load, fail } = useBatch(path);
  const [chosen, setChosen] = useState(null);
  if (!batch) return html`<h1>Batch</h1><${Failure} error=${error} />`;
  const counts = progress?.counts ?? batch.counts;
  const may = (scope) => who.scopes.includes(scope);
  const hasEnded = batch.status === "ended";
  const canRetry = hasEnded && counts.total - counts.succeeded - batch.invalid_lines > 0;

  async function retry() {
    const again = await post(`${path}/retry`, undefined, { headers: { "Idempotency-Key": newKey() } });
    location.hash = `#/batches/${again.id}`;
  }
  const act = (action) => () => action().catch(fail);

  return html`
    <div class="row head">
      <h1 class="id">${batch.id}</h1>
      <span class=${`state ${hasEnded ? "" : "running"}`}>${batch.status}</span>
      <span class="push"></span>
      ${!hasEnded && may("cancel") && html`<button type="button" onClick=${act(() => post(batch.urls.cancel).then(load))}>Cancel</button>`}
      ${canRetry && may("submit") && html`<button type="button" onClick=${act(retry)}>Retry what did not succeed</button>`}
      <button type="button" onClick=${act(() => download(batch.urls.results, `${batch.id}.jsonl`))}>Download results</button>
      ${counts.failed > 0 && html`
        <button type="button" onClick=${act(() => download(`${batch.urls.results}?status=failed`, `${batch.id}.failed.jsonl`))}>Download failures</button>`}
    </div>
    <${Failure} error=${error} />
    <section class="card"><${Progress} batch=${batch} counts=${counts} progress=${progress} /></section>
    <div class="columns">
      <section class="card"><h2>Items</h2><${Grid} id=${batch.id} counts=${counts} chosen=${chosen} choose=${setChosen} /></section>
      <section class="card">
        ${chosen ? html`<${Item} key=${chosen} id=${chosen} />` : html`<h2>Item</h2><p class="empty">Choose an item to see its tokens.</p>`}
      </section>
    </div>
  `;
}

function Progress({ batch, counts, progress }) {
  const ended = counts.total - counts.queued - counts.running;
  const facts = [
    ["Ended", `${number(ended)} of ${number(counts.total)}`],
    ["Rate", progress?.rate_per_s ? `${number(Number(progress.rate_per_s.toFixed(1)))} items/s` : "–"],
    batch.ended_at ? ["Ended at", moment(batch.ended_at)] : ["Likely end", moment(progress?.estimated_end_at)],
    ["Cost", dollars(batch.cost_usd)],
    ["Tokens", `${number(batch.usage.input_tokens)} in, ${number(batch.usage.output_tokens)} out`],
  ];
  let at = 0;
  return html`
    <svg class="shares" viewBox=${`0 0 ${counts.total || 1} 1`} preserveAspectRatio="none" role="img" aria-label=${`${ended} of ${counts.total} items have ended`}>
      ${STATES.map((state) => {
        const x = at;
        at += counts[state];
        return counts[state] > 0 && html`<rect class=${`cell ${state}`} x=${x} y="0" width=${counts[state]} height="1"><title>${state}: ${counts[state]}</title></rect>`;
      })}
    </svg>
    <p class="row">${STATES.filter((state) => counts[state] > 0).map((state) => html`<span><${State} of=${state} /> ${number(counts[state])}</span>`)}</p>
    <dl class="row spans">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${batch.retry_of && html`<p class="hint">Retry of <a class="id" href=${`#/batches/${batch.retry_of}`}>${batch.retry_of}</a></p>`}
    ${Object.keys(batch.failures).length > 0 && html`
      <p class="row hint">Failures:
        ${Object.entries(batch.failures).map(([code, count]) => html`<a href=${`#/jobs${query({ batch_id: batch.id, error_code: code })}`}>${code} ${number(count)}</a>`)}
        ${batch.invalid_lines > 0 && html`<span>${number(batch.invalid_lines)} lines are not valid: see the downloaded failures</span>`}
      </p>`}
    ${Object.keys(batch.metadata).length > 0 && html`<dl class="facts">${Object.entries(batch.metadata).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>`}
  `;
}

// The newest MOST_CELLS items from the cursor on. Returns {items, next}.
async function readItems(id, from) {
  const items = [];
  let after = from;
  do {
    const page = await get(`/v1/jobs${query({ batch_id: id, after, limit: PAGE })}`);
    items.push(...page.data);
    after = page.next;
  } while (after && items.length < MOST_CELLS);
  return { items, next: after };
}

// Reads the items again when the counts changed, with a rest in between.
function useItems(id, from, changed) {
  const [state, setState] = useState({ items: [], next: null, error: null });
  const wanted = useRef(null);
  const read = useRef(null);
  wanted.current = changed;
  useEffect(() => {
    let isOver = false;
    read.current = null;
    async function run() {
      while (!isOver) {
        if (read.current !== wanted.current && !document.hidden) {
          const next = wanted.current;
          try {
            const found = await readItems(id, from);
            read.current = next;
            if (!isOver) setState({ ...found, error: null });
          } catch (error) {
            if (!isOver) setState((last) => ({ ...last, error }));
          }
        }
        await new Promise((resume) => setTimeout(resume, REST_MS));
      }
    }
    run();
    return () => {
      isOver = true;
    };
  }, [id, from]);
  return state;
}

function Grid({ id, counts, chosen, choose }) {
  const [from, setFrom] = useState(null);
  const { items, next, error } = useItems(id, from, JSON.stringify(counts));
  const at = items.findIndex((item) => item.id === chosen);

  function move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || items.length === 0) return;
    event.preventDefault();
    choose(items[Math.min(Math.max(at + step, 0), items.length - 1)].id);
  }

  return html`
    <${Failure} error=${error} />
    ${items.length === 0
      ? html`<p class="empty">No item has been read yet. Lines that are not valid have no job.</p>`
      : html`
        <div class="grid" role="listbox" tabindex="0" aria-label="Items, the last line first" onKeyDown=${move}
          aria-activedescendant=${at >= 0 ? chosen : null} onClick=${({ target }) => target.id && target.role === "option" && choose(target.id)}>
          ${items.map((item) => html`
            <span key=${item.id} id=${item.id} role="option" class=${`cell ${item.status}`} aria-selected=${item.id === chosen}
              title=${`${item.custom_id ?? item.id}: ${item.status}`} aria-label=${`${item.custom_id ?? item.id}: ${item.status}`}></span>`)}
        </div>`}
    <p class="row hint">
      <span>The last line first.</span>
      ${from && html`<button type="button" onClick=${() => setFrom(null)}>Last lines</button>`}
      ${next && html`<button type="button" onClick=${() => setFrom(next)}>Earlier lines</button>`}
    </p>
  `;
}

function Item({ id }) {
  const [view, setView] = useState({ answer: "", status: "queued", job: null, error: null });
  const path = `/v1/jobs/${encodeURIComponent(id)}`;
  useEffect(() => {
    const waiting = [];
    let frame = null;
    const fail = (error) => setView((last) => ({ ...last, error }));
    get(path).then((job) => setView((last) => (ENDS.includes(last.status) ? last : { ...last, job, status: job.status })), fail);
    const following = follow(`${path}/events`, (event) => {
      waiting.push(event);
      frame ??= requestAnimationFrame(() => {
        frame = null;
        const some = waiting.splice(0);
        setView((last) => some.reduce(after, last));
      });
    });
    return () => {
      following.stop();
      cancelAnimationFrame(frame);
    };
  }, [path]);
  const { job } = view;
  return html`
    <div class="row bar">
      <h2>Item ${job?.custom_id ?? ""}</h2> <${State} of=${view.status} />
      <span class="push"></span><a href=${`#/jobs/${id}`}>Open the job</a>
    </div>
    <${Failure} error=${view.error} />
    ${job?.error && html`<div class="failure"><p><code>${job.error.code}</code> ${job.error.message}</p></div>`}
    <${Answer} text=${view.answer} isLive=${view.status === "running"} />
  `;
}

function after(view, event) {
  if (event.name === "refused") return { ...view, error: event.error };
  if (ENDS.includes(event.name)) {
    const job = JSON.parse(event.data);
    return { ...view, status: event.name, job, answer: job.result?.text || view.answer };
  }
  const isRunning = event.name === "started" || event.name === "delta";
  return { ...view, answer: answerAfter(view.answer, event), status: isRunning ? "running" : view.status };
}
