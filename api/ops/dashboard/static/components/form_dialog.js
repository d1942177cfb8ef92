// A dialog that asks for something, and shows why the API refused it.
import { html, useState } from "../vendor/preact.js";
import { Dialog } from "./dialog.js";
import { Failure } from "./failure.js";

// send(FormData) asks the API, and throws if it refuses.
export function FormDialog({ title, action, send, close, children }) {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);

  async function submit(event) {
    event.preventDefault();
    setBusy(true);
    try {
      await send(new FormData(event.currentTarget));
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  }

  return html`
    <${Dialog} title=${title} close=${close}>
      <form class="asked" onSubmit=${submit}>
        ${children}
        <${Failure} error=${error} />
        <div class="row"><button type="button" onClick=${close}>Leave it</button><button type="submit" class="main" disabled=${isBusy}>${action}</button></div>
      </form>
    <//>
  `;
}
