import { html, useState } from "../vendor/preact.js";
import { Failure } from "./failure.js";

export function SignIn({ signIn }) {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);

  async function submit(event) {
    event.preventDefault();
    const form = new FormData(event.target);
    setBusy(true);
    try {
      await signIn(form.get("key").trim(), form.get("keep") === "on");
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  }

  return html`
    <main class="alone">
      <form class="card sign-in" onSubmit=${submit}>
        <h1>tokenspool</h1>
        <p>Sign in with an API key. An operator makes one with <code>tokenspool keys create --tenant NAME</code>.</p>
        <label>API key <input name="key" type="password" autocomplete="off" required placeholder="ts_live_…" /></label>
        <label class="check"><input name="keep" type="checkbox" /> Keep it until this tab is closed</label>
        <button type="submit" class="main" disabled=${isBusy}>Sign in</button>
        <${Failure} error=${error} />
      </form>
    </main>
  `;
}
