// One job: why it waits, its timeline to scale, its answer, and what was tried.
import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { call, get, post } from "../api.js";
import { Answer } from "../components/answer.js";
import { Failure } from "../components/failure.js";
import { State } from "../components/state.js";
import { answerAfter, ENDS, follow } from "../follow.js";
import { dollars, duration, moment, number, reason } from "../format.js";

export function JobPage({ who, id }) {
  const [job, setJob] = useState(null);
  const [attempts, setAttempts] = useState([]);
  const [answer, setAnswer] = useState("");
  const [error, setError] = useState(null);
  const hasEnded = job !== null && ENDS.includes(job.status);

  async function load() {
    try {
      const found = await get(`/v1/jobs/${encodeURIComponent(id)}`);
      setJob(found);
      if (found.result) setAnswer(textOf(found.result));
      else if (found.partial) setAnswer(found.partial.text);
      setAttempts((await get(`/v1/jobs/${encodeURIComponent(id)}/attempts`)).data);
      return ENDS.includes(found.status);
    } catch (failure) {
      setError(failure);
      return false;
    }
  }

  useEffect(() => {
    let following = null;
    let isOver = false;
    load().then((isEnded) => {
      if (isOver || isEnded) return;
      following = follow(`/v1/jobs/${encodeURIComponent(id)}/events`, (event) => {
        if (isOver || event.name === "refused") return;
        if (["delta", "reset", "snapshot"].includes(event.name)) setAnswer((text) => answerAfter(text, event));
        else if (event.name !== "cut") load();
      });
    });
    return () => {
      isOver = true;
      following?.stop();
    };
  }, [id]);

  async function act(method, path, then) {
    try {
      const found = await call(method, path, method === "POST" ? { body: {} } : {});
      then(found);
    } catch (failure) {
      setError(failure);
    }
  }

  if (!job) return html`<h1>Job</h1><${Failure} error=${error} />`;
  const may = (scope) => who.scopes.includes(scope);
  return html`
    <div class="row head">
      <h1 class="id">${job.id}</h1>
      <${State} of=${job.status} />
      <span class="push"></span>
      ${!hasEnded && may("cancel") && html`<button type="button" onClick=${() => act("POST", job.urls.cancel, load)}>Cancel</button>`}
      ${hasEnded && job.status !== "succeeded" && may("submit") && html`
        <button type="button" onClick=${() => act("POST", `${job.urls.self}/retry`, (next) => { location.hash = `#/jobs/${next.id}`; })}>Retry</button>`}
    </div>
    <${Failure} error=${error} />
    ${job.waiting_for && html`
      <section class="card wait">
        <h2>Why it waits</h2>
        <ul>${job.waiting_for.map((why) => html`<li>${reason(why)}</li>`)}</ul>
      </section>`}
    ${job.error && html`<div class="failure"><p><code>${job.error.code}</code> ${job.error.message}</p></div>`}
    <section class="card"><h2>Timeline</h2><${Timeline} job=${job} attempts=${attempts} /></section>
    <div class="columns">
      <section class="card">
        <div class="row"><h2>Answer</h2><span class="push"></span><${Replay} job=${job} /></div>
        <${Answer} text=${answer} isLive=${!hasEnded && job.status === "running"} />
      </section>
      <section class="card"><h2>Facts</h2><${Facts} job=${job} /></section>
    </div>
    ${attempts.length > 0 && html`<section class="card"><h2>Attempts</h2><${Attempts} attempts=${attempts} /></section>`}
  `;
}

const textOf = (result) => result.text || (result.message ? JSON.stringify(result.message.content, null, 2) : JSON.stringify(result));

// Bars on one scale: the wait, then each attempt with the time to its first token in a paler colour.
function Timeline({ job, attempts }) {
  const begin = Date.parse(job.created_at);
  const end = Math.max(job.ended_at ? Date.parse(job.ended_at) : Date.now(), begin + 1);
  const share = (time) => ((Date.parse(time) - begin) / (end - begin)) * 100;
  const bars = [{ name: "waited", kind: "queued", from: 0, to: job.started_at ? share(job.started_at) : 100, ms: job.timing.queued_ms }];
  for (const one of attempts) {
    const from = share(one.begun_at);
    const to = one.ended_at ? share(one.ended_at) : 100;
    const first = one.first_token_at ? share(one.first_token_at) : null;
    const name = `attempt ${one.attempt}`;
    const ms = ((to - from) / 100) * (end - begin);
    if (first !== null) bars.push({ name, kind: "first", from, to: first, ms: ((first - from) / 100) * (end - begin) });
    bars.push({ name: first === null ? name : "", kind: one.outcome ?? "running", from: first ?? from, to, ms });
  }
  return html`
    <svg class="timeline" viewBox=${`0 0 100 ${bars.length * 6}`} height=${bars.length * 18} preserveAspectRatio="none" role="img"
      aria-label=${`Waited ${duration(job.timing.queued_ms)}, in all ${duration(job.timing.total_ms)}`}>
      ${bars.map((bar, number) => html`
        <rect class=${`bar ${bar.kind}`} x=${bar.from} y=${number * 6 + 1} height="4" width=${Math.max(bar.to - bar.from, 0.4)}>
          <title>${bar.name || bar.kind}: ${duration(bar.ms)}</title>
        </rect>`)}
    </svg>
    <dl class="row spans">
      <div><dt>Waited</dt><dd>${duration(job.timing.queued_ms ?? Date.now() - begin)}</dd></div>
      <div><dt>First token</dt><dd>${duration(job.timing.first_token_ms)}</dd></div>
      <div><dt>Ran</dt><dd>${duration(job.timing.running_ms)}</dd></div>
      <div><dt>In all</dt><dd>${duration(job.timing.total_ms)}</dd></div>
    </dl>
  `;
}

