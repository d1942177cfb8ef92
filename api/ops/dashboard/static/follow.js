// Follows a job through cut connections: one state for each page that shows tokens as they come.
import { events } from "./api.js";

export const ENDS = ["succeeded", "failed", "cancelled", "expired"];
const AGAIN_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;

// Calls on(event) for each event, over as many connections as it takes, until the job's end (a batch's: ["ended"]).
// on({name: "connected" | "cut"}) says how the connection does; neither has data. Returns {cut(), stop()}.
export function follow(path, on, ends = ENDS) {
  let last = null;
  let connection = null;
  let isOver = false;
  let pauseMs = AGAIN_MS;

  async function run() {
    while (!isOver) {
      connection = new AbortController();
      try {
        for await (const event of events(path, { after: last, signal: connection.signal })) {
          if (event.id) last = event.id;
          pauseMs = AGAIN_MS;
          if (isOver) return;
          on(event);
          if (ends.includes(event.name)) isOver = true;
        }
      } catch (error) {
        // A rate limit passes; any other refusal stays.
        if (!isOver && error.status >= 400 && error.status < 500 && error.status !== 429) {
          isOver = true;
          on({ name: "refused", error });
        }
      }
      if (!isOver) {
        on({ name: "cut", id: last });
        await new Promise((resume) => setTimeout(resume, pauseMs * (0.75 + Math.random() / 2)));
        pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
      }
    }
  }

  run();
  return {
    cut: () => connection?.abort(),
    stop() {
      isOver = true;
      connection?.abort();
    },
  };
}

// The answer so far, from the events so far. reset begins it anew, snapshot replaces it.
export function answerAfter(answer, event) {
  switch (event.name) {
    case "delta":
      return answer + JSON.parse(event.data).text;
    case "snapshot":
      return JSON.parse(event.data).text ?? answer;
    case "reset":
      return "";
    default:
      return answer;
  }
}
