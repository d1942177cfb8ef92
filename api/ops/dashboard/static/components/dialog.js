// A modal dialog, open as long as it is rendered.
import { html, useEffect, useRef } from "../vendor/preact.js";

export function Dialog({ title, close, children }) {
  const box = useRef(null);
  useEffect(() => {
    box.current.showModal();
  }, []);
  return html`
    <dialog ref=${box} aria-label=${title} onClose=${close}>
      <h1>${title}</h1>
      ${children}
    </dialog>
  `;
}
