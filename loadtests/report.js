"use strict";
const root = document.documentElement, theme = document.getElementById("theme");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const label = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
label();
for (const key of document.querySelectorAll(".key")) key.addEventListener("click", () => {
  const off = key.getAttribute("aria-pressed") === "true";
  key.setAttribute("aria-pressed", String(!off));
  for (const part of key.closest("figure").querySelectorAll(`:scope > svg [data-series="${key.dataset.series}"]`))
    part.classList.toggle("off", off);
});
const copied = (text) => navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject();
const selected = (text) => {
  const box = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(box); box.select(); const done = document.execCommand("copy"); box.remove();
  if (!done) throw new Error("copy refused");
};
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", async () => {
  const text = button.closest("figure").querySelector("template").content.textContent;
  try { await copied(text).catch(() => selected(text)); button.textContent = "Copied"; }
  catch { button.textContent = "Copy failed"; }
  setTimeout(() => { button.textContent = "Copy Markdown"; }, 1500);
});
