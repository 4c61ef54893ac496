"use strict";
(() => {
  const map = document.getElementById("map");
  const detail = document.getElementById("detail");
  if (map && detail) {
    const title = document.getElementById("detail-title");
    const buttons = Array.from(map.querySelectorAll("button"));
    let shown = document.getElementById("detail-empty");
    let chosen = null;
    const show = (button) => {
      const panel = document.getElementById(button.dataset.panel);
      if (!panel) return;
      shown.hidden = true;
      panel.hidden = false;
      shown = panel;
      title.textContent = button.dataset.title;
      detail.scrollTop = 0;
    };
    const leave = () => {
      chosen.setAttribute("aria-pressed", "false");
      chosen = null;
      detail.classList.remove("open");
    };
    const choose = (button) => {
      if (chosen === button) return leave();
      if (chosen) leave();
      chosen = button;
      button.setAttribute("aria-pressed", "true");
      detail.classList.add("open");
      show(button);
      button.scrollIntoView({ block: "nearest" });
    };
    const reach = (button) => {
      for (const b of buttons) b.tabIndex = -1;
      button.tabIndex = 0;
      button.focus();
    };
    const step = (from, by, titles) => {
      for (let i = from + by; i >= 0 && i < buttons.length; i += by) {
        if (!titles || buttons[i].classList.contains("title")) return buttons[i];
      }
      return buttons[from];
    };
    const moves = {
      ArrowRight: (i) => step(i, 1), ArrowLeft: (i) => step(i, -1),
      ArrowDown: (i) => step(i, 1, true), ArrowUp: (i) => step(i, -1, true),
      Home: () => buttons[0], End: () => buttons[buttons.length - 1],
    };
    buttons.forEach((button, i) => {
      button.tabIndex = i ? -1 : 0;
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-controls", "detail");
      button.addEventListener("click", () => choose(button));
      button.addEventListener("focus", () => { if (button.matches(":focus-visible")) show(button); });
      button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse" && !chosen) show(button); });
      button.addEventListener("keydown", (event) => {
        const move = moves[event.key];
        if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        reach(move(i));
      });
    });
    map.addEventListener("pointerdown", (event) => {
      const button = event.target.closest("button");
      if (button) for (const b of buttons) b.tabIndex = b === button ? 0 : -1;
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && chosen) leave();
    });
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    for (const d of opened) d.open = true;
  });
  addEventListener("afterprint", () => { for (const d of opened) d.open = false; });
})();
