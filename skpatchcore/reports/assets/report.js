"use strict";
// The page of cards. `data` has the cards, the most anomalous first; everything shown is made from it as text nodes,
// never as HTML. Cards and rows are appended in steps as the reader scrolls, so that thousands of images stay fluid.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { cards, groups, verdicts } = data;
  const SVG = "http://www.w3.org/2000/svg", STEP = { grid: 240, table: 120 }, N_BARS = 28;
  const $ = (selector, parent = document) => parent.querySelector(selector);
  const $$ = (selector, parent = document) => [...parent.querySelectorAll(selector)];

  /** Return an element with attributes and children; children that are strings become text. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (value === true) element.setAttribute(name, ""); else if (value !== false && value != null) element.setAttribute(name, value);
    element.append(...children.filter(child => child != null && child !== ""));
    return element;
  }
  function shape(tag, attributes, ...children) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const number = value => value == null ? "none" : Number(value.toPrecision(4)).toLocaleString("en");
  const whole = value => value.toLocaleString("en");
  const compact = value => value.toLocaleString("en", { notation: "compact" });
  const several = groups.length > 1;
  const plural = n => `${whole(n)} ${data.noun}${n === 1 ? "" : "s"}`;
  // Scores of several groups are compared as multiples of their thresholds.
  const scale = card => several ? card.relative : card.score;
  const fullName = card => card.folder ? `${card.folder}/${card.name}` : card.name;
  cards.forEach((card, i) => { card.index = i; card.words = `${fullName(card)} ${card.note || ""}`.toLowerCase(); });

  // ---- Images that could not be read -----------------------------------------------------------------------------

  const unread = cards.filter(card => card.verdict === "unreadable");
  if (unread.length) {
    $("#unreadable").hidden = false;
    $("#unreadable-title").textContent = `${plural(unread.length)} could not be read and ${unread.length === 1 ? "was" : "were"} not inspected`;
    $("#unreadable button").addEventListener("click", () => {
      for (const box of $$("[name=verdict]", form)) box.checked = box.value === "unreadable";
      update();
    });
  }

  // Cards of an evaluation keep their order: the scores of a few images have neither a histogram nor an order.
  if (data.order) {
    const { sort } = document.getElementById("filters").elements;
    sort.options[0].text = data.order;
    sort.options[1].remove();
  }

  // ---- State: filters, order, mode -------------------------------------------------------------------------------

  const form = $("#filters"), fields = form.elements;
  const grid = $("#grid"), rows = $("#table tbody"), table = $("#table");
  let shown = cards, mode = "grid", nRendered = 0;
  // review.js is part of the page if a person may mark the parts.
  const review = typeof startReview === "undefined" ? null : startReview({ cards, groups, make, $, $$, whole, plural, fullName,
    shown: () => shown, current: () => current, update, open: (card, isOpen) => isOpen ? show(card) : open(card.index) });

  for (const [verdict, title] of Object.entries(verdicts)) {
    const n = cards.filter(card => card.verdict === verdict).length;
    if (n) $(".verdicts").append(make("label", { class: "chip" },
      make("input", { type: "checkbox", name: "verdict", value: verdict, checked: true }), `${title} (${whole(n)})`));
  }
  function options(name, values) {
    const field = fields[name];
    field.append(make("option", { value: "" }, "all"), ...values.map(value => make("option", { value }, value || "(top folder)")));
    field.closest("label").hidden = values.length < 2;
    // The first option has the empty value too: the top folder is told apart by its index.
    return card => field.selectedIndex <= 0 || values[field.selectedIndex - 1] === (name === "group" ? groups[card.group].name : card.folder || "");
  }
  const inGroup = options("group", several ? groups.map(group => group.name) : []);
  const inFolder = options("folder", [...new Set(cards.map(card => card.folder || ""))].sort());
  const orders = {
    "score": (a, b) => a.index - b.index,
    "-score": (a, b) => (a.verdict === "unreadable" ? -1 : 0) - (b.verdict === "unreadable" ? -1 : 0) || b.index - a.index,
    "name": (a, b) => fullName(a).localeCompare(fullName(b), "en", { numeric: true }),
    "size": (a, b) => (b.largest || 0) - (a.largest || 0) || a.index - b.index,
    "random": review?.random,
  };

  function update() {
    const allowed = new Set($$("[name=verdict]", form).filter(box => box.checked).map(box => box.value));
    const words = fields.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const low = fields.low.value === "" ? -Infinity : Number(fields.low.value);
    const high = fields.high.value === "" ? Infinity : Number(fields.high.value);
    const hasRange = low > -Infinity || high < Infinity;
    shown = cards.filter(card => allowed.has(card.verdict) && inGroup(card) && inFolder(card) && (!review || review.allows(card))
      && words.every(word => card.words.includes(word))
      && (!hasRange || (scale(card) != null && scale(card) >= low && scale(card) <= high))).sort(orders[fields.sort.value]);
    $("#shown").textContent = shown.length === cards.length ? `All ${plural(cards.length)} shown` : `${whole(shown.length)} of ${plural(cards.length)} shown`;
    grid.replaceChildren();
    rows.replaceChildren();
    nRendered = 0;
    render();
    renderWhenIdle();
    markBars(low, high);
  }

  // ---- Cards and rows --------------------------------------------------------------------------------------------

  const tag = card => make("span", { class: "tag" }, verdicts[card.verdict]);

  /** Return a sentence if a part of the image is not inspected. */
  function coverage(card) {
    if (!card.inspected) return "";
    return `Only ${Math.round(100 * card.inspected)} % of the image is inspected`;
  }

  function scoreText(card) {
    const threshold = groups[card.group].threshold;
    return card.score == null ? "" : `Score ${number(card.score)}${threshold == null ? "" : `, threshold ${number(threshold)}`}`;
  }

  function cardOf(card) {
    const photo = make("span", { class: "photo" });
    if (card.thumb) photo.append(make("img", { src: card.thumb, alt: "", loading: "lazy", decoding: "async" }));
    else photo.append(card.verdict === "unreadable" ? "no picture" : card.problem || "no picture");
    const fact = text => text ? make("span", { class: "fact" }, text) : null;
    return make("li", { class: `card ${card.verdict}`, "data-index": card.index },
      make("button", { type: "button" },
        make("span", { class: "text" }, tag(card), make("span", { class: "name" }, fullName(card)), review?.mark(card)),
        photo,
        make("span", { class: "text" },
          several ? fact(groups[card.group].name) : null,
          fact(card.rarity), fact(scoreText(card)), fact(card.extent), fact(coverage(card)),
          card.note ? make("span", { class: "fact note" }, card.note) : null,
          card.disagrees ? make("span", { class: "why" }, card.decision) : null,
          card.problem && card.thumb ? make("span", { class: "why" }, card.problem) : null,
          card.verdict === "unreadable" ? make("span", { class: "why" }, card.problem || "") : null)));
  }

  function rowOf(card) {
    const cell = (text, isNumber) => make("td", { class: isNumber ? "number" : null }, text == null ? "" : text);
    return make("tr", { class: card.verdict, "data-index": card.index },
      make("td", {}, make("button", { type: "button" }, fullName(card))), make("td", {}, tag(card)),
      cell(card.score == null ? "" : number(card.score), true),
      cell(card.score == null ? "" : number(groups[card.group].threshold), true),
      cell(card.asBad == null ? "" : `${whole(card.asBad)} of ${whole(groups[card.group].good.length)}`, true),
      cell(card.score == null ? "" : whole(card.n || 0), true), cell(card.largest ? whole(card.largest) : "", true),
      cell(card.size ? `${card.size[1]} × ${card.size[0]}` : ""),
      cell([several && groups[card.group].name, card.note, card.disagrees && card.decision, card.problem].filter(Boolean).join(" ")),
      review && make("td", {}, review.mark(card)));
  }

  /** Append the next cards or rows. */
  function render(n = STEP[mode]) {
    const [parent, draw] = mode === "grid" ? [grid, cardOf] : [rows, rowOf];
    parent.append(...shown.slice(nRendered, nRendered + n).map(draw));
    nRendered = Math.min(shown.length, nRendered + n);
  }

  /** Append the remaining cards while nothing else happens: the browser's own print command prints what it finds. */
  let waiting = 0;
  const whenIdle = window.requestIdleCallback || (work => setTimeout(work, 200)), dropIdle = window.cancelIdleCallback || clearTimeout;
  function renderWhenIdle() {
    dropIdle(waiting);
    if (mode !== "grid" || nRendered >= shown.length) return;
    waiting = whenIdle(() => { render(); renderWhenIdle(); });
  }

  // Append more while the end of the list is near the window.
  const more = new IntersectionObserver(entries => {
    if (entries.some(entry => entry.isIntersecting) && nRendered < shown.length) {
      render();
      more.unobserve($("#more"));
      requestAnimationFrame(() => more.observe($("#more")));
    }
  }, { rootMargin: "1800px" });
  more.observe($("#more"));

  document.addEventListener("click", event => {
    const item = event.target.closest("[data-index]");
    if (item && event.target.closest("button")) open(Number(item.dataset.index));
  });

  for (const button of $$(".modes [data-mode]"))
    button.addEventListener("click", () => {
      mode = button.dataset.mode;
      for (const other of $$(".modes [data-mode]")) other.setAttribute("aria-pressed", String(other === button));
      grid.hidden = mode !== "grid";
      table.hidden = mode !== "table";
      update();
    });

  // ---- Histogram -------------------------------------------------------------------------------------------------

  let bars = [];

  function drawHistogram() {
    const known = groups.flatMap(group => group.good.map(score => several && group.threshold > 0 ? score / group.threshold : score));
    const scored = cards.filter(card => scale(card) != null);
    const figure = $("#histogram"), svg = $("svg", figure);
    const thresholds = several ? (groups.some(group => group.threshold != null) ? [1] : []) : groups.map(group => group.threshold).filter(t => t != null);
    figure.hidden = scored.length < 2 || data.order !== "";
    if (figure.hidden) return;
    const values = [...scored.map(scale), ...thresholds, ...(several ? [] : known)];
    let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    if (low === high) { low -= 1; high += 1; }
    const binOf = value => Math.max(0, Math.min(N_BARS - 1, Math.floor((value - low) / (high - low) * N_BARS)));
    const W = 560, H = 190, TOP = 16, BASE = 128, DEEP = 166;
    const x = value => 8 + (value - low) / (high - low) * (W - 16), width = (W - 16) / N_BARS;
    const counts = Array.from({ length: N_BARS }, () => ({ bad: 0, fine: 0, known: 0 }));
    for (const card of scored) counts[binOf(scale(card))][card.verdict === "anomalous" ? "bad" : "fine"]++;
    for (const score of known) if (score >= low && score <= high) counts[binOf(score)].known++;
    const tallest = Math.max(1, ...counts.map(c => c.bad + c.fine)), deepest = Math.max(1, ...counts.map(c => c.known));
    // Square roots: single images stay visible beside thousands.
    const up = n => Math.sqrt(n / tallest) * (BASE - TOP), down = n => Math.sqrt(n / deepest) * (DEEP - BASE - 8);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.replaceChildren();
    bars = counts.map((count, i) => {
      const left = 8 + i * width, from = low + i * (high - low) / N_BARS, to = low + (i + 1) * (high - low) / N_BARS;
      const total = count.bad + count.fine, height = up(total), fine = total ? height * count.fine / total : 0;
      const part = (kind, y, h) => shape("rect", { class: kind, x: left + 1, y, width: Math.max(1, width - 2), height: h });
      const words = `${plural(total)} with scores from ${number(from)} to ${number(to)}, ${whole(count.bad)} anomalous`
        + (count.known ? `; ${whole(count.known)} calibration image${count.known === 1 ? "" : "s"}` : "");
      const bar = shape("g", { role: "button", tabindex: i ? -1 : 0, "aria-pressed": "false", "aria-label": words },
        shape("title", {}, words),
        shape("rect", { class: "hit", x: left, y: 0, width, height: DEEP }),
        part("fine", BASE - fine, fine), part("bad", BASE - height, height - fine), part("known", BASE + 4, down(count.known)));
      if (total) bar.append(shape("text", { class: "count", x: left + width / 2, y: BASE - height - 3, "text-anchor": "middle" }, compact(total)));
      svg.append(bar);
      return { bar, from, to };
    });
    svg.append(shape("line", { class: "axis", x1: 8, x2: W - 8, y1: BASE + 1, y2: BASE + 1 }));
    for (const value of thresholds)
      svg.append(shape("line", { class: "threshold", x1: x(value), x2: x(value), y1: 2, y2: DEEP }));
    for (const [value, anchor] of [[low, "start"], [high, "end"]])
      svg.append(shape("text", { x: x(value), y: H - 6, "text-anchor": anchor }, number(value)));
    for (const value of thresholds)
      svg.append(shape("text", { x: Math.max(90, Math.min(W - 90, x(value))), y: H - 6, "text-anchor": "middle" }, `threshold ${number(value)}`));
    if (several) $("#range-title").textContent = "Anomaly score / threshold";
    $("figcaption", figure).textContent = several
      ? "Anomaly scores as multiples of the group's threshold. Choose bars to filter." : "Anomaly scores, higher = more anomalous. Choose bars to filter.";
    const key = (color, text) => { const mark = make("i"); mark.style.background = `var(${color})`; return make("span", {}, mark, text); };
    $(".keys", figure).replaceChildren(...[
      key("--bar-bad", "anomalous"), key("--bar-good", thresholds.length ? "normal" : "scored"), known.length && key("--bar-known", "calibration images (below)")].filter(Boolean));
  }

  /** Mark the bars in the chosen range. */
  function markBars(low, high) {
    const hasRange = low > -Infinity || high < Infinity;
    for (const { bar, from, to } of bars) bar.setAttribute("aria-pressed", String(hasRange && (from + to) / 2 < high && (from + to) / 2 > low));
  }

  function chooseBars(first, last) {
    const [a, b] = first <= last ? [first, last] : [last, first];
    // Whole bars: the edges are rounded outwards, and the first and last bar are open.
    const edge = (value, round) => { const unit = 10 ** (Math.floor(Math.log10(Math.abs(value) || 1)) - 5); return Number((round(value / unit) * unit).toPrecision(7)); };
    fields.low.value = a === 0 ? "" : edge(bars[a].from, Math.floor);
    fields.high.value = b === N_BARS - 1 ? "" : edge(bars[b].to, Math.ceil);
    update();
  }

  const chart = $("#histogram svg"), barAt = event => bars.findIndex(({ bar }) => bar.contains(document.elementFromPoint(event.clientX, event.clientY)));
  let start = -1;
  chart.addEventListener("pointerdown", event => { start = barAt(event); });
  chart.addEventListener("pointerup", event => {
    const end = barAt(event);
    if (start >= 0 && end >= 0) {
      const isChosen = start === end && $$("[aria-pressed=true]", chart).length === 1 && bars[start].bar.getAttribute("aria-pressed") === "true";
      if (isChosen) { fields.low.value = fields.high.value = ""; update(); } else chooseBars(start, end);
    }
    start = -1;
  });
  chart.addEventListener("keydown", event => {
    const i = bars.findIndex(({ bar }) => bar === document.activeElement);
    if (i < 0) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      if (event.shiftKey) chooseBars(Math.min(i, bars.findIndex(({ bar }) => bar.getAttribute("aria-pressed") === "true") >>> 0), i);
      else if (bars[i].bar.getAttribute("aria-pressed") === "true") { fields.low.value = fields.high.value = ""; update(); } else chooseBars(i, i);
    } else if (step && bars[i + step]) {
      bars[i].bar.setAttribute("tabindex", -1);
      bars[i + step].bar.setAttribute("tabindex", 0);
      bars[i + step].bar.focus();
    } else return;
    event.preventDefault();
  });

  // ---- Viewer ----------------------------------------------------------------------------------------------------

  const viewer = $("#viewer"), stage = $(".stage", viewer), sheet = $(".sheet", viewer), tools = $(".tools", viewer);
  let current = null, zoom = 1;
  const field = name => $(`[name=${name}]`, tools);

  function open(index) {
    current = cards[index];
    fill();
    if (!viewer.open) viewer.showModal();
    fit(1);
    $("#viewer-title").focus();
  }

  function step(by) {
    const next = shown[shown.indexOf(current) + by];
    if (next) show(next);
  }

  /** Show another image in the open viewer. */
  function show(card) {
    current = card;
    fill();
    fit(1);
  }

  function fill() {
    const card = current, place = shown.indexOf(card);
    viewer.className = card.verdict;
    $("#viewer-title").textContent = `${place + 1} of ${whole(shown.length)}: ${fullName(card)}`;
    $("[data-do=previous]").disabled = place <= 0;
    $("[data-do=next]").disabled = place < 0 || place >= shown.length - 1;
    for (const [kind, name] of [["image", "Image"], ["map", "Anomaly map"], ["outline", "Mask outline"], ["truth", "Known defect"], ["unseen", "Not inspected"]]) {
      const layer = $(`.${kind}`, sheet);
      if (card[kind]) layer.src = card[kind]; else layer.removeAttribute("src");
      layer.alt = card[kind] && kind === "image" ? `${name} ${fullName(card)}` : "";
      field(kind).closest("label").hidden = !card[kind];
    }
    field("boxes").closest("label").hidden = !card.regions;
    field("opacity").closest("label").hidden = $(".scale", tools).hidden = !card.map;
    drawBoxes();
    showLayers();
    const missing = $(".missing", viewer);
    sheet.hidden = !card.image && !card.map;
    missing.hidden = !sheet.hidden;
    missing.textContent = card.problem || "There is no picture.";
    $(".verdict", viewer).replaceChildren(tag(card));
    $(".decision", viewer).textContent = card.decision;
    const facts = [["Group", several && groups[card.group].name], ["Note", card.note], ["Anomaly score", card.score != null && number(card.score)],
      ["Image threshold", card.score != null && number((card.judged || groups[card.group]).threshold)], ["Good images", card.rarity], ["Regions", card.extent],
      ["Image size", card.size && `${card.size[1]} × ${card.size[0]} pixels`], ["Inspected", card.inspected && `${Math.round(100 * card.inspected)} % of the pixels; defects under the stripes are not found`], ["File", card.path]];
    $(".numbers", viewer).replaceChildren(...facts.filter(([, value]) => value).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    $(".problem", viewer).textContent = card.problem || "";
    fillNearest(card.nearest);
    fillAreas(card);
    const file = $(".file", viewer);
    file.hidden = !card.link;
    if (card.link) file.href = card.link;
    $(".side", viewer).scrollTop = 0;
    review?.show(card);
  }

  function fillNearest(near) {
    $(".near", viewer).hidden = !near;
    if (!near) return;
    const crop = (source, alt, caption) => source ? make("figure", {}, make("img", { src: source, alt }), make("figcaption", {}, caption)) : null;
    $(".pair", viewer).replaceChildren(...[
      crop(near.patch, "Most anomalous patch of this image", "this image"),
      crop(near.nominal, "Nearest patch of a good image", `good: ${near.short}`)].filter(Boolean));
    $(".near .note", viewer).textContent = `${near.problem ? `${near.problem} ` : ""}${near.name ? `Training image: ${near.name}` : ""}`;
  }

  function fillAreas(card) {
    const areas = $(".areas", viewer), n = card.n || 0, listed = card.regions || [];
    areas.hidden = !n;
    if (!n) return;
    $("h3", areas).textContent = listed.length < n ? `${listed.length} of ${whole(n)} regions, most anomalous first` : "Regions, most anomalous first";
    $("ol", areas).replaceChildren(...listed.map(([top, left, bottom, right, area], i) => {
      const button = make("button", { type: "button" }, `${i + 1}: ${whole(area)} pixels, box ${right - left} × ${bottom - top} at x ${left}, y ${top}`);
      const mark = on => $$("rect.region", sheet)[i].classList.toggle("chosen", on);
      for (const [type, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) button.addEventListener(type, () => mark(on));
      button.addEventListener("click", () => { fit(Math.max(zoom, 2)); centre((left + right) / 2, (top + bottom) / 2); });
      return make("li", {}, button);
    }));
  }

  /** Draw the boxes of the regions. */
  function drawBoxes() {
    const svg = $(".boxes", sheet), [height, width] = current.size || [1, 1];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    (current.regions || []).forEach(([top, left, bottom, right], i) => svg.append(
      shape("rect", { class: "region", x: left, y: top, width: right - left, height: bottom - top }),
      shape("text", { x: left, y: top, dy: -3, "data-number": i + 1 }, String(i + 1))));
  }

  function showLayers() {
    for (const kind of ["image", "map", "outline", "truth", "unseen"]) $(`.${kind}`, sheet).hidden = !field(kind).checked || !current[kind];
    $(".map", sheet).style.opacity = field("opacity").value / 100;
    const boxes = $(".boxes", sheet);
    boxes.toggleAttribute("hidden", !field("boxes").checked);
  }

  /** Show the image as large as the stage, times a zoom factor. */
  function fit(factor) {
    if (!current || !viewer.open) return;
    zoom = Math.max(1, Math.min(8, factor));
    const [height, width] = current.size || [1, 1];
    const scaled = Math.min((stage.clientWidth - 4) / width, (stage.clientHeight - 4) / height) * zoom;
    sheet.style.width = `${Math.max(1, width * scaled)}px`;
    sheet.style.height = `${Math.max(1, height * scaled)}px`;
    const letter = 14 / scaled, stroke = 3 / scaled;
    for (const text of $$(".boxes text", sheet)) { text.style.fontSize = `${letter}px`; text.style.strokeWidth = stroke; }
    $("[data-do=smaller]").disabled = zoom <= 1;
    $("[data-do=larger]").disabled = zoom >= 8;
  }

  function centre(x, y) {
    const [height, width] = current.size;
    stage.scrollTo(x / width * sheet.clientWidth - stage.clientWidth / 2, y / height * sheet.clientHeight - stage.clientHeight / 2);
  }

  // Moving the slider shows the map: otherwise the slider has no visible effect.
  tools.addEventListener("input", event => { if (event.target === field("opacity")) field("map").checked = true; showLayers(); });
  viewer.addEventListener("click", event => {
    const what = event.target.closest("[data-do]")?.dataset.do;
    if (what === "close") viewer.close();
    if (what === "previous") step(-1);
    if (what === "next") step(1);
    if (what === "smaller") fit(zoom / 1.5);
    if (what === "larger") fit(zoom * 1.5);
  });
  viewer.addEventListener("keydown", event => {
    // Arrow keys belong to the slider, to a text, and to the image if it is larger than the stage.
    if (event.target.matches("[type=range], textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target === stage && zoom > 1) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { step(by); event.preventDefault(); }
  });
  // The focus returns to the card of the image that was open last.
  viewer.addEventListener("close", () => {
    review?.closed();
    const parent = mode === "grid" ? grid : rows, place = shown.indexOf(current);
    if (place >= nRendered) render(place + 1 - nRendered);
    const button = $(`[data-index="${current.index}"] button`, parent) || $("button", parent);  // or the first of the filter
    if (button) { button.focus({ preventScroll: true }); button.scrollIntoView({ block: "nearest" }); }
  });
  window.addEventListener("resize", () => fit(zoom));

  // ---- Print -----------------------------------------------------------------------------------------------------

  /** Put all filtered cards in the grid. */
  function renderAll() {
    if (mode === "grid") render(shown.length);
    else if (!grid.childElementCount) grid.append(...shown.map(cardOf));
  }
  /** Wait until a picture is loaded, or cannot be loaded. `decode` alone may end before that on a busy machine. */
  function loaded(picture) {
    return new Promise(done => {
      picture.addEventListener("load", done, { once: true });
      picture.addEventListener("error", done, { once: true });
      if (picture.complete) done();
    });
  }
  /** Print when all pictures are there. Browsers load pictures below the window by themselves only in part. */
  async function print() {
    renderAll();
    const pictures = $$("img", grid);
    for (const picture of pictures) { picture.loading = "eager"; picture.decoding = "sync"; }
    await Promise.all(pictures.map(loaded));
    await Promise.allSettled(pictures.map(picture => picture.decode()));
    for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);  // they are drawn before they are printed
    window.print();
  }
  window.addEventListener("beforeprint", renderAll);
  window.addEventListener("afterprint", () => { if (mode === "table") grid.replaceChildren(); });
  $("#print").addEventListener("click", print);
  document.addEventListener("keydown", event => {
    if ((event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "p" && !viewer.open) {
      event.preventDefault();
      print();
    }
  });

  // ---- Start -----------------------------------------------------------------------------------------------------

  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  if (window.matchMedia("(max-width: 860px)").matches) $("#controls").open = false;
  $("main").hidden = cards.length === 0;
  drawHistogram();
  update();
})();
