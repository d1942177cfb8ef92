// The same request in several languages, ready to copy.
import { html, useState } from "../vendor/preact.js";

// samples: [[name, text], ...]
export function Code({ samples }) {
  const [shown, setShown] = useState(samples[0][0]);
  const [isCopied, setCopied] = useState(false);
  const text = samples.find(([name]) => name === shown)[1];

  async function copy() {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  }

  return html`
    <div class="code">
      <div class="tabs" role="group" aria-label="Language">
        ${samples.map(
          ([name]) =>
            html`<button type="button" aria-pressed=${name === shown} onClick=${() => setShown(name)}>${name}</button>`,
        )}
        <button type="button" class="copy" onClick=${copy}>${isCopied ? "Copied" : "Copy"}</button>
      </div>
      <pre tabindex="0">${text}</pre>
    </div>
  `;
}
