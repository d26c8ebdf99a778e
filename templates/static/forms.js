// Decisions without leaving the page: the server's answer is shown in place, and success is never assumed.

import { all, askSession, find, signedOut, url, words } from "./page.js";
import { offerReasons } from "./reasons.js";

function icon(name) {
  const sprite = find("svg use").getAttribute("href").split("#")[0];
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `${sprite}#${name}`);
  svg.append(use);
  return svg;
}

export function errorBanner(text) {
  const banner = document.createElement("div");
  banner.className = "banner bad";
  const line = document.createElement("p");
  line.textContent = text;
  banner.append(icon("warning"), line);
  return banner;
}

// A line among the page's banners. Errors stay, the rest leaves by itself once it could be read.
export function announce(banner) {
  const banners = find("[data-banners]");
  while (banners.childElementCount > 2) banners.firstElementChild.remove();
  banners.append(banner);
  if (!banner.matches(".bad")) setTimeout(() => banner.remove(), 8000);
}

function showError(form, text, link) {
  const answer = form.closest("[data-request]") && find("[data-answer]", form.closest("[data-request]"));
  if (!answer) return announce(errorBanner(text));
  const box = document.createElement("div");
  box.className = "error";
  box.dataset.error = "";
  const line = document.createElement("p");
  line.textContent = text;
  if (link) line.append(" ", link);
  box.append(icon("warning"), line);
  answer.replaceChildren(box);
}

// The server says where: only it knows how recent the sign-in must be, and which page the form is on.
function signInLink(path) {
  const link = document.createElement("a");
  link.href = url(path);
  link.dataset.stepUp = "";
  link.textContent = words.signInAgain;
  return link;
}

async function post(form, fields) {
  fields.set("csrf_token", document.body.dataset.csrfToken);
  fields.set("csrf_ts", document.body.dataset.csrfTs);
  const response = await fetch(form.getAttribute("action"), {
    method: "POST",
    body: fields,
    headers: { Accept: "application/json" },
    redirect: "error",
  });
  const answer = await response.json();
  return { status: response.status, answer };
}

async function send(form, submitter, onDone) {
  if (form.dataset.busy) return;
  const fields = new URLSearchParams(new FormData(form, submitter));
  const buttons = form.id ? all(`button[form="${form.id}"]`) : all("button", form);
  form.dataset.busy = "1";
  buttons.forEach((button) => button.setAttribute("aria-disabled", "true"));
  try {
    let { status, answer } = await post(form, fields);
    if (["form_expired_message", "invalid_csrf"].includes(answer.error) && (await askSession(true))) {
      ({ status, answer } = await post(form, fields)); // the page was open for long: once more with a fresh token
    }
    if (answer.ok) return await onDone(form, answer);
    if (answer.error === "session_expired_sign_in") signedOut();
    showError(form, answer.message || words.unexpected, answer.error === "oidc_reauth_required" && answer.retry ? signInLink(answer.retry) : null);
    if (answer.error === "challenge_expired_or_resolved") await onDone(form, answer);
  } catch (error) {
    showError(form, error instanceof SyntaxError ? words.unexpected : words.noAnswer);
  } finally {
    delete form.dataset.busy;
    buttons.forEach((button) => button.removeAttribute("aria-disabled"));
  }
}

// `onDone(form, answer)` runs when the server has decided, also when it says that somebody else was first.
export function handleForms(onDone) {
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-post]");
    if (!form) return;
    event.preventDefault();
    send(form, event.submitter, onDone);
  });
  offerReasons();
}
