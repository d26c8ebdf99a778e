// The service worker: shows what was pushed, and opens our pages, no others.

const SLASH = "\u002f";
const scope = new URL(self.registration.scope);

function ours(path) {
  const target = new URL(typeof path === "string" && path.startsWith(SLASH) ? path : SLASH, scope.origin);
  if (target.origin !== scope.origin || !target.pathname.startsWith(scope.pathname)) return scope.href;
  return target.href;
}

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("push", (event) => {
  let said = {};
  try {
    said = event.data?.json() ?? {};
  } catch {
    said = {};
  }
  const asks = said.tone === "ask" && !said.outcome;
  const actions = asks && said.onetap ? [{ action: "approve", title: "Approve" }, { action: "open", title: "Open" }] : [];
  event.waitUntil(
    self.registration.showNotification(String(said.title ?? "identree"), {
      body: String(said.body ?? ""),
      tag: String(said.tag ?? ""),
      renotify: Boolean(said.tag) && asks,
      requireInteraction: asks,
      data: { url: said.url, onetap: said.onetap },
      actions,
    }),
  );
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  const { url, onetap } = event.notification.data ?? {};
  const target = ours(event.action === "approve" && onetap ? onetap : url);
  event.waitUntil(
    (async () => {
      const windows = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
      const open = windows.find((one) => one.url === target);
      if (open) return open.focus();
      return self.clients.openWindow(target);
    })(),
  );
});
