// Reasons for an approval. Also for pages without the frame, where page.js has nothing to work on.

// The offered reasons as buttons that fill the field; without scripts the field offers them itself.
export function offerReasons(root = document) {
  for (const field of root.querySelectorAll("[data-justification]")) {
    const chips = field.querySelector("[data-chips]");
    if (chips.childElementCount) continue;
    const input = field.querySelector("input");
    const mark = () => chips.querySelectorAll("button").forEach((chip) => chip.setAttribute("aria-pressed", String(chip.textContent === input.value)));
    for (const option of field.querySelectorAll("option")) {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = option.value;
      chip.addEventListener("click", () => {
        input.value = input.value === option.value ? "" : option.value;
        mark();
      });
      chips.append(chip);
    }
    input.addEventListener("input", mark);
    mark();
    chips.hidden = !chips.childElementCount;
  }
}
