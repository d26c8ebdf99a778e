// The policies page: the week as a grid, and a word when somebody else has saved. All forms work without this script.

import { all, find } from "./page.js";
import { follow } from "./live.js";
import { hoursOf, spanOf, spanText, withHour, withoutHour } from "./hours.js";

const DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SHOWN = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

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

function daysText(days) {
  return days.size === 7 ? "" : [...days].sort().map((day) => SHOWN[day]).join(",");
}

const week = find("[data-week]");
if (week) {
  const hoursInput = find("[name=allowed_hours]");
  const daysInput = find("[name=allowed_days]");
  const names = week.dataset.days.split(",");
  const draw = () => {
    const span = spanOf(hoursInput.value);
    const days = daysOf(daysInput.value);
    week.replaceChildren();
    if (!span || !days) {
      const line = document.createElement("p");
      line.className = "hint";
      line.textContent = week.dataset.bad;
      week.append(line);
      return;
    }
    const hours = hoursOf(span);
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
    const span = spanOf(hoursInput.value);
    const days = daysOf(daysInput.value);
    if (open) {
      hoursInput.value = spanText(withoutHour(span, hour));
    } else {
      if (!hoursOf(span).has(hour)) hoursInput.value = spanText(withHour(span, hour));
      days.add(day);
    }
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
