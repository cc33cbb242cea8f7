// The tasks of each application, as its dispatcher describes them, and a form to run one.
import { Fragment, html, useEffect, useMemo, useState } from "../lib/view.js";
import { isOperator, path, publish } from "../lib/api.js";
import { perMinute, plural, short, span } from "../lib/format.js";
import { useView } from "../lib/live.js";
import { brief, fromJson, parse, write } from "../lib/lossless.js";
import { labelled } from "../lib/call.js";
import { report } from "../lib/reports.js";
import { href, route } from "../lib/route.js";
import { Empty, Heading, Loaded, Panel, Problem, Status, Table, Time } from "../parts/basic.js";

export function Tasks() {
  const view = useView("tasks", {}, { everyMs: 15_000 });
  const figures = useFigures();
  return html`<${Heading} title="Tasks" note="What each application says of itself" />
    <${Loaded} view=${view}>${({ dispatchers }) => dispatchers.length === 0 ? html`<${Empty} title="No application is known yet" command="qtasks dev tasks.py">
      A broker learns of an application from the first message or schedule for it.<//>` : dispatchers.map((dispatcher) => html`<${Dispatcher} key=${dispatcher.prefix} dispatcher=${dispatcher} figures=${figures} />`)}<//>`;
}

function useFigures() {
  const overview = useView("overview", { minutes: 60 }, { everyMs: 5000 });
  const rows = overview.stale?.destinations ?? [];
  return useMemo(() => new Map(rows.map((row) => [row.destination, row])), [rows]);
}

function Dispatcher({ dispatcher, figures }) {
  const { prefix, manifest, error, timeMs } = dispatcher;
  const of = (task) => figures.get(prefix + task.name) ?? {};
  const columns = [
    { name: "name", title: "Task", wide: true, main: true, cell: (task) => html`<div><a class="target" href=${href(["tasks", task.name], { at: prefix })}>${task.name}</a> ${task.kind === "llm" && html`<span class="quiet">language model</span>`}<div class="quiet clamp">${task.doc.split("\n")[0]}</div></div>` },
    { name: "schedules", title: "Schedules", cell: (task) => task.schedules.map((schedule) => html`<div key=${schedule.id}><code>${schedule.cron.replace(/^(?:CRON_)?TZ=(\S+)\s+(.*)/, "$2 ($1)")}</code></div>`) },
    { name: "rate", title: "Per minute", number: true, cell: (task) => perMinute(of(task).perMinute) },
    { name: "duration", title: "Median, 95 %", number: true, cell: (task) => of(task).p50Ms == null ? "–" : `${span(of(task).p50Ms)}, ${span(of(task).p95Ms)}` },
    { name: "delivered", title: "Delivered", number: true, cell: (task) => short(of(task).delivered) },
    { name: "failed", title: "Failed", number: true, cell: (task) => of(task).failed ? html`<a class="bad" href=${href("messages", { filter: `task:${task.name} status:failed` })}>${short(of(task).failed)}</a>` : short(of(task).failed) },
  ];
  return html`<${Panel} id=${`at-${prefix}`} title=${prefix} note=${manifest ? html`${plural(manifest.tasks.length, "task")}, qtasks ${manifest.package}, asked <${Time} ms=${timeMs} />` : null}>
    ${error && html`<p class="pad"><span class="bad">No manifest:</span> ${error}</p>`}
    ${manifest && html`<${Table} caption=${`Tasks at ${prefix}`} columns=${columns} rows=${manifest.tasks} rowKey=${(task) => task.name} empty=${html`<${Empty} title="The application declares no task" />`} />`}
  <//>`;
}

export function Task({ id }) {
  const { at } = route.value.query;
  const view = useView("tasks", {}, { everyMs: 15_000 });
  return html`<${Loaded} view=${view}>${({ dispatchers }) => {
    const places = dispatchers.flatMap(({ prefix, manifest }) => (manifest?.tasks ?? []).filter((task) => task.name === id).map((task) => ({ prefix, task })));
    const place = places.find(({ prefix }) => prefix === at) ?? places[0];
    if (!place) return html`<${Heading} title=${id} /><${Empty} title=${`No application that answers now has a task “${id}”.`} />`;
    return html`<${TaskDetail} key=${place.prefix} ...${place} />`;
  }}<//>`;
}

