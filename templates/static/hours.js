// The hours of a policy as a span of minutes on a clock that goes round: nothing here touches the page.

const HOUR = 60;
const DAY = 24 * HOUR;

// What a text like 09:00-17:00 means, in minutes: when it opens and for how long; null: not understood.
export function spanOf(text) {
  if (!text.trim()) return { start: 0, length: DAY };
  const match = /^\s*(\d{1,2}):(\d{1,2})\s*-\s*(\d{1,2}):(\d{1,2})\s*$/.exec(text);
  if (!match) return null;
  const [hour, minute, lastHour, lastMinute] = match.slice(1).map(Number);
  if (hour > 23 || lastHour > 23 || minute > 59 || lastMinute > 59) return null;
  const start = hour * HOUR + minute;
  return { start, length: (lastHour * HOUR + lastMinute - start + DAY) % DAY };
}

export function spanText({ start, length }) {
  if (length === DAY) return "";
  const clock = (minutes) => [Math.floor(minutes / HOUR) % 24, minutes % HOUR].map((part) => String(part).padStart(2, "0")).join(":");
  return `${clock(start)}-${clock(start + length)}`;
}

// The hours that are open, be it in part.
export function hoursOf({ start, length }) {
  const hours = new Set();
  for (let hour = Math.floor(start / HOUR); length && hour * HOUR < start + length; hour += 1) hours.add(hour % 24);
  return hours;
}

// A closed hour more, at the nearer end, which may be round midnight; the other end stays as it was written.
export function withHour({ start, length }, hour) {
  if (!length) return { start: hour * HOUR, length: HOUR };
  const later = ((hour + 1) * HOUR - start - length + 2 * DAY) % DAY;
  const earlier = (start - hour * HOUR + DAY) % DAY;
  return later <= earlier ? { start, length: length + later } : { start: hour * HOUR, length: length + earlier };
}

// An open hour less. Only one span can be written: the longer of what is left before and after the hour. Nothing left
// is no change, for a field without hours means any time.
export function withoutHour(span, hour) {
  const closed = hour * HOUR;
  // counted from the hour that closes, which comes again a day later
  const start = span.length === DAY ? 0 : (span.start - closed + DAY) % DAY;
  const [before, after] = [HOUR, DAY + HOUR].map((free) => {
    const first = Math.max(start, free);
    return { start: (closed + first) % DAY, length: Math.min(start + span.length, free + DAY - HOUR) - first };
  });
  const longer = after.length > before.length ? after : before;
  return longer.length > 0 ? longer : span;
}
