// A report that is kept: the view of one migration that has ended, from data in the file itself.

import { historyOf } from "./history.js";
import { MigrationView } from "./view.js";

function stateOf({ report, owner }) {
  if (report) return "done";
  if (owner === null) return "running";
  return owner === "unknown" ? "unknown" : "failed";
}

const told = JSON.parse(document.getElementById("report").textContent);
const view = new MigrationView();
document.getElementById("migration").append(view.node);
view.show({ ...told, state: stateOf(told) }, historyOf(told));
