"use strict";
// The page of two runs: its table sorts by a click on a heading and keeps the rows that hold every word of the filter.

const body = document.querySelector("#changes tbody");
const rows = body ? Array.from(body.rows) : [];
const words = rows.map(row => row.textContent.toLowerCase());

function filter() {
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let left = 0;
  rows.forEach((row, i) => {
    row.hidden = !wanted.every(word => words[i].includes(word));
    left += row.hidden ? 0 : 1;
  });
  document.getElementById("filtered").textContent = wanted.length ? `${left} of ${rows.length}` : "";
}

function sort(th) {
  const turn = th.getAttribute("aria-sort") === "ascending" ? -1 : 1, at = th.cellIndex;
  for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
  const value = row => row.cells[at].dataset.sort;
  const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")  // what was not measured stays last
    : turn * (isFinite(a) && isFinite(b) ? a - b : a.localeCompare(b));
  body.append(...rows.slice().sort((p, q) => compare(value(p), value(q))));
}

if (body) {
  document.getElementById("filter").addEventListener("input", filter);
  for (const th of document.querySelectorAll("#changes th")) {
    th.firstElementChild.addEventListener("click", () => sort(th));
  }
}
document.documentElement.dataset.ready = "yes";
