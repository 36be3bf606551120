// Asks for the page again every few seconds, and puts what has changed where it stood. Without it the page asks by itself.
"use strict";

const SECONDS = 2;
const seen = new Map();

for (const part of document.querySelectorAll("[data-live]")) seen.set(part.id, part.innerHTML);

function renew(part, text, fresh) {
  const selection = document.getSelection();
  if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) return; // somebody copies from it
  const turned = new Map([...part.querySelectorAll("details[id]")].map((one) => [one.id, one.open]));
  const scrolled = new Map([...part.querySelectorAll(".wide[id]")].map((one) => [one.id, one.scrollLeft]));
  const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
  part.replaceChildren(...fresh.childNodes);
  seen.set(part.id, text);
  for (const [id, open] of turned) if (document.getElementById(id)) document.getElementById(id).open = open;
  for (const [id, left] of scrolled) if (document.getElementById(id)) document.getElementById(id).scrollLeft = left;
  if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
}

async function look() {
  if (document.hidden) return;
  const lost = document.getElementById("lost");
  try {
    const answer = await fetch(location.href, { redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(15000) });
    if (answer.type === "opaqueredirect") {
      location.reload(); // the session is over
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(part.id);
      const text = fresh ? fresh.innerHTML : null;
      if (text !== null && text !== seen.get(part.id)) renew(part, text, fresh);
    }
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}

async function forever() {
  for (;;) {
    await new Promise((done) => setTimeout(done, SECONDS * 1000));
    await look();
  }
}

forever();
