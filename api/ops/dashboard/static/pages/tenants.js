// All tenants, for operators: how much waits and runs, their limits, and their erasure.
import { html, useState } from "../vendor/preact.js";
import { call, get, query } from "../api.js";
import { Failure } from "../components/failure.js";
import { FormDialog } from "../components/form_dialog.js";
import { LimitFields, limitsOf, limitsText, TENANT_LIMITS } from "../components/limits.js";
import { usePolling } from "../components/use_polling.js";
import { number } from "../format.js";

const EVERY_MS = 3000;

export function Tenants({ who, search }) {
  const path = `/v1/tenants${query({ after: search.get("after"), limit: 100 })}`;
  const [rounds, setRounds] = useState(0);
  const [dialog, setDialog] = useState(null);
  const { data, error } = usePolling(() => get(path), EVERY_MS, [path, rounds]);
  const url = (name) => `/v1/tenants/${encodeURIComponent(name)}`;

  async function act(asked) {
    await asked;
    setDialog(null);
    setRounds((last) => last + 1);
  }

  // PUT would replace the settings of a tenant that exists.
  async function make(name, settings) {
    const found = await get(url(name)).catch((failure) => (failure.status === 404 ? null : Promise.reject(failure)));
    if (found) throw new Error(`The tenant ${name} exists already. Change its limits instead.`);
    await call("PUT", url(name), { body: settings });
  }

  async function send(form) {
    const settings = limitsOf(TENANT_LIMITS, form);
    const { tenant } = dialog;
    await act(tenant ? call("PATCH", url(tenant.name), { body: settings }) : make(form.get("name"), settings));
  }

  return html`
    <div class="row head">
      <h1>Tenants</h1><span class="push"></span>
      <button type="button" class="main" onClick=${() => setDialog({ kind: "make" })}>Make a tenant</button>
    </div>
    <${Failure} error=${error} />
    ${data && html`<${Table} who=${who} tenants=${data.data} open=${(kind, tenant) => setDialog({ kind, tenant })} />`}
    ${data?.next && html`<p><a href=${`#/tenants${query({ after: data.next })}`}>More</a></p>`}
    ${dialog?.kind === "erase" && html`
      <${FormDialog} title=${`Erase ${dialog.tenant.name}?`} action="Erase all of it" close=${() => setDialog(null)}
        send=${() => act(call("DELETE", url(dialog.tenant.name)))}>
        <p>All its jobs, batches, results, keys, usage and settings are erased. This is final.</p>
        <label>Type its name <input required pattern=${dialog.tenant.name.replace(/[.*+?^$(){}|[\]\\/]/g, "\\$&")} autocomplete="off" /></label>
      <//>`}
    ${(dialog?.kind === "make" || dialog?.kind === "change") && html`
      <${FormDialog} title=${dialog.tenant ? `Limits of ${dialog.tenant.name}` : "Make a tenant"} action=${dialog.tenant ? "Change" : "Make"} close=${() => setDialog(null)} send=${send}>
        ${!dialog.tenant && html`<label>Name <input name="name" required /></label>`}
        <${LimitFields} names=${TENANT_LIMITS} limits=${dialog.tenant?.settings} />
      <//>`}
  `;
}

function Table({ who, tenants, open }) {
  return html`
    <div class="wide" tabindex="0" role="region" aria-label="Tenants">
      <table>
        <thead><tr><th>Tenant</th><th class="number">Waiting</th><th class="number">Running</th><th>Limits</th><th></th></tr></thead>
        <tbody>
          ${tenants.map((tenant) => html`
            <tr key=${tenant.name}>
              <td class="cut">${tenant.name}</td>
              <td class="number">${number(tenant.queued)}</td><td class="number">${number(tenant.running)}</td>
              <td class="cut" title=${limitsText(TENANT_LIMITS, tenant.settings)}>${limitsText(TENANT_LIMITS, tenant.settings)}</td>
              <td class="actions">
                ${tenant.erasure
                  ? html`<span class="state queued">being erased: ${number(tenant.erasure.jobs_erased)} jobs so far</span>`
                  : html`
                    <a href=${`#/usage${query({ tenant: tenant.name })}`}>Usage</a>
                    ${who.hasKey && who.scopes.includes("admin") && html`<a href=${`#/keys${query({ tenant: tenant.name })}`}>Keys</a>`}
                    <button type="button" onClick=${() => open("change", tenant)}>Limits</button>
                    ${tenant.name !== who.tenant && html`<button type="button" onClick=${() => open("erase", tenant)}>Erase</button>`}`}
              </td>
            </tr>`)}
        </tbody>
      </table>
    </div>
  `;
}