function TaskDetail({ prefix, task }) {
  return html`<${Fragment}>
    <${Heading} title=${task.name} note=${html`at <code>${prefix}</code>, from module <code>${task.module}</code>`}>
      <a href=${href("messages", { filter: `task:${task.name}` })}>Messages</a>
      <a href=${href("failures", { filter: `task:${task.name}` })}>Failures</a>
    <//>
    <${Panel} id="declared" title="Declared as">
      <div class="pad"><pre class="raw" tabindex="0" aria-label="signature">${task.name}${task.signature}</pre>${task.doc && html`<p class="doc">${task.doc}</p>`}
      ${task.aliases.length > 0 && html`<p class="quiet">Earlier names: ${task.aliases.join(", ")}</p>`}
      ${task.searchable.length > 0 && html`<p class="quiet">Calls are found by ${task.searchable.map((name, index) => html`${index ? ", " : ""}<code key=${name}>arg.${name}:</code>`)}</p>`}
      ${task.schedules.map((schedule) => html`<p key=${schedule.id}>Runs at <code>${schedule.cron.replace(/^(?:CRON_)?TZ=(\S+)\s+(.*)/, "$2 ($1)")}</code>: <a href=${href(["schedules", schedule.id])}>${schedule.id}</a></p>`)}</div>
    <//>
    ${isOperator() && html`<${Panel} id="run" title="Run it">${task.refusal ? html`<p class="pad">It cannot be called from here: ${task.refusal}.</p>` : html`<${RunForm} prefix=${prefix} task=${task} />`}<//>`}
  <//>`;
}

const remembered = (prefix, task) => `qtasks.arguments.${prefix}${task.name}`;

function recall(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key)) ?? {};
  } catch {
    return {};
  }
}

function RunForm({ prefix, task }) {
  const key = remembered(prefix, task);
  const [texts, setTexts] = useState(() => recall(key));
  const [problems, setProblems] = useState({});
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [messageId, setMessageId] = useState(null);
  const run = async (event) => {
    event.preventDefault();
    setMessageId(null);
    const values = read(task.parameters, texts);
    setProblems(values.problems);
    if (Object.keys(values.problems).length > 0) {
      document.getElementById(`argument-${Object.keys(values.problems)[0]}`)?.focus();
      return;
    }
    setBusy(true);
    setError(null);
    try {
      const headers = await labelled(task.headers, task.searchable, values.values);
      const answer = await publish(prefix + task.name, { queue: task.queue, headers, body: envelope(task.envelope, values) });
      try {
        sessionStorage.setItem(key, JSON.stringify(texts));
      } catch {
        // a browser that keeps nothing
      }
      setMessageId(answer.messageId);
      report(`${task.name} is queued`);
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  return html`<form class="pad form" onSubmit=${run} noValidate>
    ${task.parameters.length === 0 && html`<p class="quiet">It takes no arguments.</p>`}
    ${task.parameters.map((parameter) => html`<${Field} key=${parameter.name} parameter=${parameter} text=${texts[parameter.name]} problem=${problems[parameter.name]} change=${(text) => setTexts({ ...texts, [parameter.name]: text })} />`)}
    <${Problem} error=${error} />
    <div class="actions"><button type="submit" class="primary" disabled=${busy}>Run ${task.name}</button>
      ${messageId && html`<${Outcome} key=${messageId} messageId=${messageId} refused=${(text) => setProblems(argumentProblem(task.parameters, text))} />`}</div>
  </form>`;
}

// What became of the call that was made here. `refused(error)` is called with the error of an attempt.
function Outcome({ messageId, refused }) {
  const { data } = useView(path`messages/${messageId}`, {}, { everyMs: 500 });
  const row = data?.row;
  useEffect(() => {
    if (row?.error) refused(row.error);
  }, [row?.error]);
  return html`<span role="status">${row ? html`<${Status} status=${row.status} /> ` : "Queued: "}<a class="mono" href=${href(["messages", messageId])}>${messageId}</a>${row?.error && html` <span class="bad">${row.error}</span>`}</span>`;
}

// The problem of one field, if the application says that it cannot take that argument: {name: text}.
function argumentProblem(parameters, error) {
  const [, name, text] = /argument '([^']+)' (.*)/.exec(error) ?? [];
  return parameters.some((parameter) => parameter.name === name) ? { [name]: `The application says: it ${text}` } : {};
}

