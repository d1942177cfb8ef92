// A failed call in the words of its problem document.
import { html } from "../vendor/preact.js";

export function Failure({ error, again }) {
  if (!error) return null;
  const members = error.problem?.errors ?? [];
  return html`
    <div class="failure" role="alert">
      <p>${error.message}</p>
      ${members.length > 0 && html`<ul>${members.map((one) => html`<li><code>${one.pointer}</code> ${one.detail}</li>`)}</ul>`}
      ${again && html`<button type="button" onClick=${again}>Try again</button>`}
    </div>
  `;
}
