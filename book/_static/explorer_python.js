// Python for the explorers of a page: one worker for all of them, started by the first touch of a control.
// Of what a card asks, only its newest question waits. A classic script: modules do not load from file://.

class ExplorerPython {
  state = "off"; // off, booting, ready or failed
  reason = ""; // why it failed
  waiting = new Map(); // card -> {ticket, values, table}
  asked = null; // the card whose question is being answered

  // urls: of the worker, of Pyodide's folder and of the package's archive; report: called when the state changes
  constructor(urls, report) {
    this.urls = urls;
    this.report = report;
  }

  start() {
    if (this.state === "booting" || this.state === "ready") return;
    this.set("booting");
    this.worker = new Worker(this.urls.worker, { type: "module" });
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = (event) => this.fail(event.message || "its worker did not load");
    this.worker.postMessage({ boot: { pyodide: this.urls.pyodide, archive: this.urls.archive } });
  }

  ask(card, question) {
    this.waiting.set(card, question);
    if (this.state === "off") this.start();
    this.next();
  }

  drop(card) {
    this.waiting.delete(card);
  }

  isFor(card) {
    return this.asked === card || this.waiting.has(card);
  }

  next() {
    if (this.state !== "ready" || this.asked || !this.waiting.size) return;
    const [card, { ticket, values, table }] = this.waiting.entries().next().value;
    this.waiting.delete(card);
    this.asked = card;
    this.worker.postMessage({ ticket, reference: card.reference, values: JSON.stringify(values), table });
  }

  hear({ ready, ticket, answer, failed }) {
    if (failed) return this.fail(failed);
    const card = this.asked;
    this.asked = null;
    if (ready) this.set("ready");
    this.next(); // Python computes the newest values while Plotly draws these
    card?.hear(ticket, JSON.parse(answer));
  }

  fail(reason) {
    this.worker.terminate();
    this.asked = null;
    this.reason = `${this.state === "booting" ? "Python did not start in this browser" : "Python stopped"}: ${reason}`;
    this.set("failed");
  }

  set(state) {
    this.state = state;
    this.report();
  }
}
