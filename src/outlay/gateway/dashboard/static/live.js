"use strict";
// Keeps the part of a page that moves current: every two seconds the server renders it again, and
// what differs is changed in place. Focus, open menus and half-typed forms stay as they are.

const EVERY = 2000;
const live = document.querySelector("#live[data-live]");
const pulse = document.getElementById("pulse");
const csrf = document.querySelector('meta[name="csrf"]').content;

function attributes(from, to) {
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && name !== "open") from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value && name !== "open") from.setAttribute(name, value);
  }
}

function same(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
}

function morph(from, to) {
  const wanted = [...to.childNodes];
  let at = from.firstChild;
  for (const next of wanted) {
    let found = at;
    while (found && !same(found, next)) found = found.nextSibling;
    if (!found) {
      from.insertBefore(document.importNode(next, true), at);
      continue;
    }
    while (at !== found) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
    at = found.nextSibling;
    if (found.nodeType === Node.ELEMENT_NODE) {
      if (found.isEqualNode(next)) continue;
      attributes(found, next);
      morph(found, next);
    } else if (found.nodeValue !== next.nodeValue) {
      found.nodeValue = next.nodeValue;
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function say(state, text) {
  pulse.hidden = false;
  pulse.dataset.state = state;
  document.getElementById("pulse-text").textContent = text;
}

async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(live.dataset.live, {
      headers: { "x-csrf-token": csrf, accept: "application/json" },
      credentials: "same-origin",
    });
    if (answer.status === 401) {
      location.assign("/login");
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const { html } = await answer.json();
    const fresh = new DOMParser().parseFromString(`<div>${html}</div>`, "text/html");
    morph(live, fresh.body.firstChild);
    say("on", "live");
  } catch {
    say("off", "not live: the gateway does not answer");
  }
}

async function loop() {
  await look();
  setTimeout(loop, EVERY);
}

if (live) {
  say("on", "live");
  setTimeout(loop, EVERY);
  document.addEventListener("visibilitychange", look);
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).textContent;
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  });
}
