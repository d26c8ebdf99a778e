// What every page does: words, clocks, menus, keys, and the end of the browser session.

const body = document.body;
export const words = document.getElementById("words").dataset;

// Differences between this clock and the server's are not the reader's problem.
let offset = Number(body.dataset.now) * 1000 - Date.now();
export const now = () => Date.now() + offset;

export const find = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Paths of the server as the browser knows them: behind a reverse proxy they may have a prefix.
const base = document.documentElement.dataset.base;
export const url = (path) => base + path;

// -- times -----------------------------------------------------------------------------------------------------------
const shown = document.documentElement.lang;
// the reader's own variant of the page's language knows whether it is 3 pm or 15:00
const language = navigator.languages.find((name) => name.split("-")[0] === shown) ?? shown;
const exact = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "long" });
const universal = new Intl.DateTimeFormat(language, { timeStyle: "medium", timeZone: "UTC" });
const hours = new Intl.DateTimeFormat(language, { hour: "numeric", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat(language, { weekday: "short", hour: "numeric", minute: "2-digit" });
const fill = (text, number) => text.replace("{}", number);

function ago(at) {
  const seconds = Math.max(0, Math.floor((now() - at) / 1000));
  if (seconds < 60) return words.justNow;
  if (seconds < 3600) return fill(words.minutesAgo, Math.floor(seconds / 60));
  if (seconds < 86400) return fill(words.hoursAgo, Math.floor(seconds / 3600));
  const days = Math.floor(seconds / 86400);
  return days === 1 ? words.dayAgo : fill(words.daysAgo, days);
}

function clock(at) {
  const sameDay = new Date(at).toDateString() === new Date(now()).toDateString();
  return (sameDay ? hours : weekday).format(at);
}

// `1:32`, as the server writes it
export function countdown(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(left / 60);
  return minutes < 60 ? `${minutes}:${two(left % 60)}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(left % 60)}`;
}

function lasting(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  if (left < 60) return fill(words.seconds, left);
  const minutes = Math.floor(left / 60);
  const parts = [
    [Math.floor(minutes / 1440), words.days],
    [Math.floor(minutes / 60) % 24, words.hours],
    [minutes % 60, words.minutes],
  ];
  return parts.filter(([count]) => count).slice(0, 2).map(([count, unit]) => fill(unit, count)).join(" ");
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showTime(element) {
  const at = Date.parse(element.dateTime);
  if (Number.isNaN(at)) return;
  say(element, element.dataset.format === "clock" ? clock(at) : ago(at));
}

export function showTimes(root = document) {
  for (const element of all("time[data-format]", root)) {
    const at = Date.parse(element.dateTime);
    if (Number.isNaN(at)) continue;
    const local = exact.format(at);
    element.title = new Date(at).getTimezoneOffset() === 0 ? local : `${local} (${universal.format(at)} UTC)`;
    showTime(element);
  }
}

const overtime = new EventTarget();
// Called once per request whose time ran out here.
export const onTimeRanOut = (listener) => overtime.addEventListener("over", (event) => listener(event.detail));

function tick() {
  for (const bar of all("[data-countdown]")) {
    const left = Number(bar.dataset.ends) - now() / 1000;
    say(find("[data-left]", bar), countdown(left));
    find("progress", bar).value = Math.max(0, left);
    bar.classList.toggle("urgent", left <= 30);
    if (left <= 0 && !bar.dataset.over) {
      bar.dataset.over = "1";
      overtime.dispatchEvent(new CustomEvent("over", { detail: bar.closest("[data-request]") }));
    }
  }
  for (const element of all("[data-left-long]")) say(element, lasting(Number(element.dataset.ends) - now() / 1000));
  for (const element of all("time[data-format=ago]")) showTime(element);
  watchSession();
}

// The server writes times in this zone on the next page; this page is rewritten here.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `pam_tz=${zone}; Path=/; Max-Age=86400; SameSite=Lax${secure}`;
}

// -- the browser session -----------------------------------------------------------------------------------------------
const warning = document.getElementById("session-warning");
const ended = document.getElementById("signed-out");
let ends = Number(body.dataset.ends);
let asking = false;
let asked = 0;

export function signedOut() {
  warning.hidden = true;
  ended.hidden = false;
}

export function keepToken(data) {
  body.dataset.csrfToken = data.csrf_token;
  body.dataset.csrfTs = data.csrf_ts;
}

// Also used to get a fresh form token. Returns whether somebody is still signed in as the same person.
export async function askSession(renew) {
  let response;
  try {
    response = await fetch(url(renew ? "/fragments/session?renew=1" : "/fragments/session"), { headers: { Accept: "application/json" } });
  } catch {
    return true; // no connection: that is another trouble, and it says so itself
  }
  if (response.status === 401) {
    signedOut();
    return false;
  }
  if (!response.ok) return true;
  const data = await response.json();
  if (data.username !== body.dataset.username) {
    location.reload();
    return false;
  }
  keepToken(data);
  ends = data.ends;
  offset = data.now * 1000 - Date.now();
  ended.hidden = true;
  return true;
}

async function watchSession() {
  const left = ends - now() / 1000;
  if (!ended.hidden || left > Number(body.dataset.warning)) {
    warning.hidden = true;
    return;
  }
  say(find("[data-session-left]", warning), countdown(left));
  // another tab may have prolonged it; and only the server knows when it is over
  const since = now() - asked;
  if (!asking && (since > 30000 || (left <= 0 && since > 5000))) {
    asking = true;
    asked = now();
    await askSession(false);
    asking = false;
  }
  warning.hidden = !ended.hidden || ends - now() / 1000 > Number(body.dataset.warning);
  if (warning.hidden) asked = 0;
}

find("[data-renew]", warning).addEventListener("click", async ({ currentTarget: button }) => {
  const before = ends;
  await askSession(true);
  if (ends > before) return watchSession();
  button.hidden = true; // the session is at its absolute end, which nothing moves
});

// -- menus ---------------------------------------------------------------------------------------------------------------
document.addEventListener("click", (event) => {
  for (const menu of all("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = event.target.closest?.("details.menu[open]");
  if (!menu) return;
  const items = all("a, button", menu);
  const at = items.indexOf(document.activeElement);
  if (event.key === "Escape") {
    menu.open = false;
    find("summary", menu).focus();
  } else if (event.key === "ArrowDown" && items.length) {
    items[(at + 1) % items.length].focus();
  } else if (event.key === "ArrowUp" && items.length) {
    items[(at <= 0 ? items.length : at) - 1].focus();
  } else return;
  event.preventDefault();
});

// -- what waits -----------------------------------------------------------------------------------------------------------
const title = document.title;
export function showCount(count, inTitle) {
  if (inTitle) document.title = count ? `(${count}) ${title}` : title;
  const badge = find("[data-pending-count]");
  badge.hidden = count === 0;
  find("[data-number]", badge).textContent = count;
}

// -- keys ----------------------------------------------------------------------------------------------------------------
const shortcuts = document.getElementById("shortcuts");
const opener = find("[data-open-shortcuts]");
if (opener) {
  opener.hidden = false;
  opener.addEventListener("click", () => {
    opener.closest("details").open = false;
    shortcuts.showModal();
  });
}
let prefix = 0;
// `a` and `r` act on the request that has the focus. Without one they only move the focus, where it is clear which.
function decide(test) {
  const focused = document.activeElement.closest("[data-request]");
  if (focused) return find(`[data-test=${test}]:not([aria-disabled])`, focused)?.click();
  const requests = all("[data-request]:not(.over)");
  if (requests.length === 1) requests[0].focus();
}
function go(step) {
  const requests = all("[data-request]:not(.over)");
  if (!requests.length) return;
  const at = requests.indexOf(document.activeElement.closest("[data-request]"));
  const next = requests[at < 0 ? (step > 0 ? 0 : requests.length - 1) : Math.min(Math.max(at + step, 0), requests.length - 1)];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.closest?.("input, textarea, select, dialog")) return;
  const afterG = now() - prefix < 1500;
  prefix = 0;
  const search = find("[data-search]");
  const place = afterG && all(".rail [data-go]").find((link) => link.dataset.go === event.key);
  if (event.key === "g") prefix = now();
  else if (afterG && event.key === "r") location.assign(url("/"));
  else if (place) place.click();
  else if (search && event.key === search.dataset.search) search.focus();
  else if (event.key === "?") shortcuts.showModal();
  else if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === "a") decide("approve");
  else if (event.key === "r") decide("reject");
  else return;
  event.preventDefault();
});

showTimes();
tick();
setInterval(tick, 1000);
document.addEventListener("visibilitychange", () => document.hidden || tick());
