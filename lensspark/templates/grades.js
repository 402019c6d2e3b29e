// Grades: kept in the browser where it allows that, undone step by step, written to and read from CSV.

const COLUMNS = ["plate", "mjd", "fiberid", "run2d", "grade", "comment"];
const SHELF = `lensspark-grades-${PAGE.run_id}`;
const isGrade = letter => Object.hasOwn(PAGE.grades, letter);
const keyOf = values => JSON.stringify(values.slice(0, 4).map(String));

class Grades {
  constructor(keys) {
    this.keys = keys;  // [plate, mjd, fiberid, run2d] of each candidate
    this.given = keys.map(() => ({grade: "", comment: ""}));
    this.history = [];
    this.revealed = false;
    this.closed = new Set();  // whose grade stays: fakes that have been revealed
    this.kept = true;  // in the browser's storage
    this.load();
  }
  load() {
    try {
      const saved = JSON.parse(localStorage.getItem(SHELF) || "{}");
      this.revealed = saved.revealed === true;
      this.keys.forEach((key, i) => {
        const {grade, comment} = (saved.grades || {})[keyOf(key)] || {};
        this.given[i] = {grade: isGrade(grade) ? grade : "", comment: String(comment || "")};
      });
    } catch { this.kept = false; }
  }
  store() {
    const grades = {};
    this.given.forEach((given, i) => { if (given.grade || given.comment) grades[keyOf(this.keys[i])] = given; });
    try {
      localStorage.setItem(SHELF, JSON.stringify({revealed: this.revealed, grades}));
      this.kept = true;
    } catch { this.kept = false; }
  }
  set(i, change) {
    const grade = this.closed.has(i) ? this.given[i].grade : change.grade ?? this.given[i].grade;
    this.history.push([i, this.given[i]]);
    this.given[i] = {...this.given[i], ...change, grade};
    this.store();
  }
  // The fakes are known now: what they were given stays, and nothing of before is undone.
  reveal(fakes) {
    this.closed = new Set(fakes);
    this.history = [];
    this.revealed = true;
    this.store();
  }
  // Takes the last change back; the candidate that it concerned, or null.
  undo() {
    const last = this.history.pop();
    if (!last) return null;
    this.given[last[0]] = last[1];
    this.store();
    return last[0];
  }
  csv() {
    const special = value => /[",\r\n]/.test(value) || value !== value.trim();
    const quoted = value => special(value) ? `"${value.replaceAll('"', '""')}"` : value;
    const rows = this.keys.map((key, i) => [...key, this.given[i].grade, this.given[i].comment].map(String))
      .filter(row => row[4] || row[5]);
    return [COLUMNS, ...rows].map(row => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  }
  // Takes the grades of a CSV over; [number taken, number of rows that are no candidate here]. Throws on a wrong file.
  read(text) {
    const [head, ...rows] = parseCsv(text.replace(/^\ufeff/, ""));
    const place = COLUMNS.map(name => (head || []).map(cell => cell.trim()).indexOf(name));
    if (place.includes(-1)) throw new Error(`expected the header ${COLUMNS.join(",")}`);
    const index = new Map(this.keys.map((key, i) => [keyOf(key), i])), taken = new Map();
    let strangers = 0;
    rows.forEach((row, n) => {
      if (row.length !== head.length) throw new Error(`row ${n + 2}: ${row.length} values, expected ${head.length}`);
      const cells = place.map(at => row[at].trim());
      const grade = cells[4].toUpperCase(), i = index.get(keyOf([...cells.slice(0, 3).map(Number), cells[3]]));
      if (grade && !isGrade(grade)) {
        const known = Object.keys(PAGE.grades).join(", ");
        throw new Error(`row ${n + 2}: grade “${cells[4].slice(0, 40)}”, expected ${known}`);
      }
      if (i === undefined) { strangers++; return; }
      if (taken.has(i)) throw new Error(`row ${n + 2}: ${cells.slice(0, 4).join("-")} is there twice`);
      taken.set(i, {grade, comment: cells[5].slice(0, PAGE.max_comment)});
    });
    for (const [i, change] of taken) this.set(i, change);
    return [taken.size, strangers];
  }
  counts() {
    const count = Object.fromEntries(Object.keys(PAGE.grades).map(grade => [grade, 0]));
    for (const {grade} of this.given) if (grade) count[grade]++;
    return count;
  }
}

function parseCsv(text) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  const endRow = () => { row.push(cell); if (row.length > 1 || cell) rows.push(row); row = []; cell = ""; };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += '"'; i++; } else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === ",") { row.push(cell); cell = ""; }
    else if (c === "\n" || c === "\r") { if (c === "\r" && text[i + 1] === "\n") i++; endRow(); }
    else cell += c;
  }
  if (quoted) throw new Error("a quotation mark is not closed");
  if (cell || row.length) endRow();
  return rows;
}

// Completeness on the injected fakes by S/N, as lensspark.grades.completeness counts it.
function completeness(fakes, given) {
  const edges = PAGE.snr_edges.map(edge => edge == null ? Infinity : edge);
  const bins = edges.slice(1).map((high, i) => [edges[i], high]);
  return [...bins, [0, Infinity]].map(([low, high]) => {
    const inside = fakes.filter(fake => fake.snr >= low && fake.snr < high).map(fake => given[fake.index].grade);
    const counts = Object.keys(PAGE.grades).map(grade => inside.filter(other => other === grade).length);
    const graded = counts.reduce((a, b) => a + b, 0), found = inside.filter(grade => PAGE.found.includes(grade)).length;
    const p = found / graded, centre = (p + 0.5 / graded) / (1 + 1 / graded);
    const half = Math.sqrt(p * (1 - p) / graded + 0.25 / graded ** 2) / (1 + 1 / graded);
    return {low, high, n: inside.length, graded, counts, found, share: p,
            interval: [Math.max(centre - half, 0), Math.min(centre + half, 1)]};
  });
}
