// The navigation of a narrow screen by keyboard: the theme opens it by a label, which no key reaches.
addEventListener("DOMContentLoaded", () => {
  const drawer = document.getElementById("__drawer");
  const button = document.querySelector("label.md-header__button[for=__drawer]");
  if (!drawer || !button) return;
  const say = () => button.setAttribute("aria-expanded", String(drawer.checked));
  button.tabIndex = 0;
  button.setAttribute("role", "button");
  button.setAttribute("aria-label", "Navigation");
  say();
  drawer.addEventListener("change", say);
  button.addEventListener("keydown", (event) => {
    if (event.key !== " ") return; // Enter on a label is the theme's own
    event.preventDefault();
    drawer.click();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !drawer.checked) return;
    drawer.click();
    button.focus();
  });
});