function Facts({ job }) {
  const facts = [
    ["Model", job.model],
    ["Priority", job.priority],
    ["Created", moment(job.created_at)],
    ["Started", moment(job.started_at)],
    ["Ended", moment(job.ended_at)],
    ["Attempts", `${job.attempts} of at most ${job.max_attempts}`],
    ["Tokens", job.usage ? `${number(job.usage.input_tokens)} in, ${number(job.usage.output_tokens)} out` : "–"],
    ["Cost", dollars(job.cost_usd)],
    ["Batch", job.batch_id],
    ["Custom id", job.custom_id],
    ["Retry of", job.retry_of && html`<a href=${`#/jobs/${job.retry_of}`}>${job.retry_of}</a>`],
    ["End user", job.end_user],
    ["Tags", job.tags.join(", ")],
    ...Object.entries(job.metadata),
  ];
  return html`<dl class="facts">${facts.filter(([, value]) => value).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>`;
}

function Attempts({ attempts }) {
  return html`
    <div class="wide" tabindex="0" role="region" aria-label="Attempts">
      <table>
        <thead><tr><th class="number">#</th><th>Model</th><th>Worker</th><th>Begun</th><th class="number">First token</th><th class="number">Ran</th><th>Outcome</th><th class="number">Cost</th></tr></thead>
        <tbody>
          ${attempts.map((one) => html`
            <tr key=${one.begun_at}>
              <td class="number">${one.attempt}</td><td>${one.route}</td><td>${one.worker}</td><td>${moment(one.begun_at)}</td>
              <td class="number">${one.first_token_at ? duration(Date.parse(one.first_token_at) - Date.parse(one.begun_at)) : "–"}</td>
              <td class="number">${one.ended_at ? duration(Date.parse(one.ended_at) - Date.parse(one.begun_at)) : "–"}</td>
              <td title=${one.message}>${one.outcome ?? "under way"}${one.message ? `: ${one.message}` : ""}</td>
              <td class="number">${dollars(one.cost_usd)}</td>
            </tr>`)}
        </tbody>
      </table>
    </div>
  `;
}

// Plays the job's log again, as a follower saw it. The log has no time of each event, so they come evenly, in the time that
// the answer took from its first token to the end.
function Replay({ job }) {
  const [text, setText] = useState(null);
  const timer = useRef(null);
  useEffect(() => () => clearTimeout(timer.current), []);
  const dialog = useRef(null);
  if (!ENDS.includes(job.status) || job.timing.first_token_ms === null) return null;

  function play() {
    dialog.current.showModal();
    setText("");
    const shown = [];
    const playing = follow(`/v1/jobs/${job.id}/events`, (event) => {
      if (["delta", "reset", "snapshot"].includes(event.name)) shown.push(event);
      if (!ENDS.includes(event.name)) return;
      playing.stop();
      const pauseMs = (job.timing.total_ms - job.timing.first_token_ms) / Math.max(shown.length, 1);
      const begun = performance.now();
      let answer = "";
      let at = 0;
      const step = () => {
        const due = Math.min(shown.length, Math.ceil((performance.now() - begun) / pauseMs));
        while (at < due) answer = answerAfter(answer, shown[at++]);
        setText(answer);
        if (at < shown.length) timer.current = setTimeout(step, Math.max(pauseMs, 16));
      };
      step();
    });
  }

  return html`
    <button type="button" onClick=${play}>Replay</button>
    <dialog ref=${dialog} class="replay" aria-label="Replay" onClose=${() => clearTimeout(timer.current)}>
      <${Answer} text=${text ?? ""} isLive=${true} />
      <div class="row buttons"><button type="button" onClick=${() => dialog.current.close()}>Close</button></div>
    </dialog>
  `;
}
