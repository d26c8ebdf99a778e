// Setting up a host over SSH, and taking identree off it: a key that stays in this page until it is used, a host key
// that a person confirms, and what the host says as it comes.

import { all, askSession, find, signedOut, url, words } from "./page.js";

const said = find("#deploy-words").dataset;
const form = find("#deploy");
const start = find("[data-start]", form);
const problem = find("[data-problem]", form);
form.hidden = false;

async function call(path, value) {
  const ask = () =>
    fetch(path, {
      method: "POST",
      body: JSON.stringify(value),
      headers: {
        "Content-Type": "application/json",
        Accept: "application/json",
        "X-CSRF-Token": document.body.dataset.csrfToken,
        "X-CSRF-Ts": document.body.dataset.csrfTs,
      },
      redirect: "error",
    });
  let response = await ask();
  // the page was open for long: once more with a fresh token
  if (response.status === 403 && (await askSession(true))) response = await ask();
  if (response.status === 401) signedOut();
  return { status: response.status, answer: await response.json(), wait: Number(response.headers.get("Retry-After")) };
}

function tell(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

function complaint({ status, answer, wait }) {
  if (status === 429 && wait) return said.wait.replace("{}", words.seconds.replace("{}", wait));
  if (status === 503) return said.e503;
  return answer.error ?? words.unexpected;
}

// -- the private key ---------------------------------------------------------------------------------------------------
let privateKey = "";
const keyProblem = find("[data-key-problem]", form);
const keyCard = find("[data-key-card]", form);
const keyEmpty = find("[data-key-empty]", form);

function dropKey() {
  privateKey = "";
  keyCard.hidden = true;
  keyEmpty.hidden = false;
}

async function takeKey(text) {
  if (text.length > Number(form.dataset.keyBytes)) return tell(keyProblem, said.large);
  try {
    const result = await call(url("/api/deploy/pubkey"), { private_key: text });
    if (result.status !== 200) return tell(keyProblem, complaint(result));
    privateKey = text;
    find("[data-key-type]", keyCard).textContent = result.answer.type;
    find("[data-key-fingerprint]", keyCard).textContent = result.answer.fingerprint;
    keyCard.hidden = false;
    keyEmpty.hidden = true;
    tell(keyProblem, "");
  } catch {
    tell(keyProblem, words.noAnswer);
  }
}

find("[data-paste]", form).addEventListener("click", async () => {
  let text;
  try {
    text = await navigator.clipboard.readText();
  } catch {
    return tell(keyProblem, said.noClipboard);
  }
  await takeKey(text);
});
find("[data-file]", form).addEventListener("change", async ({ currentTarget: input }) => {
  const [file] = input.files;
  if (!file) return;
  if (file.size > Number(form.dataset.keyBytes)) tell(keyProblem, said.large);
  else await takeKey(await file.text());
  input.value = "";
});
find("[data-key-change]", form).addEventListener("click", () => {
  dropKey();
  find("[data-paste]", form).focus();
});
// nothing of it comes back with the page from the browser's cache
addEventListener("pagehide", dropKey);

// -- who has keys ------------------------------------------------------------------------------------------------------
const holders = find("[data-holders]", form);
if (holders) {
  fetch(url("/api/deploy/users"), { headers: { Accept: "application/json" } })
    .then((response) => (response.ok ? response.json() : []))
    .then((people) => {
      const select = find("select", holders);
      for (const person of people) {
        const option = new Option(person.email ? `${person.username} (${person.email})` : person.username, person.username);
        select.append(option);
      }
      holders.hidden = !people.length;
      select.addEventListener("change", () => {
        const list = find("[data-keys-of]", holders);
        list.replaceChildren();
        const person = people.find(({ username }) => username === select.value);
        for (const key of person?.ssh_keys ?? []) {
          const item = document.createElement("li");
          const [type, blob = "", ...comment] = key.split(" ");
          item.textContent = `${type} …${blob.slice(-16)} ${comment.join(" ")}`;
          list.append(item);
        }
      });
    })
    .catch(() => {});
}

// -- what is run -------------------------------------------------------------------------------------------------------
const preview = find("[data-preview]", form);
const pam = form.elements.unconfigure_pam;
const files = form.elements.remove_files;

async function showScript() {
  if (!preview.open) return;
  const box = find("[data-script]", preview);
  const query = pam ? `?pam=${pam.checked}&files=${files.checked}` : "";
  try {
    const response = await fetch(url(preview.dataset.preview + query));
    box.textContent = response.ok ? await response.text() : said.noScript;
  } catch {
    box.textContent = said.noScript;
  }
}
preview.addEventListener("toggle", showScript);
if (pam) {
  const fit = () => {
    // files that PAM still uses must stay
    if (!pam.checked) files.checked = false;
    files.disabled = !pam.checked;
    showScript();
  };
  pam.addEventListener("change", fit);
  files.addEventListener("change", showScript);
  fit();
}
const copy = find("[data-copy]", form);
copy?.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(find("[data-by-hand]", form).textContent);
    copy.textContent = copy.dataset.done;
  } catch {
    getSelection().selectAllChildren(find("[data-by-hand]", form));
  }
});

