// This browser as a device that is told: subscribing, removing, testing.

import { all, find, url } from "./page.js";

const SLASH = "\u002f";
const section = find("[data-push]");
const state = find("[data-push-state]");
const on = find("[data-push-on]");
const off = find("[data-push-off]");

function say(word, why = "") {
  state.textContent = state.dataset[word].replace("{}", why);
}

async function call(path, value) {
  const response = await fetch(path, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      "X-CSRF-Token": document.body.dataset.csrfToken,
      "X-CSRF-Ts": document.body.dataset.csrfTs,
    },
    body: JSON.stringify(value),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? response.status);
  return answer;
}

function keyBytes(text) {
  const raw = atob(text.replaceAll("-", "+").replaceAll("_", SLASH));
  return Uint8Array.from(raw, (character) => character.charCodeAt(0));
}

function label() {
  const agent = navigator.userAgent;
  const browser = ["Edg", "OPR", "Firefox", "Chrome", "Safari"].find((name) => agent.includes(name)) ?? "Browser";
  const system = ["iPhone", "iPad", "Android", "Windows", "Mac OS", "Linux"].find((name) => agent.includes(name)) ?? "";
  return [{ Edg: "Edge", OPR: "Opera" }[browser] ?? browser, system].filter(Boolean).join(", ");
}

async function idOf(subscription) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(subscription.endpoint));
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function show(registration) {
  const subscription = await registration.pushManager.getSubscription();
  const known = subscription && find(`[data-device="${await idOf(subscription)}"]`);
  on.hidden = Boolean(known);
  off.hidden = !known;
  say(known ? "on" : "off");
}

async function start() {
  for (const button of all("[data-device-test], [data-device-remove]")) button.hidden = false;
  if (!("serviceWorker" in navigator) || !("PushManager" in window)) return say("unsupported");
  if (Notification.permission === "denied") return say("denied");
  const registration = await navigator.serviceWorker.register(url("/sw.js"), { scope: url("/") });
  find("[data-push-actions]").hidden = false;
  await show(registration);
  on.addEventListener("click", async () => {
    try {
      if ((await Notification.requestPermission()) !== "granted") return say("denied");
      await navigator.serviceWorker.ready;
      const subscription = await registration.pushManager.subscribe({
        userVisibleOnly: true,
        applicationServerKey: keyBytes(section.dataset.push),
      });
      await call(url("/api/push/devices"), { ...subscription.toJSON(), label: label() });
      location.reload();
    } catch (error) {
      say("failed", error.message);
    }
  });
  off.addEventListener("click", async () => {
    try {
      const subscription = await registration.pushManager.getSubscription();
      if (subscription) {
        await call(url("/api/push/devices/remove"), { id: await idOf(subscription) });
        await subscription.unsubscribe();
      }
      location.reload();
    } catch (error) {
      say("failed", error.message);
    }
  });
}

document.addEventListener("click", async (event) => {
  const device = event.target.closest("[data-device]");
  if (!device) return;
  try {
    if (event.target.closest("[data-device-test]")) {
      await call(url("/api/push/devices/test"), { id: device.dataset.device });
      say("sent");
    }
    if (event.target.closest("[data-device-remove]")) {
      await call(url("/api/push/devices/remove"), { id: device.dataset.device });
      location.reload();
    }
  } catch (error) {
    say("failed", error.message);
  }
});

start().catch((error) => say("failed", error.message));
