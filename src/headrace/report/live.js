// Asks again and again for what is new, and replaces only what changed: place, open tables and focus stay.
"use strict";
{
  if (location.search) history.replaceState(null, "", location.pathname); // the token is no part of what is shown or copied
  const bar = document.getElementById("live"), main = document.querySelector("main");
  const quietMs = 10000, focusable = "summary, a, button, [tabindex], .plot";
  const sources = new WeakMap(), keys = new WeakMap(); // of each block as it was sent, since scripts change what is shown
  const touched = new WeakMap();
  let version = bar.dataset.version, timer = 0, asked = false, answeredAt = new Date();

  const isGroup = (node) => node.matches("main, section, .pair");
  const key = (node) => node.tagName + "|" + node.className + "|" + (node.querySelector("h2, h3")?.textContent ?? "");
  const remember = (node) => {
    sources.set(node, node.outerHTML);
    keys.set(node, key(node));
    if (isGroup(node)) [...node.children].forEach(remember);
  };
  // Whoever reads a chart's values just now is not to lose them.
  const isBusy = (node) =>
    node.matches("figure") && Date.now() - (touched.get(node) ?? -quietMs) < quietMs;

  const place = (fresh, put) => {
    const node = document.importNode(fresh, true);
    remember(node);
    put(node);
    drawCharts(node);
    return node;
  };

  // What a person did to the old one is done to the new one.
  const replace = (old, fresh) => {
    const all = (node, selector) => [...node.querySelectorAll(selector)];
    const focused = all(old, focusable).indexOf(document.activeElement);
    const open = all(old, "details").map((one) => one.open), left = all(old, ".scroll").map((one) => one.scrollLeft);
    const node = place(fresh, (made) => {
      all(made, "details").forEach((one, k) => { one.open = Boolean(open[k]); });
      old.replaceWith(made);
    });
    all(node, ".scroll").forEach((one, k) => { one.scrollLeft = left[k] ?? 0; });
    if (focused >= 0) all(node, focusable)[focused]?.focus({ preventScroll: true });
    return node;
  };

  // The node that stands for `fresh` now, and whether all of it is shown.
  const update = (old, fresh) => {
    if (sources.get(old) === fresh.outerHTML) return [old, true];
    if (isBusy(old)) return [old, false];
    if (isGroup(old)) return [old, reconcile(old, fresh)];
    return [replace(old, fresh), true];
  };

  const reconcile = (old, fresh) => {
    const spare = [...old.children];
    let at = old.firstElementChild, whole = true;
    for (const child of fresh.children) {
      const k = spare.findIndex((node) => keys.get(node) === key(child));
      if (k < 0) {
        place(child, (made) => old.insertBefore(made, at));
        continue;
      }
      const [match] = spare.splice(k, 1), isNext = match === at;
      const [node, done] = update(match, child);
      whole &&= done;
      if (isNext) at = node.nextElementSibling;
      else old.insertBefore(node, at);
    }
    for (const node of spare) node.remove();
    if (whole) sources.set(old, fresh.outerHTML);
    else sources.delete(old);
    return whole;
  };

  const say = (lost, ...parts) => {
    bar.classList.toggle("lost", lost);
    const [first, ...others] = parts.map((text, k) => {
      const node = document.createElement(k ? "span" : "b");
      node.textContent = text;
      return node;
    });
    bar.replaceChildren(first, ...others);
  };

  const ask = async () => {
    if (asked || document.hidden) return;
    asked = true;
    clearTimeout(timer);
    let nextMs = 5000;
    try {
      const answer = await fetch("update?known=" + encodeURIComponent(version), { cache: "no-store" });
      if (answer.status === 401) say(true, "no longer let in", "open the address that headrace watch printed");
      else if (!answer.ok) say(true, "no answer", (await answer.text()).trim());
      else {
        const news = await answer.json();
        answeredAt = new Date();
        if (news.html !== null) {
          const fresh = new DOMParser().parseFromString(`<main>${news.html}</main>`, "text/html").querySelector("main");
          version = reconcile(main, fresh) ? news.version : "";
          document.title = news.title;
        }
        say(false, news.state, news.progress, "as of " + answeredAt.toLocaleTimeString());
        nextMs = news.next_ms;
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // which is what fetch says where nobody answers
      say(true, "no answer", "headrace watch does not answer since " + answeredAt.toLocaleTimeString());
    } finally {
      asked = false;
      timer = setTimeout(ask, nextMs);
    }
  };

  for (const kind of ["pointermove", "pointerdown", "keydown", "wheel"])
    main.addEventListener(kind, (event) => {
      const figure = event.target.closest("figure");
      if (figure) touched.set(figure, Date.now());
    }, { passive: true });
  document.addEventListener("visibilitychange", ask);
  remember(main);
  addEventListener("load", ask);
}
