// Limits: how much of them is used, as a short text, and as fields of a form.
import { html } from "../vendor/preact.js";
import { dollars, moment, number } from "../format.js";

export const KEY_LIMITS = {
  requests_per_minute: "Requests a minute",
  tokens_per_minute: "Tokens a minute",
  running_jobs: "Running jobs",
  queued_jobs: "Waiting jobs",
  usd_per_day: "Dollars a day",
  usd_per_month: "Dollars a month",
};

export const TENANT_LIMITS = {
  ...KEY_LIMITS,
  waiting_bytes: "Bytes of waiting requests",
  end_user_running_jobs: "Running jobs of an end user",
  end_user_usd_per_day: "Dollars a day of an end user",
  end_user_usd_per_month: "Dollars a month of an end user",
  log_retention_s: "Seconds to keep logs",
  result_retention_s: "Seconds to keep results",
};

const isMoney = (name) => name.includes("usd");
const amount = (name, value) => (isMoney(name) ? dollars(value) : number(value));

// "Requests a minute 600, Dollars a day $50.00"
export function limitsText(names, limits) {
  const set = Object.keys(names).filter((name) => limits[name] !== null);
  return set.map((name) => `${names[name]}: ${amount(name, limits[name])}`).join(", ") || "none";
}

export function LimitFields({ names, limits = {}, empty = "none" }) {
  return html`
    <fieldset class="fields">
      <legend>Limits (empty: ${empty})</legend>
      ${Object.entries(names).map(([name, title]) => html`
        <label key=${name}>${title}
          <input name=${name} type="number" min="0" step=${isMoney(name) || name.endsWith("_s") ? "any" : "1"} defaultValue=${limits[name] ?? ""} />
        </label>`)}
    </fieldset>
  `;
}

// What the fields say, as the API takes it: null is no limit.
export function limitsOf(names, form) {
  return Object.fromEntries(Object.keys(names).map((name) => [name, form.get(name) === "" ? null : Number(form.get(name))]));
}

// uses: the tenant's or the key's member of GET /v1/limits
export function LimitUses({ uses }) {
  const rows = Object.entries(TENANT_LIMITS).filter(([name]) => uses[name]);
  if (rows.length === 0) return html`<p class="empty">No limit is set.</p>`;
  return html`
    <ul class="list">
      ${rows.map(([name, title]) => {
        const use = uses[name];
        const [limit, used] = isMoney(name) ? [use.limit_usd, use.spent_usd] : [use.limit, use.used];
        const held = use.held_usd ? `, ${dollars(use.held_usd)} held by running jobs` : "";
        return html`
          <li key=${name} title=${use.resets_at ? `free again at ${moment(use.resets_at)}` : null}>
            <span class="cut">${title}</span><span class="push"></span>
            <meter min="0" max=${limit} value=${used} high=${limit * 0.9} aria-label=${title}></meter>
            <span class="number">${amount(name, used)} of ${amount(name, limit)}${held}</span>
          </li>`;
      })}
    </ul>
  `;
}