// -- host keys ---------------------------------------------------------------------------------------------------------
function asked(dialog) {
  return new Promise((answer) => {
    const settle = (yes) => {
      answer(yes);
      dialog.close();
    };
    find("[data-yes]", dialog).onclick = () => settle(true);
    find("[data-no]", dialog).onclick = () => settle(false);
    dialog.onclose = () => answer(false);
    dialog.showModal();
    find("[data-no]", dialog).focus();
  });
}

const kinds = { "ssh-ed25519": "ed25519", "ssh-rsa": "rsa" };
function confirmKey(name, key) {
  const dialog = find("#host-key");
  find("[data-name]", dialog).textContent = name;
  find("[data-shown-key]", dialog).textContent = key.fingerprint;
  find("[data-kind]", dialog).textContent = kinds[key.type] ?? "ecdsa";
  return asked(dialog);
}

async function offerToForget(place, text) {
  const dialog = find("#changed-key");
  find("[data-told]", dialog).textContent = text;
  if (!(await asked(dialog))) return;
  const result = await call(url("/api/deploy/forget-host-key"), place);
  tell(problem, result.status === 200 ? said.forgotten : complaint(result));
}

// -- starting ----------------------------------------------------------------------------------------------------------
function place() {
  return { hostname: form.elements.hostname.value.trim(), port: Number(form.elements.port.value) || 22 };
}

function wish() {
  const text = (name) => form.elements[name].value.trim();
  const value = { ...place(), ssh_user: text("ssh_user"), private_key: privateKey, host_key: text("host_key") };
  // the name in identree follows the address as long as nobody said otherwise
  if (text("known_as")) value.known_as = text("known_as");
  if (pam) Object.assign(value, { unconfigure_pam: pam.checked, remove_files: files.checked });
  else value.pocketid_user = find("#holder", form)?.value ?? "";
  return value;
}

async function begin() {
  let result = await call(url(form.dataset.path), wish());
  if (result.answer.key === "host_key_unknown") {
    if (!(await confirmKey(place().hostname, result.answer.host_key))) return "";
    result = await call(url(form.dataset.path), { ...wish(), host_key: result.answer.host_key.fingerprint });
  }
  if (result.answer.key === "host_key_changed") {
    await offerToForget(place(), result.answer.error);
    return problem.textContent;
  }
  if (result.status !== 200) return complaint(result);
  dropKey();
  follow(result.answer.id);
  return "";
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (form.dataset.busy) return;
  if (!privateKey) return tell(keyProblem, said.noKey);
  form.dataset.busy = "1";
  start.setAttribute("aria-disabled", "true");
  tell(problem, "");
  try {
    tell(problem, await begin());
  } catch (error) {
    tell(problem, error instanceof SyntaxError ? words.unexpected : words.noAnswer);
  }
  delete form.dataset.busy;
  start.removeAttribute("aria-disabled");
});

// -- what the host says ------------------------------------------------------------------------------------------------
const job = find("#job");
const log = find("[data-log]", job);
const state = find("[data-job-state]", job);
const stop = find("[data-cancel]", job);
// after the first one, with doubled pauses
const ATTEMPTS = 5;

function show(text, kind) {
  state.textContent = text;
  state.className = `job-state ${kind}`;
}

function append(text) {
  const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const line = document.createElement("span");
  line.textContent = `${text}\n`;
  if (text.startsWith("ERROR: ")) line.className = "bad";
  log.append(line);
  if (low) log.scrollTop = log.scrollHeight;
}

function over(kind) {
  show(kind === "done" ? said.done : said.failed, kind);
  if (kind === "done") log.lastElementChild?.classList.add("good");
  stop.hidden = true;
  find("[data-again]", job).hidden = kind === "done";
  find("[data-leave]", job).hidden = kind !== "done";
  find(kind === "done" ? "[data-leave]" : "[data-again]", job).focus();
}

function follow(id) {
  form.hidden = true;
  job.hidden = false;
  log.replaceChildren();
  find("[data-job-host]", job).textContent = place().hostname;
  stop.hidden = false;
  for (const button of all("[data-again], [data-leave]", job)) button.hidden = true;
  show(said.running, "");
  log.focus();
  stop.onclick = () => call(url("/api/deploy/cancel"), { id }).catch(() => show(words.noAnswer, "failed"));
  listen(id, 0, 0);
}

// A browser that connects again by itself says what it has; here too, so that no line comes twice.
function listen(id, seen, failed) {
  const source = new EventSource(url(`/api/deploy/stream/${id}`));
  let skip = seen;
  source.onmessage = (event) => {
    const number = Number(event.lastEventId);
    if (number <= skip) return;
    skip = number;
    failed = 0;
    show(said.running, "");
    append(event.data);
  };
  source.addEventListener("status", (event) => {
    source.close();
    over(event.data);
  });
  source.onerror = () => {
    source.close();
    if (failed >= ATTEMPTS) {
      append(said.gone);
      return over("failed");
    }
    show(said.lost, "");
    setTimeout(() => listen(id, skip, failed + 1), 1000 * 2 ** failed);
  };
}

find("[data-again]", job).addEventListener("click", () => {
  job.hidden = true;
  form.hidden = false;
  find("[data-paste]", form).focus();
});