// How a value is typed in: {kind: "text" | "choice" | "json", choices}. Text is for strings only; all else is JSON.
function control(schema) {
  if (schema?.enum) return { kind: "choice", choices: schema.enum.map((value) => write(fromJson(value))) };
  if (schema?.type === "boolean") return { kind: "choice", choices: ["true", "false"] };
  if (schema?.type === "string") return { kind: "text" };
  return { kind: "json", isLong: ["object", "array"].includes(schema?.type) || schema?.anyOf !== undefined || schema?.$ref !== undefined };
}

function Field({ parameter, text, problem, change }) {
  const { name, type, required } = parameter;
  const id = `argument-${name}`;
  const { kind, choices, isLong } = control(parameter.schema);
  const hint = "default" in parameter ? `without a value: ${brief(fromJson(parameter.default), 60)}` : required ? "" : "may be left out";
  const properties = { id, name, "aria-invalid": problem ? "true" : null, "aria-describedby": `${id}-hint`, onInput: (event) => change(event.target.value) };
  return html`<div class="field"><label for=${id}>${name} <code class="quiet">${type}</code>${required && html`<span class="quiet"> required</span>`}</label>
    ${kind === "choice" ? html`<select ...${properties} value=${text ?? ""}><option value="">${required ? "choose" : "leave out"}</option>${choices.map((choice) => html`<option key=${choice} value=${choice}>${choice}</option>`)}</select>`
      : isLong ? html`<textarea ...${properties} rows="4" spellcheck=${false} value=${text ?? ""} />`
      : html`<input ...${properties} type="text" autocomplete="off" spellcheck=${false} value=${text ?? ""} />`}
    <span id=${`${id}-hint`} class=${problem ? "bad" : "note"}>${problem ?? [isLong && "JSON", hint].filter(Boolean).join("; ")}</span></div>`;
}

// What was typed, as JSON texts: {args, kwargs, values, problems}, with the values by name. An empty field is left out.
function read(parameters, texts) {
  const args = [];
  const kwargs = [];
  const values = new Map();
  const problems = {};
  let isOpen = true; // arguments by position may still follow
  for (const parameter of parameters) {
    const { name, required, byPosition } = parameter;
    const text = texts[name] ?? "";
    const isText = control(parameter.schema).kind === "text";
    if (text === "" && !(isText && required)) {
      if (required) problems[name] = "A value is needed.";
      isOpen = isOpen && !byPosition;
      continue;
    }
    try {
      const value = isText ? JSON.stringify(text) : write(parse(text));
      values.set(name, isText ? text : parse(text));
      if (!byPosition) kwargs.push(`${JSON.stringify(name)}: ${value}`);
      else if (isOpen) args.push(value);
      else problems[name] = "An argument before it is left out, and it is passed by position.";
    } catch (error) {
      problems[name] = `This is not JSON (${error.message}). A text needs quotation marks.`;
    }
  }
  return { args, kwargs, values, problems };
}

// The body of a call: its model with arguments. Texts are put together, so that no number is converted.
function envelope(model, { args, kwargs }) {
  const members = parse(model).members.filter(([name]) => name !== "args" && name !== "kwargs").map(([name, value]) => `${JSON.stringify(name)}: ${write(value)}`);
  return `{${[...members, `"args": [${args.join(", ")}]`, `"kwargs": {${kwargs.join(", ")}}`].join(", ")}}`;
}
