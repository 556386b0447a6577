"use strict";
// The review: a person marks each part as a defect, as fine or as unsure, and may write a note. The answers stay in the
// browser until they are saved as a file. report.js calls `startReview` and uses the functions that it returns.

/** Return a text as the rows of its CSV cells, with the delimiter of its first line (spreadsheets also write ; and tab). */
function readCsv(text) {
  const first = text.split(/\r?\n/, 1)[0], count = sign => first.split(sign).length;
  const delimiter = [",", ";", "\t"].reduce((best, sign) => count(sign) > count(best) ? sign : best);
  const rows = [];
  let row = [], cell = "", isQuoted = false;
  for (let i = 0; i < text.length; i++) {
    const sign = text[i];
    if (isQuoted) {
      if (sign !== '"') cell += sign;
      else if (text[i + 1] === '"') { cell += '"'; i++; } else isQuoted = false;
    } else if (sign === '"' && cell === "") isQuoted = true;
    else if (sign === delimiter) { row.push(cell); cell = ""; }
    else if (sign === "\n" || sign === "\r") {
      if (sign === "\r" && text[i + 1] === "\n") i++;
      rows.push([...row, cell]);
      row = [];
      cell = "";
    } else cell += sign;
  }
  if (row.length || cell) rows.push([...row, cell]);
  return rows.filter(cells => cells.some(Boolean));
}

