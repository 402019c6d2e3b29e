// The page: table (sort, filter), dossiers drawn when they come into view, grading by keyboard, the blind test.

const $ = id => document.getElementById(id);
const say = text => { $("message").textContent = text; };
const KEYS = {j: "next", k: "previous", u: "undo", x: "clear", n: "open", m: "note", "/": "find", "?": "help"};
for (const letter of Object.keys(PAGE.grades)) KEYS[letter.toLowerCase()] = letter;

class Page {
  constructor() {
    this.body = document.querySelector("#candidates tbody");
    this.heads = Array.from(document.querySelectorAll("#candidates th"));
    this.columns = this.heads.map(th => th.dataset.name);
    this.rows = Array.from(this.body.rows);  // by index of the candidate, as `articles`
    this.articles = Array.from(document.querySelectorAll("article"));
    this.grades = new Grades(PAGE.keys);
    this.fakes = PAGE.blind ? JSON.parse(atob(PAGE.blind)) : [];
    this.order = this.shown = this.rows.map((_, i) => i);
    this.current = 0;
    this.drawn = new Set();
    this.actions = {
      next: () => this.step(1), previous: () => this.step(-1), undo: () => this.undo(), clear: () => this.grade(""),
      open: () => this.open(), note: () => $("comment").focus(), find: () => $("filter").focus(),
      help: () => { $("keys").hidden = !$("keys").hidden; }, save: () => this.save(), load: () => $("load").click(),
      reveal: () => { this.reveal(); $("blind").scrollIntoView(); },
    };
    for (const letter of Object.keys(PAGE.grades)) this.actions[letter] = () => this.grade(letter);
    this.listen();
    this.rows.forEach((_, i) => this.show(i));
    this.progress();
    const asked = this.named(location.hash);
    this.select(Math.max(asked, 0), asked >= 0);
    this.filter();
    if (this.grades.revealed) this.reveal();
  }

  listen() {
    const eye = new IntersectionObserver(seen => {
      for (const {isIntersecting, target} of seen) if (isIntersecting) this.draw(this.articles.indexOf(target));
    }, {rootMargin: "900px"});
    this.articles.forEach((article, i) => {
      eye.observe(article);
      article.addEventListener("click", () => { if (this.current !== i) this.select(i, false); });
    });
    addEventListener("beforeprint", () => this.shown.forEach(i => this.draw(i)));
    for (const th of this.heads) th.firstElementChild.addEventListener("click", () => this.sort(th));
    document.addEventListener("click", event => {  // names in the table, dots of the sky map
      const link = event.target.closest("a"), i = link ? this.named(link.getAttribute("href")) : -1;
      if (i < 0) return;
      event.preventDefault();
      this.select(i);
    });
    for (const button of document.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => this.act(button.dataset.do));
    }
    addEventListener("keydown", event => this.key(event));
    $("filter").addEventListener("input", () => this.filter());
    $("load").addEventListener("change", () => this.load());
    $("comment").maxLength = PAGE.max_comment;
    $("comment").addEventListener("change", () => {
      this.grades.set(this.current, {comment: $("comment").value});
      this.refresh(this.current);
    });
  }

  act(name) { say(""); this.actions[name](); }
  key(event) {
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape" || event.key === "Enter") event.target.blur();
      return;
    }
    const name = KEYS[event.key.toLowerCase()];
    if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.act(name);
  }

  // ---- table and dossiers
  named(hash) { return this.articles.findIndex(article => `#${article.id}` === hash); }
  value(i, column) {
    if (column === "grade") return this.grades.given[i].grade;
    return this.rows[i].cells[this.columns.indexOf(column)].dataset.sort;
  }
  draw(i) {
    if (this.drawn.has(i)) return;
    this.drawn.add(i);
    this.articles[i].append(...build(JSON.parse(this.articles[i].querySelector("script").textContent)));
    this.articles[i].classList.add("drawn");
  }
  sort(th) {
    const down = th.getAttribute("aria-sort") === "ascending", text = th.classList.contains("text");
    for (const other of this.heads) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // what was not measured stays last
      return (text ? a.localeCompare(b) : a - b) * (down ? -1 : 1);
    };
    const values = this.rows.map((_, i) => this.value(i, th.dataset.name));
    this.order = [...this.order].sort((a, b) => compare(values[a], values[b]));
    this.body.append(...this.order.map(i => this.rows[i]));
    $("dossiers").append(...this.order.map(i => this.articles[i]));
    this.filter();
  }
  filter() {
    const {keep, wrong} = conditions($("filter").value, this.columns, (i, column) => this.value(i, column));
    $("filter").classList.toggle("wrong", wrong !== "");
    this.shown = this.order.filter(i => keep.every(test => test(i, this.rows[i])));
    const visible = new Set(this.shown);
    this.rows.forEach((row, i) => { row.hidden = this.articles[i].hidden = !visible.has(i); });
    $("filtered").textContent = wrong || `${this.shown.length} of ${this.rows.length} shown`;
    if (!visible.has(this.current) && this.shown.length) this.select(this.shown[0], false);
  }

  // ---- the current candidate
  select(i, scroll = true) {
    for (const list of [this.rows, this.articles]) {
      list[this.current].classList.remove("current");
      list[i].classList.add("current");
    }
    this.current = i;
    $("now").textContent = this.articles[i].querySelector("h3").textContent;
    $("comment").value = this.grades.given[i].comment;
    if (!scroll) return;
    const at = this.shown.indexOf(i);
    this.shown.slice(Math.max(at - 2, 0), at + 2).forEach(j => this.draw(j));  // nothing above it grows later
    this.articles[i].scrollIntoView();
  }
  step(by) {
    const at = this.shown.indexOf(this.current) + by;
    const next = this.shown[Math.min(Math.max(at, 0), this.shown.length - 1)];
    if (next !== undefined) this.select(next);
  }
  open() {
    const next = this.shown.find(i => !this.grades.given[i].grade);
    if (next === undefined) say("All are graded.");
    else this.select(next);
  }

  // ---- grades
  grade(letter) {
    if (this.grades.closed.has(this.current)) {
      say("This is an injected fake, and you have seen the key: its grade stays.");
      return;
    }
    this.grades.set(this.current, {grade: letter});
    this.refresh(this.current);
    this.step(1);
  }
  undo() {
    const i = this.grades.undo();
    if (i == null) { say("Nothing to undo."); return; }
    this.refresh(i);
    this.select(i);
  }
  show(i) {
    const {grade, comment} = this.grades.given[i];
    for (const cell of [this.rows[i].querySelector(".grade"), this.articles[i].querySelector(".grade")]) {
      cell.textContent = grade;
      cell.dataset.grade = grade;
    }
    this.articles[i].querySelector(".said").textContent = comment;
    if (i === this.current) $("comment").value = comment;
  }
  refresh(i) { this.show(i); this.progress(); }
  progress() {
    const counts = this.grades.counts(), done = Object.values(counts).reduce((a, b) => a + b, 0);
    const each = Object.entries(counts).map(([letter, n]) => `${letter} ${n}`).join(" · ");
    $("progress").textContent = `${done} of ${this.rows.length} graded · ${each}`;
    $("kept").hidden = this.grades.kept;
  }
  save() {
    const url = URL.createObjectURL(new Blob([this.grades.csv()], {type: "text/csv"}));
    const name = `grades-${PAGE.run_id.replace(/[^\w-]/g, "_").slice(0, 40)}.csv`;
    html("a", {href: url, download: name}).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    say(`Saved as ${name}.`);
  }
  async load() {
    const [file] = $("load").files;
    if (!file) return;
    try {
      const [taken, strangers] = this.grades.read(await file.text());
      this.rows.forEach((_, i) => this.show(i));
      this.progress();
      say(`${taken} rows taken over${strangers ? `; ${strangers} are of no candidate here` : ""}.`);
    } catch (error) { say(`${file.name}: ${error.message}`); }
    $("load").value = "";
  }

  // ---- the blind test
  reveal() {
    if (!this.fakes.length) return;
    this.grades.reveal(this.fakes.map(fake => fake.index));
    const bins = completeness(this.fakes, this.grades.given);
    $("completeness").querySelector("tbody").replaceChildren(...bins.map(line));
    for (const {index, snr, wave} of this.fakes) {
      const truth = `injected fake: ${wave.toFixed(1)} Å, S/N ${snr.toFixed(1)}`;
      this.articles[index].querySelector(".truth").textContent = truth;
      this.rows[index].classList.add("fake");
    }
    $("blind").hidden = false;
    for (const button of document.querySelectorAll("[data-do=reveal]")) button.disabled = true;
  }
}

