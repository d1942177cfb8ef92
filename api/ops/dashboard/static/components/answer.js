// Text of a model. It is never parsed as HTML: preact makes text nodes of it.
import { html, useEffect, useRef } from "../vendor/preact.js";

const PIECE_CHARS = 4000;

// Long answers are many text nodes, of which only the last changes, so that a token costs the same at any length.
export function Answer({ text, isLive }) {
  const box = useRef(null);
  const isAtEnd = useRef(true);
  const pieces = [];
  for (let at = 0; at < text.length; at += PIECE_CHARS) pieces.push(text.slice(at, at + PIECE_CHARS));
  useEffect(() => {
    if (isLive && isAtEnd.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text]);
  const onScroll = ({ target }) => {
    isAtEnd.current = target.scrollTop + target.clientHeight >= target.scrollHeight - 30;
  };
  return html`
    <div class=${`answer${isLive ? " live" : ""}`} ref=${box} onScroll=${onScroll} tabindex="0" role="region" aria-label="Answer">
      ${pieces.map((piece, number) => html`<span key=${number}>${piece}</span>`)}${isLive && html`<i class="caret"></i>`}
    </div>
  `;
}
