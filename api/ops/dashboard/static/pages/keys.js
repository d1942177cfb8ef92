// API keys: make, change, rotate, revoke. An operator may look at those of another tenant.
import { html, useState } from "../vendor/preact.js";
import { call, get, post, query } from "../api.js";
import { Dialog } from "../components/dialog.js";
import { Failure } from "../components/failure.js";
import { FormDialog } from "../components/form_dialog.js";
import { KEY_LIMITS, LimitFields, limitsOf, limitsText } from "../components/limits.js";
import { usePolling } from "../components/use_polling.js";
import { moment } from "../format.js";

const EVERY_MS = 10_000;
const SCOPES = ["submit", "read", "cancel", "admin"];
const USUAL = ["submit", "read", "cancel"];
const DAY_S = 86_400;
const COLOURS = { active: "succeeded", expired: "expired", revoked: "cancelled" };

export function Keys({ who, search }) {
  const other = search.get("tenant") ?? "";
  const after = search.get("after");
  const path = `/v1/keys${query({ tenant: other, after, limit: 100 })}`;
  const [rounds, setRounds] = useState(0);
  const [dialog, setDialog] = useState(null);
  const { data, error } = usePolling(() => get(path), EVERY_MS, [path, rounds]);
  const url = (key, action = "") => `/v1/keys/${key.id}${action}${query({ tenant: other })}`;

  // Asks the API. Its refusal is thrown, for the form that asked; a key that it shows once is shown.
  async function act(asked) {
    const found = await asked;
    setDialog(found.key ? { kind: "secret", key: found } : null);
    setRounds((last) => last + 1);
  }

  return html`
    <div class="row head">
      <h1>Keys${other && ` of ${other}`}</h1>
      ${other && html`<a href="#/keys">Own keys</a>`}
      <span class="push"></span>
      ${!other && html`<button type="button" class="main" onClick=${() => setDialog({ kind: "make" })}>Make a key</button>`}
    </div>
    <${Failure} error=${error} />
    ${data?.data.length === 0 && html`<p class="empty">There are no keys.</p>`}
    ${data?.data.length > 0 && html`<${Table} keys=${data.data} open=${(kind, key) => setDialog({ kind, key })} canRotate=${!other} />`}
    ${data?.next && html`<p><a href=${`#/keys${query({ tenant: other, after: data.next })}`}>Older</a></p>`}
    ${dialog && html`<${Dialogs} key=${dialog.kind + dialog.key?.id} dialog=${dialog} who=${who} url=${url} act=${act} close=${() => setDialog(null)} />`}
  `;
}

function Table({ keys, open, canRotate }) {
  return html`
    <div class="wide" tabindex="0" role="region" aria-label="Keys">
      <table>
        <thead><tr><th>Key</th><th>State</th><th>Scopes</th><th>Limits</th><th>Created</th><th>Last used</th><th>Expires</th><th></th></tr></thead>
        <tbody>
          ${keys.map((key) => html`
            <tr key=${key.id}>
              <td class="cut" title=${key.name}>${key.name && html`${key.name}<br />`}<span class="id">${key.id}</span></td>
              <td><span class=${`state ${COLOURS[key.status]}`}>${key.status}</span></td>
              <td>${key.scopes.join(", ")}</td>
              <td class="cut" title=${limitsText(KEY_LIMITS, key.limits)}>${limitsText(KEY_LIMITS, key.limits)}</td>
              <td>${moment(key.created_at)}</td><td>${moment(key.last_used_at)}</td><td>${moment(key.expires_at)}</td>
              <td class="actions">
                ${key.status === "active" && html`
                  <button type="button" onClick=${() => open("change", key)}>Change</button>
                  ${canRotate && html`<button type="button" onClick=${() => open("rotate", key)}>Rotate</button>`}
                  <button type="button" onClick=${() => open("revoke", key)}>Revoke</button>`}
              </td>
            </tr>`)}
        </tbody>
      </table>
    </div>
  `;
}

function Dialogs({ dialog: { kind, key }, who, url, act, close }) {
  const name = key && (key.name || key.id);
  switch (kind) {
    case "secret":
      return html`<${Dialog} title="The key, shown once" close=${close}>
        <p>Copy it now: nobody can read it again.</p>
        <p><code class="wrap secret">${key.key}</code></p>
        <button type="button" class="main" onClick=${close}>I have it</button>
      <//>`;
    case "rotate":
      return html`<${FormDialog} title=${`Rotate ${name}`} action="Rotate" close=${close}
        send=${(form) => act(post(url(key, "/rotate"), { grace_s: Number(form.get("grace_s")) }))}>
        <label>Seconds for which the old secret stays valid <input name="grace_s" type="number" min="0" defaultValue="3600" required /></label>
      <//>`;
    case "revoke":
      return html`<${FormDialog} title=${`Revoke ${name}?`} action="Revoke" close=${close} send=${() => act(post(url(key, "/revoke")))}>
        <p>Every process refuses it within 5 s. This is final.</p>
      <//>`;
    default:
      return html`<${FormDialog} title=${key ? `Change ${name}` : "Make a key"} action=${key ? "Change" : "Make"} close=${close}
        send=${(form) => act(key ? call("PATCH", url(key), { body: membersOf(form) }) : post("/v1/keys", newOf(form)))}>
        <label>Name <input name="name" maxlength="128" defaultValue=${key?.name ?? ""} /></label>
        <fieldset class="row"><legend>Scopes</legend>
          ${SCOPES.filter((scope) => who.scopes.includes(scope) || key?.scopes.includes(scope)).map((scope) => html`
            <label class="check"><input type="checkbox" name="scopes" value=${scope} defaultChecked=${(key?.scopes ?? USUAL).includes(scope)} /> ${scope}</label>`)}
          ${key?.scopes.includes("operator") && html`
            <label class="check"><input type="checkbox" name="scopes" value="operator" defaultChecked /> operator</label>`}
        </fieldset>
        ${!key && html`<label>Days until it expires (empty: never) <input name="days" type="number" min="1" max="3650" /></label>`}
        <${LimitFields} names=${KEY_LIMITS} limits=${key?.limits} empty=${key ? "none" : "that of the key that makes it"} />
      <//>`;
  }
}

const membersOf = (form) => ({ name: form.get("name"), scopes: form.getAll("scopes"), limits: limitsOf(KEY_LIMITS, form) });

// A limit that is left empty is left out: it is then that of the key that makes it, which it may not exceed.
function newOf(form) {
  const { limits, ...members } = membersOf(form);
  const set = Object.fromEntries(Object.entries(limits).filter(([, limit]) => limit !== null));
  return { ...members, limits: set, ...(form.get("days") ? { expires_in_s: Number(form.get("days")) * DAY_S } : {}) };
}
