"use strict";
// Search and sort of the table of runs. The rows stand in the page already, so it also works as it is without scripts.
const table = document.getElementById("runs");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const words = rows.map((row) => `${row.textContent} ${row.dataset.words}`.toLowerCase());
const search = document.getElementById("words");
const data = document.getElementById("data");
const shown = document.getElementById("shown");

function filter() {
  const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  rows.forEach((row, place) => {
    const fits = (!data || !data.value || row.dataset.key === data.value)
      && asked.every((word) => words[place].includes(word));
    row.hidden = !fits;
    count += fits;
  });
  shown.textContent = `${count.toLocaleString("en")} runs`;
}

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}

function sortBy(column, header) {
  const before = header.getAttribute("aria-sort");
  const rising = before ? before === "descending" : header.dataset.first !== "descending";
  const number = header.classList.contains("number");
  const sign = rising ? 1 : -1;
  const found = rows.map((row) => [valueOf(row, column), row]);
  found.sort(([one], [other]) => {
    if (one === "" || other === "") return (one === "") - (other === "");  // what is not known stands last
    return sign * (number ? one - other : one.localeCompare(other, "en", { numeric: true }));
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...found.map(([, row]) => row));
}

Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
  header.querySelector("button").addEventListener("click", () => sortBy(column, header));
});
search.addEventListener("input", filter);
if (data) data.addEventListener("change", filter);
if (search.value || (data && data.value)) filter();  // a browser that goes back keeps what was typed
