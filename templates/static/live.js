// The stream of events, kept open: the browser reconnects by itself after short breaks and names the last event it
// saw; when it gives up we go on, with growing pauses. Whoever listens reads the truth anew after every gap.

import { askSession, find, url, words } from "./page.js";

const NAMES = ["challenge_created", "challenge_updated", "challenge_resolved", "session_changed", "host_changed", "policies_changed", "deliveries_changed", "resync"];
const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 30000;

function show(state) {
  const indicator = find("[data-connection]");
  if (!indicator) return;
  indicator.hidden = false;
  indicator.dataset.connection = state;
  const word = find("[data-word]", indicator);
  if (word.textContent !== words[state]) word.textContent = words[state];
}

function challengeOf(event) {
  try {
    return JSON.parse(event.data).challenge ?? "";
  } catch {
    return "";
  }
}

// `onEvent(name, challengeId)`; the name `resync` means: anything may have changed.
export function follow(onEvent) {
  let source = null;
  let timer = 0;
  let pause = FIRST_PAUSE;
  let gap = false;
  let failures = 0;

  function open() {
    clearTimeout(timer);
    source?.close();
    source = new EventSource(url("/api/events"));
    source.onopen = () => {
      show("live");
      pause = FIRST_PAUSE;
      failures = 0;
      if (gap) onEvent("resync", "");
      gap = false;
    };
    source.onerror = () => {
      gap = true;
      failures += 1;
      // once the browser may try by itself; it would go on for ever without growing pauses
      if (source.readyState !== EventSource.CLOSED && failures < 2) return show("connecting");
      source.close();
      show("offline");
      clearTimeout(timer);
      timer = setTimeout(retry, pause * (0.75 + Math.random() / 2));
      pause = Math.min(pause * 2, LONGEST_PAUSE);
    };
    for (const name of NAMES) source.addEventListener(name, (event) => onEvent(name, challengeOf(event)));
    source.addEventListener("ended", async () => {
      source.close();
      gap = true;
      show("offline");
      // signed out, or only the stream ended with the server's restart
      if (await askSession(false)) timer = setTimeout(retry, pause);
    });
  }

  async function retry() {
    if (await askSession(false)) open();
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && source?.readyState === EventSource.CLOSED && find("#signed-out").hidden) retry();
  });
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    gap = true;
    open();
  });
  show("connecting");
  open();
}
