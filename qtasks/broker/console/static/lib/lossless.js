// Reads JSON without converting its numbers: an identifier of 19 digits stays what it is.
//
// `parse(text)` gives objects as JsonObject (members in the order of the text), numbers as JsonNumber (the text itself), and arrays,
// strings, true, false and null as themselves. It throws SyntaxError for text that is not JSON.

export class JsonObject {
  constructor(members) {
    this.members = members;
  }

  get(name) {
    return this.members.findLast(([key]) => key === name)?.[1];
  }
}

export class JsonNumber {
  constructor(text) {
    this.text = text;
  }
}

const TOKEN = /[ \t\n\r]*(?:([{}[\],:])|("[^"\\\u0000-\u001f]*(?:\\.[^"\\\u0000-\u001f]*)*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)|(true|false|null))/y;
const WORDS = { true: true, false: false, null: null };
const DEEPEST = 500;

export function parse(text) {
  const reader = new Reader(text);
  const value = reader.value(0);
  reader.end();
  return value;
}

class Reader {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  next() {
    TOKEN.lastIndex = this.at;
    const match = TOKEN.exec(this.text);
    if (match === null) throw new SyntaxError(`not JSON at character ${this.at}`);
    this.at = TOKEN.lastIndex;
    return match;
  }

  peek() {
    const at = this.at;
    const match = this.next();
    this.at = at;
    return match[1];
  }

  end() {
    if (!/^[ \t\n\r]*$/.test(this.text.slice(this.at))) throw new SyntaxError(`not JSON at character ${this.at}`);
  }

  value(depth) {
    if (depth > DEEPEST) throw new SyntaxError("nested too deeply");
    const [, mark, string, number, word] = this.next();
    if (string !== undefined) return JSON.parse(string);
    if (number !== undefined) return new JsonNumber(number);
    if (word !== undefined) return WORDS[word];
    if (mark === "{") return new JsonObject(this.list("}", () => this.member(depth)));
    if (mark === "[") return this.list("]", () => this.value(depth + 1));
    throw new SyntaxError(`not JSON at character ${this.at}`);
  }

  member(depth) {
    const name = this.next()[2];
    if (name === undefined || this.next()[1] !== ":") throw new SyntaxError(`not JSON at character ${this.at}`);
    return [JSON.parse(name), this.value(depth + 1)];
  }

  list(close, item) {
    const items = [];
    if (this.peek() === close) {
      this.next();
      return items;
    }
    for (;;) {
      items.push(item());
      const mark = this.next()[1];
      if (mark === close) return items;
      if (mark !== ",") throw new SyntaxError(`not JSON at character ${this.at}`);
    }
  }
}

// `value` on one line, as Python shows it, at most `width` characters.
export function brief(value, width = 80) {
  const text = write(value);
  return text.length <= width ? text : `${text.slice(0, width - 1)}…`;
}

// `value` as JSON on one line.
export function write(value) {
  if (value instanceof JsonNumber) return value.text;
  if (value instanceof JsonObject) return `{${value.members.map(([name, item]) => `${JSON.stringify(name)}: ${write(item)}`).join(", ")}}`;
  if (Array.isArray(value)) return `[${value.map(write).join(", ")}]`;
  return JSON.stringify(value);
}

// A value that `JSON.parse` gave, in the form of `parse`.
export function fromJson(value) {
  return parse(JSON.stringify(value));
}

// `value` as JSON on several lines.
export function pretty(value, indent = "") {
  const inner = `${indent}  `;
  if (value instanceof JsonObject && value.members.length) {
    return `{\n${value.members.map(([name, item]) => `${inner}${JSON.stringify(name)}: ${pretty(item, inner)}`).join(",\n")}\n${indent}}`;
  }
  if (Array.isArray(value) && value.length) return `[\n${value.map((item) => inner + pretty(item, inner)).join(",\n")}\n${indent}]`;
  return write(value);
}
