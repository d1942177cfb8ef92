// Numbers, times and reasons as people read them.

export const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

export function dollars(value) {
  if (value === null || value === undefined) return "–";
  return `$${value.toFixed(value !== 0 && Math.abs(value) < 0.01 ? 6 : 2)}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  const power = value < 1024 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${(value / 1024 ** power).toFixed(power && value / 1024 ** power < 10 ? 1 : 0)} ${units[power]}`;
}

export function duration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "–";
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function clock(time) {
  return time ? new Date(time).toLocaleTimeString("en-GB") : "–";
}

export function moment(time) {
  if (!time) return "–";
  const date = new Date(time);
  const day = date.toDateString() === new Date().toDateString() ? "" : `${date.toLocaleDateString("en-CA")} `;
  return day + date.toLocaleTimeString("en-GB");
}

const OWNERS = { tenant: "the tenant", key: "the API key", end_user: "the end user" };

// One member of waiting_for as a sentence.
export function reason(why) {
  switch (why.reason) {
    case "turn":
      return why.position === 1 ? "It is next." : `${number(why.position - 1)} jobs are before it.`;
    case "not_before":
      return `It was submitted to start at ${moment(why.until)}.`;
    case "retry":
      return `Attempt ${why.attempt} starts at ${moment(why.until)}.`;
    case "running_jobs":
      return `${capital(OWNERS[why.of])} already runs ${number(why.running)} of at most ${number(why.limit)} jobs.`;
    case "budget":
      return (
        `${capital(OWNERS[why.of])} has spent ${dollars(why.spent_usd)} of its ${dollars(why.limit_usd)} for the ` +
        `${why.period}${why.held_usd ? `, and running jobs hold ${dollars(why.held_usd)}` : ""}.` +
        (why.until ? ` More comes at ${moment(why.until)}.` : "")
      );
    case "route":
      return `${ROUTE[why.because]?.(why) ?? "It may not be called now"}${why.until ? `, until ${moment(why.until)}` : ""}.`;
    case "no_worker":
      return "No worker is running.";
    default:
      return why.reason;
  }
}

const ROUTE = {
  retry_after: (why) => `${why.route} has asked for a pause`,
  circuit: (why) => `Too many calls of ${why.route} failed${why.since ? ` since ${moment(why.since)}` : ""}; it is probed`,
  minute_full: (why) => `The minute of ${why.route} is full`,
  full: (why) => `${why.route} has as many calls as it may have`,
};

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
