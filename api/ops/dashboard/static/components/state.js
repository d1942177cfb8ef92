// The state of a job as a coloured word.
import { html } from "../vendor/preact.js";

export const State = ({ of }) => html`<span class=${`state ${of}`}>${of}</span>`;
