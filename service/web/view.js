// Answers as elements. Whatever comes from a bank or a client only ever becomes text, never markup.

import { thumbnail } from "./api.js";

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share >= 0.0995 || share === 0 ? 0 : 1)} %`;
const fileName = (id) => id.split("/").at(-1);

export function picture(id, alt, lazy = true) {
  const image = element("img", { alt, loading: lazy ? "lazy" : "eager", decoding: "async" });
  const absent = () => image.replaceWith(element("span", { className: "absent" }, fileName(id)));
  image.addEventListener("error", absent);
  image.addEventListener("load", () => image.src.startsWith("blob:") && URL.revokeObjectURL(image.src));
  thumbnail(id).then((source) => { image.src = source; }, absent);
  return image;
}

// A picture that, when pressed, becomes the next query.
export function pressable(id, name, label) {
  const button = element("button", { type: "button", className: "picture", title: id }, picture(id, ""));
  button.setAttribute("aria-label", name);
  button.dataset.id = id;
  if (label) button.dataset.label = label;
  return button;
}

export function showNeighbours(neighbours) {
  $("grid").replaceChildren(...neighbours.map((neighbour) => {
    const similarity = neighbour.similarity.toFixed(3);
    const shown = neighbour.label ?? fileName(neighbour.id);
    return element("li", {},
      pressable(neighbour.id, `More like ${neighbour.id}: ${shown}, similarity ${similarity}`),
      element("div", { className: "caption" },
        element("span", { className: "label", title: neighbour.id }, shown),
        element("span", { className: "number", title: "cosine similarity" }, similarity)));
  }));
}

export function showAnswer(result, protocol) {
  const sure = result.label !== null;
  $("verdict").replaceChildren(sure ? result.label : "Not sure",
    element("span", {}, sure ? `${percent(result.confidence)} of the vote` : "the votes do not agree enough"));
  $("scores").replaceChildren(...result.scores.slice(0, 6).flatMap((score, rank) => {
    const fill = element("i");
    fill.style.width = `${100 * score.score}%`;
    const bar = element("span", { className: rank ? "bar" : "bar first" }, fill);
    bar.setAttribute("aria-hidden", "true");
    return [
      element("span", { className: "name", title: score.label }, score.label),
      bar,
      element("span", { className: "number" }, percent(score.score)),
    ];
  }));
  $("votes-title").textContent =
    `The votes: the ${protocol.k} nearest, each with exp(similarity ÷ ${protocol.temperature}); the strongest ${result.votes.length}`;
  $("vote-list").replaceChildren(...result.votes.map((vote) => element("li", {},
    pressable(vote.id, `More like ${vote.id}`),
    element("span", { className: "label", title: vote.id }, vote.label),
    element("span", { className: "number" }, `${vote.similarity.toFixed(3)} · ${percent(vote.weight)}`))));
}
