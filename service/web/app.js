// The search page: a picture, or an item of the bank, becomes a query; the address remembers an item (#id=…).

import * as api from "./api.js";
import { $, picture, showAnswer, showNeighbours, showSamples } from "./view.js";

const PAGE = 24;
const SAMPLES = 24;

let served = null; // the answer of GET /info
let query = null; // {ids: [...]} or {vectors: [...]}
let shown = PAGE;
let running = new AbortController();

async function guarded(work) {
  running.abort();
  const { signal } = (running = new AbortController());
  $("problem").hidden = $("samples").hidden = true;
  $("again").hidden = false;
  $("results").ariaBusy = "true";
  try {
    await work(signal);
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    report(error);
  }
  if (!signal.aborted) $("results").ariaBusy = "false";
}

function report(error) {
  $("problem").textContent = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  $("problem").hidden = false;
  $("answer").hidden = $("neighbours").hidden = true;
  if (error.status === 401) $("key-form").hidden = false;
}

async function ask(signal) {
  const started = performance.now();
  const labelled = Object.keys(served.bank.labels).length > 0;
  const [found, named] = await Promise.all([
    api.search(query, shown, signal),
    labelled ? api.classify(query, signal) : null,
  ]);
  const { neighbors } = found.results[0];
  showNeighbours(neighbors);
  $("took").textContent = `${neighbors.length} of ${found.bank.count.toLocaleString("en")} in ${Math.round(performance.now() - started)} ms`;
  $("more").hidden = neighbors.length < shown || shown >= served.limits.max_k;
  $("neighbours").hidden = false;
  $("answer").hidden = !named;
  if (named) showAnswer(named.results[0], named.protocol);
  // The pressed neighbour is gone from the page; a keyboard goes on from the results.
  if (document.activeElement === document.body) $("results").focus({ preventScroll: true });
}

function show(image, name) {
  $("preview").replaceChildren(image);
  $("preview").hidden = $("query-name").hidden = false;
  $("query-name").textContent = name;
}

function askById(id) {
  shown = PAGE;
  return guarded(async (signal) => {
    show(picture(id, "The query", false), id);
    query = { ids: [id] };
    await ask(signal);
  });
}

function askByPicture(file) {
  shown = PAGE;
  if (location.hash) history.pushState(null, "", location.pathname);
  return guarded(async (signal) => {
    const image = new Image();
    image.alt = "The query";
    image.src = URL.createObjectURL(file);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    show(image, file.name || "pasted picture");
    query = { vectors: [await api.embed(file, signal)] };
    await ask(signal);
  });
}

async function followAddress() {
  if (location.hash === "#results") return undefined; // the skip link
  const id = new URLSearchParams(location.hash.slice(1)).get("id");
  if (id) return askById(id);
  query = null;
  running.abort();
  $("results").ariaBusy = "false";
  for (const part of ["problem", "answer", "neighbours", "preview", "query-name", "again"]) $(part).hidden = true;
  return offerSamples();
}

const shuffled = (list) => list.map((each) => [Math.random(), each]).sort((a, b) => a[0] - b[0]).map(([, each]) => each);

// A few items of as many classes as there is room for.
async function offerSamples() {
  const labels = shuffled(Object.keys(served.bank.labels)).slice(0, SAMPLES / 2);
  const pages = labels.length
    ? await Promise.all(labels.map((label) => api.items({ label, limit: 50 })))
    : [await api.items({ limit: 200 })];
  const each = Math.ceil(SAMPLES / pages.length);
  const chosen = pages.flatMap((page) => shuffled(page.items).slice(0, each)).slice(0, SAMPLES);
  showSamples(shuffled(chosen));
  $("samples").hidden = !chosen.length || !$("again").hidden; // a query may have come meanwhile
}

function home() {
  if (location.hash) history.pushState(null, "", location.pathname);
  followAddress().catch(report);
}

function listen() {
  const drop = $("drop");
  $("file").addEventListener("change", ({ target }) => { if (target.files[0]) askByPicture(target.files[0]); target.value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    addEventListener(kind, (event) => { event.preventDefault(); drop.classList.toggle("over", kind === "dragover"); });
  }
  addEventListener("drop", ({ dataTransfer }) => { if (dataTransfer.files[0]) askByPicture(dataTransfer.files[0]); });
  addEventListener("paste", ({ clipboardData }) => { if (clipboardData.files[0]) askByPicture(clipboardData.files[0]); });
  addEventListener("hashchange", () => followAddress().catch(report));
  $("home").addEventListener("click", (event) => { event.preventDefault(); home(); });
  $("again").addEventListener("click", home);
  $("more").addEventListener("click", () => { shown = Math.min(shown + PAGE, served.limits.max_k); guarded(ask); });
  $("other-samples").addEventListener("click", () => offerSamples().catch(report));
  $("key-form").addEventListener("submit", (event) => { event.preventDefault(); api.useKey($("key").value); $("key-form").hidden = true; start(); });
  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-id]");
    if (!button) return;
    location.hash = new URLSearchParams({ id: button.dataset.id });
    scrollTo({ top: 0 });
  });
}

async function start() {
  try {
    served = await api.info();
  } catch (error) {
    report(error);
    if (error.status === 503) setTimeout(start, 1000); // still starting
    return;
  }
  $("problem").hidden = true;
  const kinds = Object.keys(served.bank.labels).length;
  $("about").textContent = `${served.bank.count.toLocaleString("en")} pictures${kinds ? `, ${kinds} kinds` : ""} · encoder ${served.encoder_spec.name}`;
  $("about").title = `encoder ${served.encoder}`;
  await followAddress().catch(report);
}

listen();
start();
