// The hosts page: a password is shown after a reason was given, and taken off the page again.

import { all, askSession, find, signedOut, url, words } from "./page.js";
import { offerReasons } from "./reasons.js";

const said = find("#host-words").dataset;

async function call(path, value) {
  const ask = () =>
    fetch(url(path), {
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
  return { status: response.status, answer: await response.json() };
}

// One dialog for all rows. `submit(name)` returns the problem to show, or nothing when it is done.
function dialog(id, attribute, submit, onClose = () => {}) {
  const box = document.getElementById(id);
  const form = find("[data-ask]", box);
  const problem = find("[data-problem]", box);
  let name = "";
  for (const button of all(`[data-${attribute}]`)) {
    button.hidden = false;
    button.addEventListener("click", () => {
      name = button.dataset[attribute];
      find("[data-name]", box).textContent = name;
      form.reset();
      form.hidden = false;
      problem.hidden = true;
      const menu = button.closest("details");
      if (menu) menu.open = false;
      box.showModal();
      find("input", form).focus();
    });
  }
  for (const button of all("[data-close]", box)) button.addEventListener("click", () => box.close());
  box.addEventListener("close", onClose);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.dataset.busy) return;
    form.dataset.busy = "1";
    all("button", form).forEach((button) => button.setAttribute("aria-disabled", "true"));
    let text;
    try {
      text = await submit(name, box);
    } catch (error) {
      text = error instanceof SyntaxError ? words.unexpected : words.noAnswer;
    }
    delete form.dataset.busy;
    all("button", form).forEach((button) => button.removeAttribute("aria-disabled"));
    problem.hidden = !text;
    problem.textContent = text ?? "";
  });
  return box;
}

const complaint = ({ status }) => said[`e${status}`] ?? words.unexpected;

// -- showing a password ----------------------------------------------------------------------------------------------
let password = "";
let timer = 0;

const reveal = dialog(
  "reveal",
  "reveal",
  async (name, box) => {
    const result = await call(box.dataset.path, { hostname: name, reason: find("#reveal-reason").value });
    if (result.status !== 200) return complaint(result);
    // whoever closed the dialog meanwhile does not want to see it
    if (!box.open) return "";
    password = result.answer.password;
    find("[data-password]", box).textContent = password;
    find("[data-rotates]", box).hidden = !result.answer.rotation_requested;
    find("[data-ask]", box).hidden = true;
    find("[data-shown]", box).hidden = false;
    find("[data-password]", box).focus();
    let left = Number(box.dataset.seconds);
    const tick = () => {
      find("[data-left]", box).textContent = words.seconds.replace("{}", left);
      if (left <= 0) return box.close();
      left -= 1;
      timer = setTimeout(tick, 1000);
    };
    tick();
    return "";
  },
  () => {
    const shown = password !== "";
    password = "";
    clearTimeout(timer);
    find("[data-password]", reveal).textContent = "";
    find("[data-shown]", reveal).hidden = true;
    // the row says now that the host was asked to rotate
    if (shown) location.reload();
  },
);

find("[data-copy]", reveal).addEventListener("click", async ({ currentTarget: button }) => {
  try {
    await navigator.clipboard.writeText(password);
    button.textContent = button.dataset.done;
  } catch {
    // without permission: it is selected for the keyboard
    getSelection().selectAllChildren(find("[data-password]", reveal));
  }
});
addEventListener("pagehide", () => {
  find("[data-password]", reveal).textContent = "";
  password = "";
});

// -- removing a host -------------------------------------------------------------------------------------------------
dialog("remove", "remove", async (name, box) => {
  if (find("#remove-name").value.trim().toLowerCase() !== name) return said.otherName;
  const result = await call(box.dataset.path, { hostname: name });
  if (result.status !== 200) return complaint(result);
  location.reload();
  return "";
});

offerReasons();
