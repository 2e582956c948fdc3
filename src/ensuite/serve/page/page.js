// What only the browser can do: remember the colours, keep the focus, say something in passing.
const ensuite = {
  themes: { system: "as the system", light: "light", dark: "dark" },
  theme() {
    const kept = localStorage.getItem("ensuite-theme");
    return kept in this.themes ? kept : "system";
  },
  showTheme() {
    const theme = this.theme();
    document.documentElement.dataset.theme = theme;
    for (const button of document.querySelectorAll("button.theme")) {
      button.setAttribute("aria-label", `Colours: ${this.themes[theme]}`);
      button.title = `Colours: ${this.themes[theme]}`;
    }
  },
  nextTheme() {
    const names = Object.keys(this.themes);
    localStorage.setItem("ensuite-theme", names[(names.indexOf(this.theme()) + 1) % names.length]);
    this.showTheme();
  },
  // The service listens now: what was typed before is asked for, and what was built since is told the theme.
  ready() {
    this.showTheme();
    document.documentElement.dataset.ready = "";
    for (const field of document.querySelectorAll(".search input")) {
      if (field.value) field.dispatchEvent(new Event("input"));
    }
  },
  focused: "",
  refocus() {
    const wanted = this.focused; // what is built anew bears the old name
    setTimeout(() => {
      if (!wanted || (document.activeElement && document.activeElement !== document.body)) return;
      const same = document.getElementById(wanted);
      const last = wanted.replace(/\d+$/, (n) => Math.max(0, n - 1));
      (same || document.getElementById(last) || document.getElementById("items"))?.focus({ preventScroll: true });
    }, 30);
  },
  // A key in a search box. Enter empties the field here and now, since a word from the server might come when
  // the next search is being typed; what is not found is put back.
  searchKey(event, emit) {
    if (!["ArrowDown", "ArrowUp", "Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    emit(event.key, event.target.value);
    if (event.key === "Enter") event.target.value = "";
  },
  empty(id) {
    document.getElementById(id).value = "";
  },
  refill([id, text]) {
    const field = document.getElementById(id);
    if (!field.value) field.value = text;
  },
  reveal(id) {
    document.getElementById(id)?.scrollIntoView({ block: "nearest" });
  },
  toast(text) {
    const line = document.createElement("div");
    line.textContent = text;
    document.getElementById("toasts").append(line);
    setTimeout(() => line.remove(), 5000);
  },
};
window.ensuite = ensuite;
ensuite.showTheme();
document.addEventListener("focusin", (event) => { ensuite.focused = event.target.id || ""; });
// A drawer closes when one turns to something else.
document.addEventListener("pointerdown", (event) => {
  for (const open of document.querySelectorAll("details.more[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = event.target.closest?.("details.more[open]");
  if (open) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});
window.addEventListener("storage", () => ensuite.showTheme());
