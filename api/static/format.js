// Numbers and times as people read them.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const NOTHING = "–";

/** 12,345 */
export const whole = (number) => (number === null ? NOTHING : WHOLE.format(number));

/** 12.3K; below ten thousand every digit. */
export function short(number) {
  if (number === null) return NOTHING;
  return number < 10_000 ? WHOLE.format(number) : SHORT.format(number);
}

/** 47 % */
export const percent = (share) => (share === null ? NOTHING : `${Math.round(share * 100)} %`);

/** 0.8 ms, 12 ms, 1.4 s, 3 min, 2 h, 4 d */
export function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return NOTHING;
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

/** 2 s ago; these times are known to a second at best */
export function ago(seconds) {
  if (seconds < 1.5) return "now";
  return `${seconds < 90 ? `${Math.round(seconds)} s` : duration(seconds)} ago`;
}

/** 1 text, 2 texts */
export const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