/** Return a cell of a CSV file by RFC 4180. */
const csvCell = value => /[",;\t\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
// A note that a spreadsheet would take as a formula begins with an apostrophe in a CSV file. Paths stay as they are.
const guarded = note => /^'*[=+\-@\t\r]/.test(note) ? `'${note}` : note;
const unguarded = note => /^'+[=+\-@\t\r]/.test(note) ? note.slice(1) : note;

/** Build the controls of the review. `page` holds the cards and functions of the page; see the call in report.js. */
function startReview(page) {
  const { cards, groups, make, $, $$, whole, plural, fullName } = page;
  const WORDS = { defect: "Defect", fine: "Fine", unsure: "Unsure" }, KEYS = { d: "defect", f: "fine", u: "unsure" };
  const COLUMNS = ["path", "verdict", "score", "threshold", "review", "note", "time"];
  const PREFIX = `skpatchcore review ${location.pathname}\n`;
  const FLAGGED = ["anomalous", "unreadable"];

  // ---- Answers: in memory, and in the browser's storage if there is one ------------------------------------------------

  // A file name can come back with another image, so that a part is known by its path and its score.
  const keyOf = row => `${row.path}\n${row.score === null ? "NaN" : Number(row.score).toPrecision(9)}`;
  const rowOf = card => ({ path: card.file || card.path, verdict: card.verdict, score: card.exact || "nan", threshold: (card.judged || groups[card.group]).offset || "" });
  for (const card of cards) card.key = keyOf(rowOf(card));
  const byKey = new Map(cards.map(card => [card.key, card]));
  const answers = new Map();
  const isAnswer = row => row && typeof row.path === "string" && (Object.hasOwn(WORDS, row.review) || row.review === "") && typeof row.note === "string";
  let store = null, isUnsaved = false;
  try {
    store = window.localStorage;
    store.setItem(PREFIX, "");
    store.removeItem(PREFIX);
  } catch { store = null; }

  function readStore() {
    answers.clear();
    for (let i = 0; i < store.length; i++) {
      const name = store.key(i);
      if (!name.startsWith(PREFIX)) continue;
      try {
        const row = JSON.parse(store.getItem(name));
        if (isAnswer(row)) answers.set(name.slice(PREFIX.length), row);
      } catch { /* an entry that was not written by this page */ }
    }
  }
  if (store) readStore();

  const answerOf = card => answers.get(card.key)?.review || "";
  const noteOf = card => answers.get(card.key)?.note || "";

  /** Keep the answer of a part; an answer without a mark and without a note is removed. */
  function keep(key, row) {
    if (row.review || row.note) answers.set(key, row); else answers.delete(key);
    isUnsaved = true;
    hold();
    if (!store) return;
    try {
      if (answers.has(key)) store.setItem(PREFIX + key, JSON.stringify(row)); else store.removeItem(PREFIX + key);
    } catch {  // the storage is full
      store = null;
      warn();
      hold();
    }
  }
  /** Say on the page's root that a reload would lose answers: a page that loads itself again then does not. */
  function hold() { document.documentElement.toggleAttribute("data-unsaved", !store && isUnsaved && answers.size > 0); }
  // The decision beside an answer is the one that the person saw: later pages have other decisions if the threshold is moved.
  const seen = row => row && typeof row.verdict === "string" && typeof row.threshold === "string" ? { verdict: row.verdict, threshold: row.threshold } : {};
  function change(card, values) {
    keep(card.key, { ...rowOf(card), ...seen(answers.get(card.key)), review: answerOf(card), note: noteOf(card), ...values, time: new Date().toISOString() });
    refresh(card);
    showProgress();
  }

  // ---- Section above the parts -------------------------------------------------------------------------------------------

  const button = (text, attributes, action) => {
    const element = make("button", { type: "button", ...attributes }, text);
    element.addEventListener("click", action);
    return element;
  };
  const bar = make("progress", { max: cards.length || 1, value: 0, "aria-label": "Parts reviewed" });
  const done = make("p", { class: "done" }), lost = make("p", { class: "lost", role: "alert", hidden: true });
  const message = make("p", { class: "message", role: "status" });
  const chooser = make("input", { type: "file", accept: ".csv,.json,text/csv,application/json", hidden: true, "aria-label": "File of answers" });
  const begin = button("Start review", { class: "begin" }, () => {
    const next = nextOpen(-1);
    if (next) page.open(next); else say(nothingOpen());
  });
  const old = make("p", { class: "old", hidden: true }, make("span"),
    button("Save them as CSV", {}, () => save("csv", oldRows(), "review-old")),
    button("Delete them", {}, () => { for (const row of oldRows()) keep(keyOf(row), { review: "", note: "" }); showProgress(); }));
  $(".bar").before(make("section", { id: "review", "aria-labelledby": "review-title" },
    make("h2", { id: "review-title" }, "Review"),
    make("div", { class: "state" }, done, bar),
    make("div", { class: "actions" }, begin, button("Save as CSV", {}, () => save("csv", allRows())),
      button("Save as JSON", {}, () => save("json", allRows())), button("Load answers", {}, () => chooser.click()), chooser),
    make("p", { class: "help" }, "Open a part and choose Defect, Fine or Unsure. Choose the same answer again to remove it. Keys in an "
      + "opened part: D, F and U answer and go on to the next part that is not reviewed."),
    lost, old, message));

  const say = text => { message.textContent = text; };
  const oldRows = () => [...answers].filter(([key]) => !byKey.has(key)).map(([, row]) => row);
  function warn() {
    lost.hidden = store !== null;
    lost.textContent = store ? "" : "This browser cannot keep the answers of this page. They are lost when the page is closed or reloaded. Save them as CSV or JSON first.";
  }
  function showProgress() {
    const n = cards.filter(answerOf).length, text = `${whole(n)} of ${plural(cards.length)} reviewed`;
    done.textContent = text;
    bar.value = n;
    count.textContent = text;
    begin.textContent = n ? "Continue review" : "Start review";
    const nOld = oldRows().length;
    old.hidden = !nOld;
    old.firstChild.textContent = `${whole(nOld)} answer${nOld === 1 ? " is of a part that is" : "s are of parts that are"} no longer on this page.`;
  }

  // ---- Filter and order ---------------------------------------------------------------------------------------------------

  const filter = make("select", { name: "review" }, ...Object.entries({
    "": "all", "open": "not reviewed", "defect": "defect", "fine": "fine", "unsure": "unsure", "disagrees": "disagrees with the program",
  }).map(([value, text]) => make("option", { value }, text)));
  const sort = $("#filters [name=sort]");
  sort.append(make("option", { value: "random" }, "random order, for a fair sample"));
  sort.closest("label").before(make("label", {}, "Review ", filter));
  $("#table thead tr").append(make("th", { scope: "col" }, "Review"));

  function disagrees(card) {
    const isFlagged = FLAGGED.includes(card.verdict);
    return card.verdict !== "undecided" && ((answerOf(card) === "defect" && !isFlagged) || (answerOf(card) === "fine" && isFlagged));
  }
  const allows = card => ({ "": () => true, open: () => !answerOf(card), disagrees: () => disagrees(card) }[filter.value] || (() => answerOf(card) === filter.value))();

  /** Compare two cards in an order that is the same at each visit and independent of scores and names (a hash of the key). */
  const ranks = new Map();
  function rank(card) {
    if (!ranks.has(card.key)) {
      let hash = 2166136261;
      for (const sign of card.key) hash = Math.imul(hash ^ sign.codePointAt(0), 16777619);
      hash = Math.imul(hash ^ (hash >>> 16), 2246822507);
      hash = Math.imul(hash ^ (hash >>> 13), 3266489909);
      ranks.set(card.key, (hash ^ (hash >>> 16)) >>> 0);
    }
    return ranks.get(card.key);
  }
  const random = (a, b) => rank(a) - rank(b) || a.index - b.index;

  // ---- Marks on cards and in rows --------------------------------------------------------------------------------------

  function mark(card) {
    const answer = answerOf(card), note = noteOf(card);
    return make("span", { class: `answer ${answer}`, hidden: !answer && !note },
      answer ? make("span", { class: "mark" }, `Reviewed: ${WORDS[answer].toLowerCase()}`) : null,
      note ? make("span", { class: "remark" }, `Note: ${note}`) : null);
  }
  function refresh(card) {
    for (const shown of $$(`[data-index="${card.index}"] .answer`)) shown.replaceWith(mark(card));
  }

  // ---- Opened part -----------------------------------------------------------------------------------------------------

  const viewer = $("#viewer"), count = make("p", { class: "done" });
  const note = make("textarea", { rows: 1, maxlength: 1000 });
  const buttons = Object.entries(KEYS).map(([key, answer]) => button(WORDS[answer], { class: answer, "data-answer": answer, "aria-pressed": "false", "aria-keyshortcuts": key.toUpperCase() },
    () => give(page.current(), page.current() && answerOf(page.current()) === answer ? "" : answer)));
  buttons.forEach((element, i) => element.append(make("kbd", { "aria-hidden": "true" }, Object.keys(KEYS)[i].toUpperCase())));
  const forward = button("Next not reviewed", { class: "forward" }, goOn);
  const told = make("p", { class: "told", role: "status" });
  $(".steps", viewer).before(make("section", { class: "judge", "aria-label": "Your answer" },
    make("div", { class: "choice", role: "group", "aria-label": "This part is" }, ...buttons),
    make("label", { class: "remark" }, make("span", {}, "Note"), note), forward, make("div", { class: "state" }, count, told)));

  function show(card) {
    for (const element of buttons) element.setAttribute("aria-pressed", String(element.dataset.answer === answerOf(card)));
    if (note.value !== noteOf(card)) note.value = noteOf(card);
    told.textContent = "";
  }
  function give(card, answer) {
    change(card, { review: answer });
    show(card);
    told.textContent = answer ? `${WORDS[answer]}: ${fullName(card)}` : `No answer: ${fullName(card)}`;
  }
  /** Return the next part without an answer among the shown ones, from a position on and then from the first part. */
  function nextOpen(place) {
    const shown = page.shown();
    return [...shown.slice(place + 1), ...shown.slice(0, place + 1)].find(card => !answerOf(card));
  }
  const nothingOpen = () => `All ${page.shown().length === cards.length ? plural(cards.length) : `${plural(page.shown().length)} of this filter`} are reviewed.`;
  function goOn() {
    const next = nextOpen(page.shown().indexOf(page.current()));
    const text = told.textContent;
    if (next && next !== page.current()) { page.open(next, true); told.textContent = text; } else if (!next) told.textContent = nothingOpen();
  }
  note.addEventListener("input", () => change(page.current(), { note: note.value }));
  viewer.addEventListener("keydown", event => {
    const answer = KEYS[event.key.toLowerCase()];
    if (!answer || event.repeat || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target.matches("textarea, select, input:not([type=checkbox]):not([type=range])")) return;
    event.preventDefault();
    give(page.current(), answer);
    goOn();
  });
  /** Apply the filter again when a part is closed: while it is open, answered parts stay in the order. */
  function closed() {
    if (filter.value) page.update();
  }

  // ---- Files -------------------------------------------------------------------------------------------------------------

  const allRows = () => cards.map(card => ({ review: "", note: "", time: "", ...answers.get(card.key), ...rowOf(card), ...seen(answers.get(card.key)) }));

  function save(kind, rows, name = "review") {
    const number = text => text === "" || text === "nan" ? null : Number(text);
    const text = kind === "csv"
      ? [COLUMNS, ...rows.map(row => COLUMNS.map(column => column === "note" ? guarded(row.note) : row[column]))]
        .map(cells => `${cells.map(csvCell).join(",")}\r\n`).join("")
      : JSON.stringify({ format: "skpatchcore review 1", saved: new Date().toISOString(),
        parts: rows.map(row => ({ ...Object.fromEntries(COLUMNS.map(column => [column, row[column]])), score: number(row.score), threshold: number(row.threshold) })) }, null, 1);
    const address = URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv;charset=utf-8" : "application/json" }));
    const link = make("a", { href: address, download: `${name}.${kind}`, hidden: true });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    const isWhole = name === "review";
    if (isWhole) { isUnsaved = false; hold(); }
    say(`${plural(rows.length)} saved in ${name}.${kind}, in the browser's folder for downloads.`
      + (isWhole ? "" : " The file has only the parts with an answer. Use it for 'update --review': the rates of 'review' need all parts."));
  }

  /** Return the rows of a saved file. */
  function rowsOf(text) {
    text = text.replace(/^\ufeff/, "");
    if (text.trimStart().startsWith("{")) {
      const { parts } = JSON.parse(text);
      if (!Array.isArray(parts)) throw new Error("there is no list of parts in it");
      return parts.map(part => part && { ...part, threshold: typeof part.threshold === "number" ? String(part.threshold) : "" });
    }
    const [columns = [], ...rows] = readCsv(text);
    if (!["path", "score", "review"].every(name => columns.includes(name))) throw new Error("it has no columns path, score and review");
    return rows.map(cells => Object.fromEntries(columns.map((name, i) => [name, name === "note" ? unguarded(cells[i] || "") : cells[i] || ""])));
  }
  function load(text) {
    const rows = rowsOf(text).map(row => ({ ...row, review: String(row.review ?? "").trim().toLowerCase(), note: row.note ?? "" }));
    const wrong = rows.findIndex(row => !isAnswer(row));
    if (wrong >= 0) {
      const { path, review, note } = rows[wrong], isText = typeof path === "string" && typeof note === "string";
      throw new Error(isText ? `the answer of part ${wrong + 1} is '${review}', not defect, fine, unsure or empty` : `part ${wrong + 1} has no path, or its note is no text`);
    }
    let nLoaded = 0, nKept = 0, nElsewhere = 0;
    for (const row of rows.filter(row => row.review || row.note)) {
      const card = byKey.get(keyOf(row)), own = card && answers.get(card.key);
      if (!card) { nElsewhere++; continue; }
      // The newer values count. A mark and a note are kept apart: an empty one never replaces the other.
      const isOlder = Boolean(own) && own.time > (row.time || ""), [first, second] = isOlder ? [own, row] : [row, own];
      const review = first.review || second?.review || "", note = first.note || second?.note || "";
      if (isOlder && own.review === review && own.note === note && (row.review !== review || row.note !== note)) nKept++;
      else { keep(card.key, { ...rowOf(card), ...seen(own || row), review, note, time: first.time || new Date().toISOString() }); nLoaded++; }
    }
    const answer = n => `${whole(n)} answer${n === 1 ? "" : "s"}`;
    say([`${answer(nLoaded)} loaded.`, nKept && `${answer(nKept)} of this page ${nKept === 1 ? "is newer and stays" : "are newer and stay"}.`,
      nElsewhere && `${answer(nElsewhere)} ${nElsewhere === 1 ? "is of a part that is" : "are of parts that are"} not on this page, or had another score: not loaded.`].filter(Boolean).join(" "));
    page.update();
    showProgress();
  }
  chooser.addEventListener("change", async () => {
    const [file] = chooser.files;
    if (!file) return;
    try {
      load(await file.text());
    } catch (error) {
      say(`${file.name} cannot be loaded: ${error.message}.`);
    }
    chooser.value = "";
  });

  window.addEventListener("beforeunload", event => { if (document.documentElement.hasAttribute("data-unsaved")) event.preventDefault(); });
  window.addEventListener("storage", event => {  // the same page in another tab
    if (!store || (event.key !== null && !event.key.startsWith(PREFIX))) return;
    readStore();
    showProgress();
    if (!viewer.open) page.update(); else if (page.current()) show(page.current());
  });

  warn();
  showProgress();
  return { allows, closed, mark, random, show };
}
