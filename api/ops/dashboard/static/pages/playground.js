// Try a prompt: the tokens as they come, and what happens to them when the connection is cut.
import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { get, post } from "../api.js";
import { Answer } from "../components/answer.js";
import { Code } from "../components/code.js";
import { Failure } from "../components/failure.js";
import { State } from "../components/state.js";
import { answerAfter, ENDS, follow } from "../follow.js";
import { clock, duration, reason } from "../format.js";
import { samplesOf } from "../samples.js";

const PROMPT = "Why is the sky blue?";

function requestOf(form) {
  const data = new FormData(form);
  const request = { prompt: data.get("prompt"), max_tokens: Number(data.get("max_tokens")) || 1024 };
  if (data.get("model")) request.model = data.get("model");
  const job = {};
  if (data.get("priority") !== "normal") job.priority = data.get("priority");
  if (Object.keys(job).length) request.job = job;
  return request;
}

// A line of the story beside the answer.
function noteOf(event) {
  const data = event.data ? JSON.parse(event.data) : {};
  switch (event.name) {
    case "queued":
    case "waiting":
      return `waits: ${(data.waiting_for ?? []).map(reason).join(" ")}`;
    case "started":
      return data.attempt > 1 ? `attempt ${data.attempt} started` : "started";
    case "reset":
      return `begins anew (${data.reason ?? "another attempt"}): the text so far is taken back`;
    case "retry":
      return `attempt ${data.attempt} failed (${data.reason}); the next comes in ${duration(data.delay_ms)}`;
    case "cut":
      return event.id ? `connection cut after event ${event.id}; it resumes there` : "connection cut; it connects again";
    case "snapshot":
      return "the whole text so far, in one event";
    default:
      return ENDS.includes(event.name) ? event.name : null;
  }
}

export function Playground({ who }) {
  const [job, setJob] = useState(null);
  const [view, setView] = useState({ answer: "", story: [], status: null, tokens: 0, first: null });
  const [error, setError] = useState(null);
  const [models, setModels] = useState([]);
  const [request, setRequest] = useState({ prompt: PROMPT, max_tokens: 1024 });
  const following = useRef(null);
  const form = useRef(null);
  const [canKill, setCanKill] = useState(false);
  const isRunning = view.status !== null && !ENDS.includes(view.status);

  useEffect(() => {
    if (who.scopes.includes("read")) get("/v1/models").then((page) => setModels(page.data)).catch(() => {});
    get("/dashboard/config.json").then((config) => setCanKill(config.dev_controls && who.scopes.includes("operator"))).catch(() => {});
    return () => following.current?.stop();
  }, []);

  // Events are gathered and shown once a frame of the screen, however many tokens come.
  function show(begunMs) {
    const waiting = [];
    let isAsked = false;
    return (event) => {
      waiting.push(event);
      if (isAsked) return;
      isAsked = true;
      requestAnimationFrame(() => {
        isAsked = false;
        const some = waiting.splice(0);
        setView((last) => some.reduce((before, one) => after(before, one, begunMs), last));
      });
    };
  }

  async function submit(event) {
    event?.preventDefault();
    following.current?.stop();
    setError(null);
    const sent = requestOf(form.current);
    setRequest(sent);
    const begunMs = performance.now();
    try {
      const created = await post("/v1/jobs", sent);
      setJob(created);
      setView({ answer: "", story: [{ at: new Date(), text: `submitted as ${created.id}` }], status: "queued", tokens: 0, first: null });
      following.current = follow(created.urls.events, show(begunMs));
    } catch (failure) {
      setError(failure);
    }
  }

  async function kill() {
    try {
      const { data } = await get(`${job.urls.self}/attempts`);
      const attempt = data.findLast((one) => one.ended_at === null);
      if (!attempt) return; // it has just ended
      const { worker } = attempt;
      await post("/dev/kill-worker", { worker });
      setView((last) => ({ ...last, story: [...last.story, { at: new Date(), text: `you killed ${worker}: another one takes over` }] }));
    } catch (failure) {
      setError(failure);
    }
  }

  async function cancel() {
    try {
      await post(job.urls.cancel, {});
    } catch (failure) {
      setError(failure);
    }
  }

  const onKeyDown = (event) => {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) submit();
  };

  return html`
    <h1>Playground</h1>
    <div class="columns">
      <form class="card" ref=${form} onSubmit=${submit} onInput=${() => setRequest(requestOf(form.current))}>
        <label>Prompt
          <textarea name="prompt" rows="6" required onKeyDown=${onKeyDown}>${PROMPT}</textarea>
        </label>
        <div class="row">
          <label>Model
            <input name="model" list="models" placeholder="the default" spellcheck="false" />
            <datalist id="models">${models.map((model) => html`<option value=${model.id}></option>`)}</datalist>
          </label>
          <label>Most tokens <input name="max_tokens" type="number" min="1" defaultValue="1024" /></label>
          <label>Priority
            <select name="priority">
              ${["normal", "high", "low"].map((name) => html`<option value=${name}>${name}</option>`)}
            </select>
          </label>
        </div>
        <div class="row buttons">
          <button type="submit" class="main">Submit</button>
          <span class="hint">Ctrl+Enter</span>
        </div>
        <${Failure} error=${error} />
        <${Code} samples=${samplesOf(request, who)} />
      </form>
      <section class="card" aria-label="Answer">
        <div class="row bar">
          ${view.status ? html`<${State} of=${view.status} />` : html`<span class="hint">No job yet</span>`}
          ${view.first !== null && html`<span class="hint">first token after ${duration(view.first)}</span>`}
          ${view.tokens > 0 && html`<span class="hint">${view.tokens} events</span>`}
          <span class="push"></span>
          <button type="button" disabled=${!isRunning} onClick=${() => following.current.cut()}>Cut my connection</button>
          ${canKill && html`<button type="button" disabled=${view.status !== "running"} onClick=${kill}>Kill the worker</button>`}
          <button type="button" disabled=${!isRunning || !who.scopes.includes("cancel")} onClick=${cancel}>Cancel</button>
        </div>
        <${Answer} text=${view.answer} isLive=${isRunning} />
        <ol class="story" aria-live="polite">
          ${view.story.map((line, number) => html`<li key=${number}><time>${clock(line.at)}</time> ${line.text}</li>`)}
        </ol>
        ${job && who.scopes.includes("read") && html`<p><a href=${`#/jobs/${job.id}`}>Open the job</a></p>`}
      </section>
    </div>
  `;
}

function after(view, event, begunMs) {
  if (event.name === "refused") return { ...view, story: [...view.story, { at: new Date(), text: event.error.message }] };
  const isContent = event.name === "delta";
  const note = isContent ? null : noteOf(event);
  return {
    answer: answerAfter(view.answer, event),
    story: note ? [...view.story, { at: new Date(), text: note }].slice(-200) : view.story,
    status: statusAfter(view.status, event.name),
    tokens: view.tokens + (isContent ? 1 : 0),
    first: view.first ?? (isContent ? performance.now() - begunMs : null),
  };
}

function statusAfter(status, name) {
  if (ENDS.includes(name)) return name;
  if (name === "started" || name === "delta") return "running";
  return name === "retry" || name === "queued" ? "queued" : status;
}