// A row of the table of completeness.
function line({low, high, n, graded, counts, share, interval}) {
  const percent = x => Number.isFinite(x) ? `${(100 * x).toFixed(0)} %` : "";
  const label = high !== Infinity ? `${low}–${high}` : low === 0 ? "all" : `≥ ${low}`;
  const cells = [label, n, graded, ...counts, percent(share), interval.map(percent).filter(Boolean).join("–")];
  return html("tr", {}, ...cells.map(cell => html("td", {}, String(cell))));
}

// The tests that a filter's words stand for: `column>number`, `column=text`, or text anywhere in the row.
function conditions(text, columns, value) {
  const keep = [];
  for (const word of text.trim().split(/\s+/).filter(Boolean)) {
    const [, name, sign, limit] = /^([A-Za-z_0-9]+)(>=|<=|!=|>|<|=)(.*)$/.exec(word) || [];
    if (!name) {
      keep.push((_, row) => row.textContent.toLowerCase().includes(word.toLowerCase()));
      continue;
    }
    const number = limit === "" ? NaN : Number(limit);
    if (!columns.includes(name)) return {keep, wrong: `no column ${name}; there are ${columns.join(", ")}`};
    if (/[<>]/.test(sign) && Number.isNaN(number)) return {keep, wrong: `${name}${sign}: a number is missing`};
    keep.push(i => compares(value(i, name), sign, limit, number));
  }
  return {keep, wrong: ""};
}
function compares(found, sign, limit, number) {
  const same = Number.isNaN(number) || found === "" ? found.toLowerCase() === limit.toLowerCase()
    : Number(found) === number;
  if (sign === "=" || sign === "!=") return same === (sign === "=");
  if (found === "") return false;
  return {">": found > number, "<": found < number, ">=": found >= number, "<=": found <= number}[sign];
}

if (document.querySelector("#candidates")) {
  window.page = new Page();
  document.documentElement.dataset.ready = "yes";
}
