// The dashboard: patched with what the server shows now, piece by piece, so that nothing typed or opened is lost.

import { all, find, keepToken, now, onTimeRanOut, showCount, showTimes, signedOut, url, words } from "./page.js";
import { announce, errorBanner, handleForms } from "./forms.js";
import { offerReasons } from "./reasons.js";
import { follow } from "./live.js";

function busy(element) {
  return element.contains(document.activeElement) && document.activeElement.matches("input, summary, button, [name=duration]")
    ? true
    : Boolean(find("details[open]", element)) || all("input:not([type=hidden])", element).some((input) => input.value);
}

// Children with the same key and version stay the very same elements.
function patchList(before, after, arriving) {
  const present = new Map([...before.children].map((child) => [child.dataset.key, child]));
  let previous = null;
  for (const next of [...after.children]) {
    let child = present.get(next.dataset.key);
    present.delete(next.dataset.key);
    if (!child) {
      child = document.adoptNode(next);
      arriving?.(child);
      showTimes(child);
      offerReasons(child);
    } else if (child.dataset.version !== next.dataset.version && !busy(child)) {
      const fresh = document.adoptNode(next);
      child.replaceWith(fresh);
      child = fresh;
      showTimes(child);
      offerReasons(child);
    }
    const wanted = previous ? previous.nextElementSibling : before.firstElementChild;
    if (wanted !== child) before.insertBefore(child, wanted);
    previous = child;
  }
  for (const gone of present.values()) {
    const hadFocus = gone.contains(document.activeElement);
    const neighbour = gone.nextElementSibling ?? gone.previousElementSibling;
    gone.remove();
    if (hadFocus) (neighbour?.matches("[data-request]") ? neighbour : find("#main")).focus({ preventScroll: true });
  }
}

function arrived(card) {
  card.classList.add("arriving");
  const names = all(".question .name", card).map((name) => name.textContent);
  hear(words.arrived.replace("{user}", names[0] ?? "").replace("{host}", names[1] ?? ""));
}

// For those who do not see the card slide in.
const spoken = document.createElement("p");
spoken.className = "hear";
spoken.setAttribute("role", "status");
document.body.append(spoken);
function hear(text) {
  spoken.textContent = text;
}

let running = null;
let again = false;
const unsaid = [];
// One request at a time; what happens meanwhile causes one more. `flash` is what the server answered to a decision.
function refresh(flash = "") {
  if (flash) unsaid.push(flash);
  if (running) {
    again = true;
    return running;
  }
  running = load().finally(() => {
    running = null;
    if (again) {
      again = false;
      refresh();
    }
  });
  return running;
}

async function load() {
  const flash = unsaid.splice(0).join(",");
  let response;
  try {
    response = await fetch(url(flash ? `/fragments/dashboard?flash=${encodeURIComponent(flash)}` : "/fragments/dashboard"));
  } catch {
    return;
  }
  if (response.status === 401) return signedOut();
  if (!response.ok) return;
  const piece = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = find("#live", piece);
  if (!fresh) return;
  for (const notice of all("#notices > *", piece)) announce(document.adoptNode(notice));
  const live = find("#live");
  keepToken({ csrf_token: fresh.dataset.csrfToken, csrf_ts: fresh.dataset.csrfTs });
  showCount(Number(fresh.dataset.pending), true);
  for (const list of all("[data-list]", live)) {
    const next = find(`[data-list="${list.dataset.list}"]`, fresh);
    if (next) patchList(list, next, list.dataset.list === "requests" ? arrived : null);
  }
  for (const part of all("[data-replace]", live)) {
    const next = find(`[data-replace="${part.dataset.replace}"]`, fresh);
    if (!next) continue;
    // the form tokens differ each time; the words tell whether anything changed
    if (next.textContent === part.textContent && next.childElementCount === part.childElementCount) continue;
    part.replaceChildren(...next.childNodes);
  }
}

handleForms(async (form, answer) => {
  form.closest("details.menu")?.removeAttribute("open");
  // the card of a request that was over before leaves; what the server said about it stays
  if (form.closest("[data-request]") && answer.error) announce(errorBanner(answer.message ?? words.unexpected));
  await refresh(answer.flash);
});
onTimeRanOut(() => refresh());
follow((name) => name === "deliveries_changed" || refresh());
showCount(all("[data-request]").length, true);

// Sessions end without an event; the list is read again when the first one has.
setInterval(() => {
  if (all("[data-session] [data-left-long]").some((left) => Number(left.dataset.ends) * 1000 < now())) refresh();
}, 15000);
