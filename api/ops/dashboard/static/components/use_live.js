// The figures of the service, a second apart, and those of the last hour: from /v1/live, through cut connections.
import { useEffect, useState } from "../vendor/preact.js";
import { events } from "../api.js";

const AGAIN_MS = 2000;
const MOST_BUCKETS = 360;

// Returns {stats, history, isCut, error}; stats and history are null at first.
export function useLive(on = []) {
  const [live, setLive] = useState({ stats: null, history: null, isCut: false, error: null });
  useEffect(() => {
    const connection = new AbortController();
    let isOver = false;
    async function run() {
      while (!isOver) {
        try {
          for await (const event of events("/v1/live", { signal: connection.signal })) {
            if (isOver) return;
            setLive((before) => after(before, event.name, JSON.parse(event.data)));
          }
          if (!isOver) setLive((before) => ({ ...before, isCut: true }));
        } catch (error) {
          if (isOver) return;
          if ([401, 403].includes(error.status)) isOver = true;
          setLive((before) => ({ ...before, isCut: true, error: error.status ? error : null }));
        }
        if (!isOver) await new Promise((resume) => setTimeout(resume, AGAIN_MS));
      }
    }
    run();
    return () => {
      isOver = true;
      connection.abort();
    };
  }, on);
  return live;
}

function after(live, name, data) {
  const next = { ...live, isCut: false, error: null };
  if (name === "stats") return { ...next, stats: data };
  if (name === "history") return { ...next, history: data };
  if (name === "bucket") return { ...next, history: longer(live.history, data) };
  return live;
}

function longer(history, bucket) {
  if (!history) return history;
  const { from, ...values } = bucket;
  const grown = Object.entries(values).map(([name, value]) => [name, [...history[name], value].slice(-MOST_BUCKETS)]);
  const begin = history.waiting.length === 0 ? from : history.from;
  const isFull = history.waiting.length >= MOST_BUCKETS;
  const shifted = new Date(Date.parse(begin) + (isFull ? history.bucket_s * 1000 : 0)).toISOString();
  return { ...history, ...Object.fromEntries(grown), from: shifted };
}
