// The page: table (sort, filter), dossiers drawn when they come into view, grading by keyboard, the blind test.

const body = document.querySelector("#candidates tbody");
const articles = Array.from(document.querySelectorAll("article"));
const $ = id => document.getElementById(id);

if (body) start();

function start() {
  const rows = Array.from(body.rows);  // by index of candidate, as `articles`
  const grades = new Grades(PAGE.keys);
  const columns = Array.from(document.querySelectorAll("#candidates th"), th => th.dataset.name);
  const value = (i, column) => column === "grade" ? grades.given[i].grade
    : rows[i].cells[columns.indexOf(column)].dataset.sort;
  let order = rows.map((_, i) => i), shown = order, current = 0;

  // ---- drawing
  const drawn = new Set();
  function draw(i) {
    if (drawn.has(i)) return;
    drawn.add(i);
    articles[i].append(...build(JSON.parse(articles[i].querySelector("script").textContent)));
    articles[i].classList.add("drawn");
  }
  const eye = new IntersectionObserver(seen => {
    for (const {isIntersecting, target} of seen) if (isIntersecting) draw(articles.indexOf(target));
  }, {rootMargin: "900px"});
  articles.forEach(article => eye.observe(article));
  addEventListener("beforeprint", () => shown.forEach(draw));

  // ---- order and filter
  function arrange() {
    body.append(...order.map(i => rows[i]));
    $("dossiers").append(...order.map(i => articles[i]));
  }
  function sortBy(th) {
    const down = th.getAttribute("aria-sort") === "ascending", text = th.classList.contains("text");
    document.querySelectorAll("#candidates th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // what was not measured stays last
      return (text ? a.localeCompare(b) : a - b) * (down ? -1 : 1);
    };
    order = [...order].sort((a, b) => compare(value(a, th.dataset.name), value(b, th.dataset.name)));
    arrange();
    filter();
  }
  document.querySelectorAll("#candidates th button").forEach(button =>
    button.addEventListener("click", () => sortBy(button.closest("th"))));

  function filter() {
    const {keep, wrong} = conditions($("filter").value, columns, value);
    $("filter").classList.toggle("wrong", wrong !== "");
    shown = order.filter(i => keep.every(test => test(i, rows[i])));
    const visible = new Set(shown);
    rows.forEach((row, i) => { row.hidden = articles[i].hidden = !visible.has(i); });
    $("filtered").textContent = wrong || `${shown.length} of ${rows.length} shown`;
    if (!visible.has(current) && shown.length) select(shown[0], false);
  }
  $("filter").addEventListener("input", filter);

  // ---- the current candidate
  function select(i, scroll = true) {
    for (const list of [rows, articles]) list[current].classList.remove("current");
    current = i;
    for (const list of [rows, articles]) list[current].classList.add("current");
    $("now").textContent = articles[i].querySelector("h3").textContent;
    $("comment").value = grades.given[i].comment;
    if (!scroll) return;
    const at = shown.indexOf(i);
    shown.slice(Math.max(at - 2, 0), at + 2).forEach(draw);  // so that nothing above it grows later
    articles[i].scrollIntoView();
    requestAnimationFrame(() => articles[i].scrollIntoView());
  }
  function step(by) {
    const at = shown.indexOf(current), next = shown[Math.min(Math.max(at + by, 0), shown.length - 1)];
    if (next !== undefined) select(next);
  }
  body.addEventListener("click", event => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    select(articles.findIndex(article => `#${article.id}` === link.getAttribute("href")));
  });
  articles.forEach((article, i) => article.addEventListener("click", () => { if (current !== i) select(i, false); }));

  // ---- grading
  const fakes = PAGE.blind ? JSON.parse(atob(PAGE.blind)) : [];
  const closed = i => grades.revealed && fakes.some(fake => fake.index === i);
  function grade(letter) {
    if (closed(current)) { say("This is an injected fake, and you have seen the key: its grade stays."); return; }
    grades.set(current, {grade: letter});
    show(current);
    step(1);
  }
  function show(i) {
    const {grade: letter, comment} = grades.given[i];
    for (const cell of [rows[i].querySelector(".grade"), articles[i].querySelector(".grade")]) {
      cell.textContent = letter;
      cell.dataset.grade = letter;
    }
    rows[i].querySelector(".grade").closest("td").dataset.sort = letter;
    articles[i].querySelector(".said").textContent = comment;
    if (i === current) $("comment").value = comment;
    progress();
  }
  function progress() {
    const counts = grades.counts(), done = Object.values(counts).reduce((a, b) => a + b, 0);
    const each = Object.entries(counts).map(([letter, n]) => `${letter} ${n}`).join(" · ");
    $("progress").textContent = `${done} of ${rows.length} graded · ${each}`;
    $("kept").hidden = grades.kept;
  }
  const say = text => { $("message").textContent = text; };
  function undo() {
    const i = grades.undo();
    if (i == null) { say("Nothing to undo."); return; }
    show(i);
    select(i);
  }
  $("comment").maxLength = PAGE.max_comment;
  $("comment").addEventListener("change", () => { grades.set(current, {comment: $("comment").value}); show(current); });

  // ---- files
  function save() {
    const url = URL.createObjectURL(new Blob([grades.csv()], {type: "text/csv"}));
    const link = html("a", {href: url, download: `grades-${PAGE.run_id.replace(/[^\w-]/g, "_").slice(0, 40)}.csv`});
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    say("Saved.");
  }
  $("load").addEventListener("change", async () => {
    const [file] = $("load").files;
    if (!file) return;
    try {
      const [taken, strangers] = grades.read(await file.text());
      rows.forEach((_, i) => show(i));
      say(`${taken} rows taken over${strangers ? `; ${strangers} are of no candidate here` : ""}.`);
    } catch (error) { say(`${file.name}: ${error.message}`); }
    $("load").value = "";
  });

  // ---- the blind test
  function reveal() {
    if (!fakes.length) return;
    grades.revealed = true;
    grades.store();
    const percent = x => Number.isFinite(x) ? `${(100 * x).toFixed(0)} %` : "";
    const lines = completeness(fakes, grades.given).map(bin => {
      const all = bin.low === 0 && bin.high === Infinity;
      const label = all ? "all" : bin.high === Infinity ? `≥ ${bin.low}` : `${bin.low}–${bin.high}`;
      const cells = [label, bin.n, bin.graded, ...bin.counts, percent(bin.share), bin.interval.map(percent).filter(Boolean).join("–")];
      return html("tr", {}, ...cells.map(cell => html("td", {}, String(cell))));
    });
    $("completeness").querySelector("tbody").replaceChildren(...lines);
    for (const {index, snr, wave} of fakes) {
      articles[index].querySelector(".truth").textContent = `injected fake: ${wave.toFixed(1)} Å, S/N ${snr.toFixed(1)}`;
      rows[index].classList.add("fake");
    }
    $("blind").hidden = false;
    for (const button of document.querySelectorAll("[data-do=reveal]")) button.disabled = true;
  }

  // ---- keys and buttons
  const actions = {
    next: () => step(1), previous: () => step(-1), undo, save,
    load: () => $("load").click(), reveal: () => { reveal(); $("blind").scrollIntoView(); },
    open: () => { const next = shown.find(i => !grades.given[i].grade); if (next !== undefined) select(next); },
    note: () => $("comment").focus(), find: () => $("filter").focus(), help: () => { $("keys").hidden = !$("keys").hidden; },
    clear: () => grade(""),
  };
  for (const letter of Object.keys(PAGE.grades)) actions[letter] = () => grade(letter);
  const KEYS = {j: "next", k: "previous", a: "A", b: "B", c: "C", r: "R", u: "undo", x: "clear", n: "open", m: "note",
                "/": "find", "?": "help"};
  const act = name => { say(""); actions[name](); };
  document.querySelectorAll("[data-do]").forEach(button => button.addEventListener("click", () => act(button.dataset.do)));
  addEventListener("keydown", event => {
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape" || event.key === "Enter") event.target.blur();
      return;
    }
    const name = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act(name);
  });

  rows.forEach((_, i) => show(i));
  const asked = articles.findIndex(article => `#${article.id}` === location.hash);
  select(Math.max(asked, 0), asked >= 0);
  filter();
  if (grades.revealed) reveal();
  document.documentElement.dataset.ready = "yes";
}

// The tests that a filter's words stand for: `column>number`, `column=text`, or text anywhere in the row.
function conditions(text, columns, value) {
  const keep = [];
  for (const word of text.trim().split(/\s+/).filter(Boolean)) {
    const [, name, sign, limit] = /^([A-Za-z_0-9]+)(>=|<=|!=|>|<|=)(.*)$/.exec(word) || [];
    if (!name) { keep.push((_, row) => row.textContent.toLowerCase().includes(word.toLowerCase())); continue; }
    if (!columns.includes(name)) return {keep, wrong: `no column ${name}; there are ${columns.join(", ")}`};
    const number = Number(limit);
    if (/[<>]/.test(sign) && (limit === "" || Number.isNaN(number))) return {keep, wrong: `${name}${sign}: a number is missing`};
    const same = found => limit !== "" && !Number.isNaN(number) && found !== "" ? Number(found) === number
      : found.toLowerCase() === limit.toLowerCase();
    const test = {">": v => v > number, "<": v => v < number, ">=": v => v >= number, "<=": v => v <= number}[sign];
    keep.push(i => {
      const found = value(i, name);
      if (!test) return same(found) === (sign === "=");
      return found !== "" && test(Number(found));
    });
  }
  return {keep, wrong: ""};
}
