// The page's side of the explorers: binds each card's native controls to its figure. What the presets show stands in
// the page; everything else gpuedu itself computes, in the worker of explorer_python.js. A classic script, as that one.

(() => {
  const page = JSON.parse(document.getElementById("explorer-page").textContent);
  const here = document.currentScript.src; // addresses are relative to this script
  const [worker, pyodide, archive] = [page.worker, page.pyodide, page.archive].map((url) => new URL(url, here).href);
  const python = new ExplorerPython({ worker, pyodide, archive }, () => cards.forEach((card) => card.report()));

  const FROM_FILE = location.protocol === "file:";
  const STARTING = `Starting Python in your browser, once per page, about ${page.megabytes} MB …`;
  const SERVE =
    "Opened from a file, the page shows its presets. For every other value, serve its folder (make book, or " +
    "python -m http.server in it): browsers start Python only from a server.";
  const STILL = "The figure still shows the last values that work.";
  const LINK_DELAY_MS = 250; // browsers slow a page down that rewrites its address all the time
  const PRINT_WIDTH_PX = 660;
  const NARROW_PX = 480;
  const LEGEND_ROW_PX = 21;

  let printing = false;

  function mode() {
    if (printing) return "light";
    const chosen = document.documentElement.dataset.theme;
    return chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  }

  // A logarithmic slider's positions are equal ratios, written with four digits.
  function valueAt({ low, high, scale, positions }, position) {
    if (scale !== "log") return position;
    if (position <= 0) return low;
    if (position >= positions.high) return high;
    return Number((low * (high / low) ** (position / positions.high)).toPrecision(4));
  }

  function positionOf({ low, high, scale, positions }, value) {
    return scale === "log" ? (Math.log(value / low) / Math.log(high / low)) * positions.high : value;
  }

  // What Python cannot read as the control's kind of value goes to it as text: it says what is wrong with it.
  function parse(kind, text) {
    if (kind === "choice") return text;
    if (kind === "switch") return { true: true, false: false }[text] ?? text;
    return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  }

  function same(a, b) {
    const names = Object.keys(a);
    return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name]);
  }

  // Only a change is written: a live region repeats what is set again.
  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function setSlider(slider, position, text) {
    slider.value = position;
    slider.setAttribute("aria-valuetext", text);
    slider.style.setProperty("--filled", (slider.value - slider.min) / (slider.max - slider.min || 1));
  }

  // A takeaway's text, its number (between two pairs of asterisks) emphasized
  function emphasized(text) {
    return text.split(/\*\*(.+?)\*\*/).map((part, i) => {
      return i % 2 ? Object.assign(document.createElement("strong"), { textContent: part }) : part;
    });
  }

  // On a phone the legend needs rows of its own: they come below the figure, which grows by them. Text that does not fit
  // into its bar goes.
  function narrowed({ data, layout }) {
    const named = data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const rows = Math.ceil(named / 2) * LEGEND_ROW_PX;
    const legend = { ...layout.legend, x: 0, y: 0, yanchor: "bottom", yref: "container" };
    const margin = { ...layout.margin, t: Math.min(layout.margin?.t ?? 12, 12) };
    const uniformtext = { minsize: 9, mode: "hide" };
    return {
      data: data.map((trace) => (trace.type === "bar" ? { ...trace, constraintext: "inside" } : trace)),
      layout: { ...layout, legend, margin, uniformtext, height: layout.height && layout.height + rows },
    };
  }

  function tableRow(tag, cells) {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement(tag), { textContent: text })));
    return row;
  }

  class Card {
    message = ""; // why the wanted values are not shown
    touchesPython = false; // what happens to the worker concerns this card
    playing = false;
    ticket = 0; // counts wishes: an answer to an older one than is shown is dropped
    shownTicket = 0;

    constructor(root) {
      const { reference, controls, presets } = JSON.parse(root.querySelector(".explorer-payload").textContent);
      Object.assign(this, { root, reference, controls, presets });
      this.first = Object.keys(presets)[0];
      this.shown = presets[this.first];
      this.wanted = this.shown.values; // what the controls say
      this.step = controls.find((control) => control.kind === "step")?.name;
      this.bind();
      this.want(this.wanted);
      new ResizeObserver(() => this.fit()).observe(this.find(".explorer-figure"));
    }

    find(selector) {
      return this.root.querySelector(selector);
    }

    all(selector) {
      return [...this.root.querySelectorAll(selector)];
    }

    inputs({ name }) {
      return this.all(`[data-control="${name}"] :is(input, select)`);
    }

    presetOf(values) {
      return Object.keys(this.presets).find((name) => same(this.presets[name].values, values));
    }

    // ---- what the reader does ----

    bind() {
      for (const radio of this.all(".explorer-preset input")) {
        radio.addEventListener("change", () => this.choose(radio.value));
      }
      for (const holder of this.all("[data-control]")) {
        for (const event of ["pointerover", "pointerdown", "focusin"]) {
          holder.addEventListener(event, () => this.touch());
        }
        if (FROM_FILE) for (const element of holder.querySelectorAll("input, select, button")) element.disabled = true;
      }
      for (const control of this.controls) if (control.kind !== "step") this.bindControl(control);
      if (this.step) this.bindStep();
      this.click("reset", () => this.choose(this.first));
      this.click("link", () => this.copyLink());
      this.click("retry", () => this.retry());
      this.find(".explorer-data").addEventListener("toggle", () => this.tabulate());
    }

    click(action, does) {
      this.find(`[data-action="${action}"]`).addEventListener("click", does);
    }

    bindControl(control) {
      const [input, slider] = this.inputs(control);
      const move = (value) => {
        this.pause();
        this.want({ ...this.wanted, [control.name]: value }, true);
      };
      input.addEventListener("focus", () => this.pause());
      input.addEventListener("change", () => {
        if (control.kind === "choice") move(input.value);
        else if (control.kind === "switch") move(input.checked);
        else if (input.value === "") move(this.shown.values[control.name]); // emptied: the last one that works
        else move(input.valueAsNumber);
      });
      slider?.addEventListener("input", () => move(valueAt(control, slider.valueAsNumber)));
    }

    bindStep() {
      const [slider] = this.inputs({ name: this.step });
      const seek = (step) => {
        this.pause();
        this.goTo(step);
      };
      slider.addEventListener("input", () => seek(slider.valueAsNumber));
      this.click("previous", () => seek(Math.max(this.position() - 1, 0)));
      this.click("next", () => seek(this.position() + 1));
      this.click("play", () => (this.playing ? this.pause() : this.play()));
    }

    touch() {
      if (FROM_FILE) return;
      this.touchesPython = true;
      if (python.state === "off") python.start();
      this.report();
    }

    choose(preset) {
      this.pause();
      this.want(this.presets[preset].values, true);
    }

    retry() {
      python.start();
      this.want(this.wanted, this.byReader);
    }

    // ---- from wish to figure ----

    want(values, byReader = false) {
      this.wanted = values;
      this.byReader = byReader; // then the page's address follows
      this.message = "";
      this.ticket += 1;
      clearTimeout(this.linkTimer);
      this.syncControls();
      const preset = this.presetOf(values);
      if (preset) {
        python.drop(this);
        this.show(this.ticket, this.presets[preset]);
      } else if (FROM_FILE) {
        this.message = SERVE;
      } else {
        this.touchesPython = true;
        python.ask(this, { ticket: this.ticket, values, table: this.find(".explorer-data").open });
      }
      this.report();
    }

    hear(ticket, answer) {
      if (!answer.error) {
        if (ticket > this.shownTicket) this.show(ticket, answer);
      } else if (ticket === this.ticket) {
        this.pause();
        this.message = `${answer.error}. ${STILL}`;
      }
      this.report();
    }

    show(ticket, shown) {
      this.shownTicket = ticket;
      this.shown = shown;
      const takeaway = emphasized(shown.takeaway);
      if (shown.takeaway.replaceAll("**", "") !== this.find(".explorer-takeaway").textContent) {
        this.find(".explorer-takeaway").replaceChildren(...takeaway);
      }
      this.syncUnused();
      this.syncStep();
      this.tabulate();
      this.draw();
      this.root.dataset.values = JSON.stringify(shown.values);
      if (this.byReader) this.writeLinkSoon();
      if (this.playing && ticket === this.ticket) this.playOn();
    }

    draw() {
      const figure = this.find(".explorer-figure");
      // Plotly's own way of following the width forgets a figure's height.
      this.width = printing ? PRINT_WIDTH_PX : figure.clientWidth;
      const { data, layout } = this.width < NARROW_PX ? narrowed(this.shown.figure) : this.shown.figure;
      const whole = { dragmode: false, ...layout, width: this.width, template: page.templates[mode()] };
      Plotly.react(figure, data, whole, { displayModeBar: false });
    }

    fit() {
      if (this.find(".explorer-figure").clientWidth !== this.width && !printing) this.draw();
    }

    tabulate() {
      if (!this.find(".explorer-data").open) return; // computed and built when somebody looks
      const { columns, rows } = this.shown.table ?? { columns: [], rows: [] };
      const head = tableRow("th", columns);
      for (const cell of head.cells) cell.scope = "col";
      this.find(".explorer-table thead").replaceChildren(head);
      this.find(".explorer-table tbody").replaceChildren(...rows.map((cells) => tableRow("td", cells)));
      if (!this.shown.table) this.want(this.wanted, this.byReader);
    }

    // ---- from values to controls ----

    syncControls() {
      const preset = this.presetOf(this.wanted);
      for (const radio of this.all(".explorer-preset input")) radio.checked = radio.value === preset;
      for (const control of this.controls) {
        const [input, slider] = this.inputs(control);
        const value = this.wanted[control.name];
        if (control.kind === "switch") input.checked = value === true;
        else if (control.kind !== "step") input.value = value;
        if (slider) setSlider(slider, positionOf(control, value), `${value} ${control.unit}`.trim());
      }
      this.syncStep();
    }

    syncUnused() {
      for (const control of this.controls) {
        const unused = this.shown.unused.includes(control.name);
        this.find(`[data-control="${control.name}"]`).classList.toggle("explorer-unused", unused);
        if (!FROM_FILE) for (const input of this.inputs(control)) input.disabled = unused;
      }
    }

    syncStep() {
      if (!this.step) return;
      const { steps } = this.shown;
      const [slider] = this.inputs({ name: this.step });
      const all = steps === 1 ? "the only step" : `all ${steps} steps`;
      const text = this.wanted[this.step] === null ? all : `step ${this.position()} of ${steps}`;
      slider.max = steps;
      setSlider(slider, this.position(), text);
      setText(this.find(".explorer-position"), text);
    }

    // The card's state: for the eye, for screen readers, and as data-state for whoever waits for it.
    report() {
      const failed = python.state === "failed" && this.touchesPython;
      const error = failed ? `${python.reason}. The presets still work.` : this.message;
      const booting = python.state === "booting" && this.touchesPython;
      const busy = python.isFor(this);
      this.root.dataset.state = error ? "error" : booting ? "booting" : busy ? "busy" : "ready";
      setText(this.find(".explorer-error"), error);
      setText(this.find(".explorer-status"), error ? "" : booting ? STARTING : FROM_FILE ? SERVE : "");
      this.find('[data-action="retry"]').hidden = !failed;
    }

    // ---- steps ----

    position() {
      return this.wanted[this.step] ?? this.shown.steps;
    }

    // The end is the finished picture, however many steps the other controls then make of it.
    goTo(step) {
      this.want({ ...this.wanted, [this.step]: step >= this.shown.steps ? null : step }, true);
    }

    play() {
      this.setPlaying(true);
      this.goTo(this.wanted[this.step] === null ? 0 : this.position() + 1);
    }

    playOn() {
      if (this.wanted[this.step] === null) return this.pause();
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      const pace = calm ? 1500 : Math.min(Math.max(12000 / this.shown.steps, 80), 600);
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.goTo(this.position() + 1), pace);
    }

    pause() {
      clearTimeout(this.timer);
      if (this.playing) this.setPlaying(false);
    }

    setPlaying(playing) {
      this.playing = playing;
      const button = this.find('[data-action="play"]');
      button.setAttribute("aria-label", playing ? "Pause" : "Play");
      this.root.classList.toggle("explorer-playing", playing);
    }

    // ---- links: #id?control=value for what differs from the first preset, or #id?preset=name ----

    link() {
      const { values } = this.shown;
      const first = this.presets[this.first].values;
      const changed = Object.entries(values).filter(([name, value]) => value !== first[name]);
      return `#${this.root.id}${changed.length ? `?${new URLSearchParams(changed)}` : ""}`;
    }

    writeLinkSoon() {
      clearTimeout(this.linkTimer);
      this.linkTimer = setTimeout(() => this.writeLink(), LINK_DELAY_MS);
    }

    writeLink() {
      clearTimeout(this.linkTimer);
      history.replaceState(history.state, "", this.link());
    }

    follow(query) {
      const { preset, ...texts } = Object.fromEntries(new URLSearchParams(query));
      const values = { ...this.presets[preset ?? this.first]?.values };
      for (const [name, text] of Object.entries(texts)) {
        values[name] = parse(this.controls.find((control) => control.name === name)?.kind ?? "choice", text);
      }
      this.pause();
      if (preset === undefined || preset in this.presets) return this.want(values);
      this.message = `preset=${preset}: must be one of ${Object.keys(this.presets).join(", ")}. ${STILL}`;
      this.report();
    }

    async copyLink() {
      this.writeLink();
      const button = this.find('[data-action="link"]');
      try {
        await navigator.clipboard.writeText(location.href);
        setText(this.find(".explorer-status"), "Link copied.");
      } catch {
        setText(this.find(".explorer-status"), `This browser does not let a page copy. The link: ${location.href}`);
      }
      button.focus();
    }
  }

  const cards = [];
  for (const root of document.querySelectorAll(".explorer")) cards.push(new Card(root));

  // Go to the card and the view that a link's fragment names; false if it names none.
  function follow(hash) {
    const [, id, query] = hash.match(/^#([^?]*)\?(.*)$/) ?? [];
    const card = cards.find((card) => card.root.id === id);
    if (!card) return false;
    card.follow(query);
    card.root.scrollIntoView();
    card.root.focus({ preventScroll: true });
    return true;
  }

  follow(location.hash);
  addEventListener("hashchange", (event) => follow(new URL(event.newURL).hash));
  // A link to the view that the address names already changes nothing there, yet the reader wants to go.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    if (link?.href === location.href && follow(link.hash)) event.preventDefault();
  });

  const redraw = () => cards.forEach((card) => card.draw());
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  for (const [event, now] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      printing = now;
      redraw();
    });
  }
})();
