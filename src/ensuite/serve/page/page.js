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
window.addEventListener("storage", () => ensuite.showTheme());
