
// Page of a running inspection: it loads itself again, unless a person uses it at this moment, and keeps filters,
// order, view, and place. If the file is too old, it says so.
(() => {
  const made = {{made}} * 1000, refresh = {{refresh}} * 1000, late = {{late}} * 1000, isRunning = {{running}};
  const form = document.getElementById("filters"), key = `skpatchcore-view:${location.pathname}`;
  const folded = () => [...document.querySelectorAll("details")];

  function view() {
    const fields = [...form.elements].filter(field => field.name);
    return {
      texts: fields.filter(field => field.type !== "checkbox").map(field => [field.name, field.value]),
      off: fields.filter(field => field.type === "checkbox" && !field.checked).map(field => [field.name, field.value]),
      open: folded().map(part => part.open), mode: document.querySelector("[data-mode][aria-pressed=true]")?.dataset.mode,
      top: window.scrollY,
    };
  }
  function restore(saved) {
    for (const [name, value] of saved.texts) { const field = form.elements[name]; if (field && "value" in field) field.value = value; }
    for (const [name, value] of saved.off)
      for (const box of form.querySelectorAll(`[name="${name}"]`)) if (box.value === value) box.checked = false;
    folded().forEach((part, i) => { if (saved.open[i] != null) part.open = saved.open[i]; });
    if (saved.mode) document.querySelector(`[data-mode="${saved.mode}"]`)?.click();
    form.dispatchEvent(new Event("input"));
    window.scrollTo(0, saved.top);
  }
  // A browser that refuses to store anything shows the page from its start after each reload.
  try {
    const saved = sessionStorage.getItem(key);
    sessionStorage.removeItem(key);
    if (saved) restore(JSON.parse(saved));
  } catch {}

  // Times since this page was seen first, by the clock of this browser: the clock of the other machine may differ.
  const loaded = Date.now(), seenKey = `${key}:seen`;
  let seen = loaded;
  try {
    const last = JSON.parse(sessionStorage.getItem(seenKey) || "{}");
    if (last.made === made) seen = last.seen;
    sessionStorage.setItem(seenKey, JSON.stringify({ made, seen }));
  } catch {}
  const status = document.getElementById("refresh"), warning = document.getElementById("late");
  let touched = 0;
  for (const type of ["keydown", "pointerdown", "wheel", "touchmove"])
    document.addEventListener(type, () => { touched = Date.now(); }, { passive: true });
  const isUsed = () => document.querySelector("dialog[open]") || Date.now() - touched < 5000
    || document.activeElement?.matches("input, select, textarea") || String(getSelection()) !== "";

  /** Load the page again when it is time and nobody uses it. Answers that the browser cannot keep are never lost. */
  function check() {
    warning.hidden = !isRunning || Date.now() - seen < late;
    if (!warning.hidden) warning.textContent = `No new page since ${new Date(made).toLocaleString("sv")}. The program may have stopped: newer parts are not shown.`;
    const isNeeded = isUsed(), isHeld = isNeeded || document.documentElement.dataset.unsaved != null;
    status.textContent = isNeeded ? "This page is not loaded again while you use it."
      : isHeld ? "This page is not loaded again until you save your answers." : `This page is loaded again every ${refresh / 1000} seconds.`;
    if (isHeld || document.hidden || Date.now() - loaded < refresh) return;
    try { sessionStorage.setItem(key, JSON.stringify(view())); } catch {}
    location.reload();
  }
  check();
  setInterval(check, Math.max(1000, Math.min(refresh, 5000)));
})();
