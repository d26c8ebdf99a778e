// The policies page: the week as a grid, and a word when somebody else has saved. All forms work without this script.

import { all, find } from "./page.js";
import { follow } from "./live.js";

const DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SHOWN = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

// The hours that a text like 09:00-17:00 means, rounded to whole ones; null: not understood.
function hoursOf(text) {
  if (!text.trim()) return new Set(Array.from({ length: 24 }, (_, hour) => hour));
  const match = /^\s*(\d{1,2}):(\d{1,2})\s*-\s*(\d{1,2}):(\d{1,2})\s*$/.exec(text);
  if (!match) return null;
  const [from, , to, minute] = match.slice(1).map(Number);
  if (from > 23 || to > 23) return null;
  const hours = new Set();
  const end = minute > 0 ? to + 1 : to;
  for (let hour = from; hour !== end % 24 || !hours.size; hour = (hour + 1) % 24) {
    if (hours.has(hour) || (from === to && !minute)) break;
    hours.add(hour);
  }
  return hours;
}

function daysOf(text) {
  if (!text.trim()) return new Set(DAYS.keys());
  const days = new Set();
  for (const part of text.toLowerCase().split(",")) {
    const [first, last] = part.split("-").map((name) => DAYS.indexOf(name.trim()));
    if (first < 0 || last === -1) return null;
    let day = first;
    days.add(day);
    while (last !== undefined && day !== last) {
      day = (day + 1) % 7;
      days.add(day);
    }
  }
  return days;
}

// Runs of hours as text; several runs cannot be written, so a press makes one run of them.
function hoursText(hours) {
  if (hours.size === 24 || !hours.size) return "";
  const start = [...hours].find((hour) => !hours.has((hour + 23) % 24));
  let end = start;
  while (hours.has(end % 24)) end += 1;
  return `${String(start).padStart(2, "0")}:00-${String(end % 24).padStart(2, "0")}:00`;
}

function daysText(days) {
  return days.size === 7 ? "" : [...days].sort().map((day) => SHOWN[day]).join(",");
}

const week = find("[data-week]");
if (week) {
  const hoursInput = find("[name=allowed_hours]");
  const daysInput = find("[name=allowed_days]");
  const names = week.dataset.days.split(",");
  const draw = () => {
    const hours = hoursOf(hoursInput.value);
    const days = daysOf(daysInput.value);
    week.replaceChildren();
    if (!hours || !days) {
      const line = document.createElement("p");
      line.className = "hint";
      line.textContent = week.dataset.bad;
      week.append(line);
      return;
    }
    const table = document.createElement("table");
    table.createCaption().textContent = week.dataset.caption;
    const head = table.createTHead().insertRow();
    head.append(document.createElement("td"));
    for (let hour = 0; hour < 24; hour += 1) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = hour;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const day of [1, 2, 3, 4, 5, 6, 0]) {
      const row = body.insertRow();
      const label = document.createElement("th");
      label.scope = "row";
      label.textContent = names[day];
      row.append(label);
      for (let hour = 0; hour < 24; hour += 1) {
        const button = document.createElement("button");
        const open = days.has(day) && hours.has(hour);
        button.type = "button";
        button.tabIndex = day === 1 && hour === 0 ? 0 : -1;
        button.dataset.at = `${day}-${hour}`;
        button.setAttribute("aria-pressed", String(open));
        button.setAttribute("aria-label", `${names[day]} ${hour}:00 ${open ? week.dataset.open : week.dataset.closed}`);
        button.addEventListener("click", () => press(day, hour, open));
        row.insertCell().append(button);
      }
    }
    week.append(table);
  };
  // Hours are the same on all days: pressing an open hour closes it, pressing a closed one opens its day and hour.
  const press = (day, hour, open) => {
    const hours = hoursOf(hoursInput.value);
    const days = daysOf(daysInput.value);
    if (open) {
      hours.delete(hour);
    } else if (hours.has(hour)) {
      days.add(day);
    } else {
      const reach = [...hours, hour].sort((a, b) => a - b);
      hours.clear();
      for (let one = reach[0]; one <= reach.at(-1); one += 1) hours.add(one);
      days.add(day);
    }
    hoursInput.value = hoursText(hours);
    daysInput.value = daysText(days);
    draw();
    find(`[data-at="${day}-${hour}"]`, week)?.focus();
  };
  week.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -24, ArrowDown: 24 }[event.key];
    if (!step || !event.target.matches("button")) return;
    event.preventDefault();
    const buttons = all("button", week);
    const next = buttons[buttons.indexOf(event.target) + step];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  hoursInput.addEventListener("input", draw);
  daysInput.addEventListener("input", draw);
  week.hidden = false;
  draw();
}

// What is typed stays: the page is only loaded anew where nothing is.
follow((name) => {
  if (name !== "policies_changed" && name !== "resync") return;
  const typed = all("input:not([type=hidden]), textarea, select").some((input) => input.type === "checkbox" ? input.checked !== input.defaultChecked : "defaultValue" in input && input.value !== input.defaultValue);
  if (!typed && name === "policies_changed") location.reload();
});
