// Cancel or retry all jobs that a filter finds: asks how many they are, then shows how far it is.
import { html, useEffect, useRef, useState } from "../vendor/preact.js";
import { get, post } from "../api.js";
import { number } from "../format.js";
import { newKey } from "../transfer.js";
import { Failure } from "./failure.js";

const LOOK_MS = 700;
const ACTIONS = {
  retry: { title: "Retry all that match", scopes: ["submit", "read"] },
  cancel: { title: "Cancel all that match", scopes: ["cancel"] },
};

export function Bulk({ who, filter }) {
  const [asked, setAsked] = useState(null);
  const [operation, setOperation] = useState(null);
  const [error, setError] = useState(null);
  const dialog = useRef(null);

  useEffect(() => {
    if (!operation || operation.status !== "running") return undefined;
    const timer = setTimeout(() => get(operation.urls.self).then(setOperation).catch(setError), LOOK_MS);
    return () => clearTimeout(timer);
  }, [operation]);

  async function ask(action) {
    setError(null);
    try {
      setAsked({ action, ...(await post(`/v1/jobs/${action}`, { filter, dry_run: true })) });
      dialog.current.showModal();
    } catch (failure) {
      setError(failure);
    }
  }

  async function begin() {
    dialog.current.close();
    try {
      setOperation(await post(`/v1/jobs/${asked.action}`, { filter }, { headers: { "Idempotency-Key": newKey() } }));
    } catch (failure) {
      setError(failure);
    }
  }

  const allowed = Object.entries(ACTIONS).filter(([, action]) => action.scopes.every((scope) => who.scopes.includes(scope)));
  return html`
    <div class="row">
      ${allowed.map(([name, action]) => html`<button type="button" onClick=${() => ask(name)}>${action.title}…</button>`)}
      ${operation && html`<${Progress} operation=${operation} />`}
    </div>
    <${Failure} error=${error} />
    <dialog ref=${dialog} aria-label="Confirm">
      ${asked && html`
        <p>
          ${asked.matched === 0
            ? "No job matches."
            : `${asked.action === "retry" ? "Retry" : "Cancel"} ${number(asked.matched)}${asked.has_more ? " or more" : ""} jobs that match` +
              `${asked.action === "retry" ? " (those that have not ended, or succeeded, are skipped)" : " (those that have ended are skipped)"}?`}
        </p>
        <div class="row buttons">
          <button type="button" onClick=${() => dialog.current.close()}>No</button>
          ${asked.matched > 0 && html`<button type="button" class="main" onClick=${begin}>Yes, all ${number(asked.matched)}${asked.has_more ? "+" : ""}</button>`}
        </div>
      `}
    </dialog>
  `;
}

function Progress({ operation }) {
  const counts = Object.entries(operation.counts).filter(([, count]) => count > 0);
  return html`
    <span role="status">
      ${operation.status === "running" && html`<progress aria-label="Progress"></progress>`}
      ${operation.action}: ${operation.status}${counts.map(([name, count]) => `, ${name.replaceAll("_", " ")} ${number(count)}`)}
      ${operation.waiting_for && ` (waits: ${operation.waiting_for})`}
    </span>
  `;
}
