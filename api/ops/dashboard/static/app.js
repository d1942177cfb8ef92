// The shell: who is signed in, the list of pages, and which of them is shown.
import { html, render, useEffect, useState } from "./vendor/preact.js";
import { SignIn } from "./components/sign_in.js";
import { Failure } from "./components/failure.js";
import { useSession } from "./session.js";
import { Overview } from "./pages/overview.js";
import { Playground } from "./pages/playground.js";
import { Jobs } from "./pages/jobs.js";
import { JobPage } from "./pages/job.js";
import { Batches } from "./pages/batches.js";
import { BatchPage } from "./pages/batch.js";
import { Webhooks } from "./pages/webhooks.js";
import { Usage } from "./pages/usage.js";
import { Keys } from "./pages/keys.js";
import { Tenants } from "./pages/tenants.js";

// needs: the scope without which the page shows nothing. needsKey: the API refuses it where no key is needed.
// A path may end with an id.
const PAGES = [
  { path: "overview", title: "Overview", component: Overview, needs: "read" },
  { path: "playground", title: "Playground", component: Playground, needs: "submit" },
  { path: "jobs", title: "Jobs", component: Jobs, needs: "read", one: JobPage },
  { path: "batches", title: "Batches", component: Batches, needs: "read", one: BatchPage },
  { path: "webhooks", title: "Webhooks", component: Webhooks, needs: "read" },
  { path: "usage", title: "Usage", component: Usage, needs: "read" },
  { path: "keys", title: "Keys", component: Keys, needs: "admin", needsKey: true },
  { path: "tenants", title: "Tenants", component: Tenants, needs: "operator" },
];

// "#/jobs/job_1?status=failed" → ["jobs", "job_1", URLSearchParams]
function placeOf(hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [page = "", id = ""] = path.split("/");
  return { page, id: decoded(id), search: new URLSearchParams(search) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // "%" alone
  }
}

function toContent(event) {
  event.preventDefault(); // the hash names the page
  document.getElementById("main").focus();
}

function usePlace() {
  const [place, setPlace] = useState(placeOf(location.hash));
  useEffect(() => {
    const changed = () => setPlace(placeOf(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return place;
}

const THEME = "tokenspool.theme";

function useTheme() {
  const [theme, setTheme] = useState(localStorage.getItem(THEME) || "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem(THEME, theme);
  }, [theme]);
  return [theme, setTheme];
}

function App() {
  const session = useSession();
  const place = usePlace();
  const [theme, setTheme] = useTheme();
  const { who } = session;
  if (session.error) return html`<main class="alone"><${Failure} error=${session.error} again=${session.again} /></main>`;
  if (who === undefined) return html`<main class="alone" aria-busy="true"></main>`;
  if (who === null) return html`<${SignIn} signIn=${session.signIn} />`;
  const pages = PAGES.filter((page) => who.scopes.includes(page.needs) && (who.hasKey || !page.needsKey));
  const page = pages.find((one) => one.path === place.page) ?? pages[0];
  const Shown = place.id && page?.one ? page.one : page?.component;
  return html`
    <a class="skip" href="#main" onClick=${toContent}>To the content</a>
    <header>
      <a class="name" href="#/">tokenspool</a>
      <nav aria-label="Pages">
        ${pages.map(
          (one) => html`<a href=${`#/${one.path}`} aria-current=${one === page ? "page" : null}>${one.title}</a>`,
        )}
      </nav>
      <div class="aside">
        <${Tenant} session=${session} />
        <select aria-label="Theme" value=${theme} onChange=${(event) => setTheme(event.target.value)}>
          <option value="auto">System theme</option><option value="light">Light</option><option value="dark">Dark</option>
        </select>
      </div>
    </header>
    <main id="main" tabindex="-1">
      ${Shown
        ? html`<${Shown} key=${place.page + place.id + who.tenant} who=${who} id=${place.id} search=${place.search} />`
        : html`<p class="empty">This key may neither read nor submit: there is nothing to show.</p>`}
    </main>
  `;
}

function Tenant({ session }) {
  const { who } = session;
  if (who.hasKey) {
    return html`<span class="tenant" title="The tenant of the key">${who.tenant}</span>
      <button type="button" class="plain" onClick=${session.signOut}>Sign out</button>`;
  }
  async function change({ target }) {
    try {
      await session.actFor(target.value);
      target.setCustomValidity("");
    } catch (failure) {
      target.setCustomValidity(failure.problem?.errors?.[0]?.detail ?? failure.message);
      target.reportValidity();
    }
  }
  return html`<label class="tenant">Tenant
    <input defaultValue=${who.tenant} size="10" spellcheck="false" onChange=${change} onInput=${({ target }) => target.setCustomValidity("")} />
  </label>`;
}

render(html`<${App} />`, document.getElementById("app"));
