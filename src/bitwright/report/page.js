"use strict";
// Draws the figures, lets the reader choose a layer's distributions, and makes the tables sortable.
const { figures, distributions } = JSON.parse(document.getElementById("data").textContent);

for (const item of figures) Bokeh.embed.embed_item(item);

const layer = document.getElementById("layer");
if (layer) {
  const show = () => {
    const chosen = distributions[layer.value];
    for (const kind of ["weight", "activation"]) {
      for (const document_ of Bokeh.documents) {
        const source = document_.get_model_by_name(`${kind}-values`);
        if (source) source.data = chosen[kind];
      }
    }
    document.getElementById("no-activation").hidden = chosen.activation.left.length > 0;
  };
  layer.disabled = false;
  layer.addEventListener("change", show);
}

const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
const compare = (a, b) => {
  const [x, y] = [Number(a), Number(b)];
  const numeric = a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y);
  return numeric ? x - y : a.localeCompare(b, "en", { numeric: true });
};

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column)) * (descending ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  });
}
