// The approval page: one request, followed until it is over.

import { all, find, onTimeRanOut, showCount, showTimes, signedOut, url } from "./page.js";
import { handleForms } from "./forms.js";
import { offerReasons } from "./reasons.js";
import { follow } from "./live.js";

const place = document.getElementById("request");
const id = find("[data-request]", place).dataset.request;

// Shows what became of it; what somebody is typing stays while it is pending.
async function refresh() {
  let response;
  try {
    response = await fetch(url(`/fragments/challenge/${id}`));
  } catch {
    return;
  }
  if (response.status === 401) return signedOut();
  if (!response.ok) return;
  const piece = new DOMParser().parseFromString(await response.text(), "text/html");
  const card = find("[data-request]", place);
  const state = find("[data-state]", piece);
  if (state) {
    if (find("[data-state]", card)) return;
    showCount(Number(state.dataset.pending), false);
    card.classList.add("over");
    find("[data-answer]", card).replaceChildren(document.adoptNode(state));
    document.title = document.title.replace(/^[^-]*/, `${find(".title", state).textContent} `);
  } else {
    const next = find("[data-request]", piece);
    if (!next || next.dataset.version === card.dataset.version) return;
    const hadFocus = card.contains(document.activeElement);
    card.replaceWith(document.adoptNode(next));
    showTimes(next);
    offerReasons(next);
    if (hadFocus) (find("button:not([aria-disabled])", next) ?? next).focus();
  }
}

// What was typed survives the sign-in that a policy asks for.
const kept = `identree-reason-${id}`;
document.addEventListener("click", (event) => {
  if (!event.target.closest("[data-step-up]")) return;
  const typed = all("input[name=reason]", place).find((input) => input.value)?.value;
  if (typed) sessionStorage.setItem(kept, typed);
});
const before = sessionStorage.getItem(kept);
if (before) {
  sessionStorage.removeItem(kept);
  const input = find("form[data-post=approve] input[name=reason]", place);
  if (input) {
    input.value = before;
    input.closest("details")?.setAttribute("open", "");
  }
}

handleForms(refresh);
onTimeRanOut(refresh);
follow((name, challenge) => {
  if (name === "resync" || challenge === id) refresh();
});
