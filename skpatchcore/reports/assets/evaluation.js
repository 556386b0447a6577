
// Tables of an evaluation: rows follow a click on a column's title. Empty cells come last, and the foot stays.
(() => {
  for (const table of document.querySelectorAll("table.sortable"))
    [...table.tHead.rows[0].cells].forEach((title, column) => title.querySelector("button").addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], value = row => row.cells[column].dataset.value;
      const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
      [...body.rows].sort((a, b) => (value(a) === "") - (value(b) === "") || (down ? -1 : 1) * compare(value(a), value(b)))
        .forEach(row => body.append(row));
    }));

  // A link to a folded section opens it, and everything is open on paper.
  window.addEventListener("hashchange", () => {
    const part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = part && part.querySelector(":scope > details");
    if (folded) { folded.open = true; part.scrollIntoView(); }
  });
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".part .headed:not([open])")];
    for (const part of opened) part.open = true;
  });
  window.addEventListener("afterprint", () => { for (const part of opened) part.open = false; });
})();
