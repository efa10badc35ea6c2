// Charts, and a quiet refresh of what the page shows. Without this file tables, links and decisions work all the same.
"use strict";

const REFRESH_SECONDS = 5;
const CONFIG = { displaylogo: false, displayModeBar: false, responsive: true };
const dark = window.matchMedia("(prefers-color-scheme: dark)");

document.documentElement.classList.add("scripted");

// ---- charts: figures come from the API in the house style; ink and grid follow the page's own colours

let figures = {};

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--figure-ink").trim();
  const grid = style.getPropertyValue("--figure-grid").trim();
  const card = style.getPropertyValue("--card").trim();
  const made = { ...layout, font: { ...layout.font, color: ink }, hoverlabel: { ...layout.hoverlabel, bgcolor: card, bordercolor: grid, font: { color: ink } } };
  for (const key of Object.keys(made)) {
    if (/^[xy]axis\d*$/.test(key)) made[key] = { ...made[key], gridcolor: grid, linecolor: grid, tickcolor: grid };
  }
  if (window.innerWidth < 600) {
    made.margin = { ...made.margin, l: 44, r: made.yaxis2 ? 52 : 8 };
  }
  return made;
}

function draw() {
  if (!window.Plotly) return;
  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = figures[place.dataset.figure];
    if (figure) {
      if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
      window.Plotly.react(place, figure.data, themed(figure.layout), CONFIG);
    } else {
      if (place.classList.contains("js-plotly-plot")) window.Plotly.purge(place);
      place.textContent = place.dataset.empty || "";
    }
  }
}

async function loadFigures() {
  const place = document.querySelector("[data-figures]");
  if (!place) return;
  const answer = await fetch(place.dataset.figures, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`charts: ${answer.status}`);
  figures = await answer.json();
  draw();
}

dark.addEventListener("change", draw);

// ---- refresh: parts marked data-live are taken from a fresh copy of the same page

function shownVersion() {
  const mark = document.querySelector("[data-version]");
  return mark ? mark.dataset.version : "";
}

function beingUsed(part) {
  const active = document.activeElement;
  const typing = active && part.contains(active) && /^(INPUT|SELECT|TEXTAREA)$/.test(active.tagName);
  const selection = window.getSelection();
  return typing || (selection && !selection.isCollapsed && part.contains(selection.anchorNode));
}

// Where the keyboard stands is found again by what the element leads to, since the element itself is replaced.
function landmark(element) {
  if (!element) return null;
  if (element.href) return `a[href="${CSS.escape(element.getAttribute("href"))}"]`;
  if (element.form && element.tagName === "BUTTON") return `form[action="${CSS.escape(element.form.getAttribute("action"))}"] button`;
  return null;
}

function renew(fresh) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (!other || beingUsed(part)) continue;
    // Every copy carries its own form token, which alone is no reason to redraw.
    const bare = (text) => text.replace(/name="csrf_token" value="[^"]*"/g, "");
    if (bare(part.innerHTML) === bare(other.innerHTML) && part.className === other.className) continue;
    const stood = part.contains(document.activeElement) ? landmark(document.activeElement) : null;
    part.className = other.className;
    part.innerHTML = other.innerHTML;
    if (stood) part.querySelector(stood)?.focus({ preventScroll: true });
  }
}

let lostSince = null;

function lost(reason) {
  const bar = document.getElementById("lost");
  lostSince = lostSince || new Date();
  bar.textContent = `${reason} What you see is of ${lostSince.toLocaleTimeString()} and may be out of date.`;
  bar.hidden = false;
}

async function refresh() {
  if (document.hidden) return;
  let answer;
  try {
    answer = await fetch(window.location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
  } catch {
    lost("The service cannot be reached.");
    return;
  }
  if (answer.type === "opaqueredirect") {
    lost("Your login has ended; load the page again to log in.");
    return;
  }
  if (!answer.ok) {
    lost("The service cannot answer.");
    return;
  }
  const before = shownVersion();
  renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
  try {
    if (shownVersion() !== before) await loadFigures();
    lostSince = null;
    document.getElementById("lost").hidden = true;
  } catch {
    lost("The charts cannot be loaded.");
  }
}

async function keepFresh() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, REFRESH_SECONDS * 1000));
    await refresh();
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const control of document.querySelectorAll(".filters select")) {
    control.addEventListener("change", () => control.form.requestSubmit());
  }
  loadFigures().catch(() => lost("The charts cannot be loaded."));
  if (document.querySelector("[data-live]")) keepFresh();
});
