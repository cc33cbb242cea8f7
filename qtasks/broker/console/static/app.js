// The console: sign-in, navigation, and the page that the address names.
import { Component, Fragment, html, render, useEffect, useState } from "./lib/view.js";
import { lacks, readSession, session, signIn, signOut } from "./lib/api.js";
import { finishAll } from "./lib/leaving.js";
import { connection } from "./lib/live.js";
import { href, route } from "./lib/route.js";
import { Empty, Heading, Problem, ZoneSwitch } from "./parts/basic.js";
import { Dialogs } from "./parts/dialog.js";
import { Palette, Shortcuts } from "./parts/palette.js";
import { PAGES } from "./pages/index.js";

function App() {
  const [error, setError] = useState(null);
  const load = () => readSession().then(() => setError(null), setError);
  useEffect(() => {
    load();
  }, []);
  if (session.value === null) return html`<main class="center"><${Problem} error=${error} retry=${load} /></main>`;
  if (!session.value.signedIn) return html`<${SignIn} />`;
  return html`<${Fragment}><a class="skip" href="#main" onClick=${skip}>To the content</a><${Navigation} /><main id="main" tabindex="-1"><${Page} /></main><${Dialogs} /><${Palette} /><${Shortcuts} /><//>`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function SignIn() {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await signIn(new FormData(event.target).get("token").trim());
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  useEffect(() => {
    document.title = "Sign in · qtasks";
  }, []);
  return html`<main class="center"><form class="panel sign-in" onSubmit=${submit}>
    <h1>qtasks</h1>
    <p>${session.value.ended ? "The session has ended. Sign in again with a token of this broker." : "Sign in with a token of this broker."}</p>
    <label for="token">Token</label>
    <input id="token" name="token" type="password" autocomplete="current-password" required autofocus />
    <${Problem} error=${error} />
    <button type="submit" class="primary" disabled=${busy}>Sign in</button>
    <p class="note">A token is made with <code>qtasks broker token create NAME</code>, for looking only with <code>--read-only</code>.</p>
  </form></main>`;
}

function Navigation() {
  const [open, setOpen] = useState(false);
  const here = route.value.path[0] ?? "overview";
  useEffect(() => setOpen(false), [route.value]);
  const groups = [...new Set(PAGES.map((page) => page.group))];
  return html`<nav class=${open ? "open" : ""} aria-label="Pages">
    <div class="brand"><a href=${href("overview")}><img src="console/static/icon.svg" alt="" width="24" height="24" />qtasks</a>
      <button type="button" class="menu" aria-expanded=${open} aria-controls="pages" onClick=${() => setOpen(!open)}>Menu</button></div>
    <div id="pages">
      ${groups.map((group) => html`<ul key=${group} aria-label=${group}>${PAGES.filter((page) => page.group === group && !lacks(page.name)).map((page) => html`<li key=${page.name}>
        <a href=${href(page.name)} aria-current=${page.name === here ? "page" : null}>${page.title}</a></li>`)}</ul>`)}
      <${Footer} />
    </div>
  </nav>`;
}

const CONNECTION = { open: "live", waiting: "connecting", lost: "connection lost, trying again" };

function Footer() {
  const { role, account, service, version } = session.value;
  return html`<footer>
    <p class=${`connection ${connection.value}`}>${CONNECTION[connection.value]}</p>
    <p class="note">${service?.kind === "broker" ? "broker" : service?.url} ${account ? `· ${account}` : ""} · ${role}</p>
    <${ZoneSwitch} />
    ${session.value.canSignOut && html`<button type="button" class="plain" onClick=${() => finishAll().then(signOut)}>Sign out</button>`}
    <p class="note">qtasks ${version} · <kbd>?</kbd> keys</p>
  </footer>`;
}

function Page() {
  const { path } = route.value;
  const name = path[0] ?? "overview";
  const page = PAGES.find((one) => one.name === name);
  useEffect(() => {
    scrollTo(0, 0);
  }, [path.join("/")]);
  if (!page) return html`<${Heading} title="No such page" /><${Empty} title=${`There is no page “${name}”.`} />`;
  if (lacks(page.name) && !(page.isRare && session.value.service.kind !== "qstash")) return html`<${Heading} title=${page.title} /><${Empty} title="This service does not tell it.">The API of ${session.value.service.url} has no such view; a broker of qtasks has.<//>`;
  const View = path.length > 1 && page.detail ? page.detail : page.view;
  return html`<${Guard} at=${route.value} title=${page.title}><${View} key=${path.join("/")} id=${path[1]} /><//>`;
}

// What is shown of a page that throws an error, until another address is opened. All around it goes on working.
class Guard extends Component {
  componentDidCatch(error) {
    console.error(error);
    this.setState({ error, at: this.props.at });
  }

  render({ at, title, children }, failed) {
    if (!failed.error || failed.at !== at) return children;
    return html`<${Heading} title=${title} /><${Problem} error=${{ message: `This page failed: ${failed.error.message}` }} retry=${() => this.setState({ error: null })} />`;
  }
}

const root = document.getElementById("app");
root.replaceChildren(); // the text that stands there until now
render(html`<${App} />`, root);
