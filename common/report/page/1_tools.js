"use strict";
// Data and small tools. Names and numbers come from the JSON in #data and enter the page as text, never as HTML.

const report = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const named = (text) => element("bdi", {}, text); // its right-to-left marks end where it ends
const isolated = (text) => `\u2068${text}\u2069`; // the same where only text can stand

function unpacked(base64, Kind) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Kind(bytes.buffer);
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const sureness = (confidence) => (confidence > 0.9995 ? "> 99.9 %" : percent(confidence)); // a softmax never says 1

const counted = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function swatch(color) {
  const dot = shape("circle", { cx: 5, cy: 5, r: 5, class: "series" });
  const drawn = shape("svg", { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": "true" }, dot);
  drawn.style.setProperty("--series", color);
  return drawn;
}
