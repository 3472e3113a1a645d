// Answers as elements. Whatever comes from a bank or a client only ever becomes text, never markup.

import { thumbnail } from "./api.js";

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(share >= 0.0995 || share === 0 ? 0 : 1)} %`;
}

// Class folders are often named with underscores; people are not.
const spoken = (label) => label.replaceAll("_", " ");
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
function pressable(id, name) {
  const button = element("button", { type: "button", className: "picture", title: id, ariaLabel: name }, picture(id, ""));
  button.dataset.id = id;
  return button;
}

function card(id, label, similarity) {
  const shown = label === null ? fileName(id) : spoken(label);
  const number = similarity === undefined ? "" : similarity.toFixed(3);
  const name = number ? `More like ${id}: ${shown}, similarity ${number}` : `Search with ${id}: ${shown}`;
  return element("li", {}, pressable(id, name),
    element("div", { className: "caption" },
      element("span", { className: "label", title: id }, shown),
      element("span", { className: "number", title: "cosine similarity" }, number)));
}

export function showSamples(items) {
  $("sample-list").replaceChildren(...items.map((item) => card(item.id, item.label)));
}

export function showNeighbours(neighbours) {
  $("grid").replaceChildren(...neighbours.map((each) => card(each.id, each.label, each.similarity)));
}

export function showAnswer(result, protocol) {
  const sure = result.label !== null;
  $("verdict").replaceChildren(sure ? spoken(result.label) : "Not sure",
    element("span", {}, sure ? `${percent(result.confidence)} of the vote` : "the votes do not agree enough"));
  $("scores").replaceChildren(...result.scores.slice(0, 5).flatMap((score, rank) => {
    const fill = element("i");
    fill.style.width = `${100 * score.score}%`;
    const bar = element("span", { className: rank ? "bar" : "bar first" }, fill);
    bar.setAttribute("aria-hidden", "true");
    return [
      element("span", { className: "name", title: score.label }, spoken(score.label)),
      bar,
      element("span", { className: "number" }, percent(score.score)),
    ];
  }));
  $("votes-title").textContent =
    `The votes: the nearest ${protocol.k}, weighted by exp(similarity ÷ ${protocol.temperature}); the first ${result.votes.length} of them`;
  $("vote-list").replaceChildren(...result.votes.map((vote) => {
    const weight = percent(vote.weight);
    return element("li", {},
      pressable(vote.id, `More like ${vote.id}: it voted for ${spoken(vote.label)}, ${weight} of the vote`),
      element("span", { className: "label", title: vote.label }, spoken(vote.label)),
      element("span", { className: "number" }, weight));
  }));
}
