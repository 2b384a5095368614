// The pages of the widgets, which are frames, take the colours that were chosen for the site rather than the browser's.
const COLORS = {
  "--jp-layout-color1": "--pst-color-background",
  "--jp-layout-color2": "--pst-color-surface",
  "--jp-ui-font-color1": "--pst-color-text-base",
  "--jp-ui-font-color2": "--pst-color-text-muted",
  "--jp-border-color2": "--pst-color-border",
  "--jp-brand-color1": "--pst-color-primary",
};

function paint(frame) {
  const page = frame.contentDocument; // null where pages are opened as files, each of which is a site of its own
  if (!page?.body) return;
  const dark = document.documentElement.dataset.theme === "dark";
  const site = getComputedStyle(document.documentElement);
  for (const [name, color] of Object.entries(COLORS)) {
    page.documentElement.style.setProperty(name, site.getPropertyValue(color));
  }
  page.documentElement.style.colorScheme = dark ? "dark" : "light"; // of another one than the site's it would be opaque
  page.body.dataset.jpThemeLight = !dark;
  page.body.style.background = "transparent";
}

for (const frame of document.querySelectorAll("iframe.widget")) {
  paint(frame);
  frame.addEventListener("load", () => paint(frame));
  const changes = new MutationObserver(() => paint(frame));
  changes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
}
