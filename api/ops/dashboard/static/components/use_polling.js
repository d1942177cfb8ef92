// Asks again and again while the page is shown and its tab is in front.
import { useEffect, useState } from "../vendor/preact.js";

// Returns {data, error}: the newest response, which stays while a later call fails.
export function usePolling(ask, everyMs, on = []) {
  const [state, setState] = useState({ data: null, error: null });
  useEffect(() => {
    let timer;
    let isOver = false;
    async function look() {
      if (!document.hidden) {
        try {
          const data = await ask();
          if (!isOver) setState({ data, error: null });
        } catch (error) {
          if (!isOver) setState((last) => ({ ...last, error }));
        }
      }
      if (!isOver) timer = setTimeout(look, everyMs);
    }
    look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, on);
  return state;
}
