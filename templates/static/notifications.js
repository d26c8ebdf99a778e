// The notifications page: the log as messages are dealt with. All forms work without this script.

import { find, showTimes, signedOut, url } from "./page.js";
import { follow } from "./live.js";

let running = false;
let again = false;

async function load() {
  let response;
  let text;
  try {
    response = await fetch(url(`/fragments/deliveries${location.search}`));
    text = await response.text();
  } catch {
    return; // the stream of events notices too, and says "resync" afterwards
  }
  if ([401, 403].includes(response.status)) return signedOut();
  if (!response.ok) return;
  const log = find("[data-log]", new DOMParser().parseFromString(text, "text/html"));
  const shown = find("[data-log]");
  if (!log || shown.contains(document.activeElement)) return;
  shown.replaceWith(document.adoptNode(log));
  showTimes(log);
}

async function refresh() {
  again = running;
  if (running) return;
  running = true;
  try {
    await load();
  } finally {
    running = false;
  }
  if (again) refresh();
}

follow((name) => {
  if (name === "deliveries_changed" || name === "resync") refresh();
});
