// Draws the OpenAPI document: no library, nothing from elsewhere, so it works without a network.

import { $, element } from "./view.js";

const code = (text) => element("code", {}, text);

// Text in which `backticks` mark code.
const prose = (text) => text.split("`").map((part, at) => (at % 2 ? code(part) : part));

function table(rows) {
  const body = element("tbody");
  for (const [name, ...cells] of rows) {
    body.append(element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))));
  }
  return element("table", {}, body);
}

// A schema as one line of text: its type, bounds and default.
function describe(schema, all) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map((option) => describe(option, all)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const inner = schema.type === "array" ? ` of ${describe(schema.items, all) || "anything"}` : "";
  const bounds = [["minimum", "≥"], ["maximum", "≤"], ["minItems", "at least"]]
    .filter(([name]) => schema[name] !== undefined).map(([name, sign]) => ` ${sign} ${schema[name]}`).join("");
  return `${schema.format === "binary" ? "bytes" : schema.type ?? "anything"}${inner}${bounds}`;
}

const withDefault = (schema) => (schema?.default === undefined || schema.default === null ? "" : `, default ${JSON.stringify(schema.default)}`);

function fields(name, all) {
  const schema = all[name];
  const required = new Set(schema.required ?? []);
  return table(Object.entries(schema.properties ?? {}).map(([field, inner]) => [
    code(field), describe(inner, all) + withDefault(inner) + (required.has(field) ? ", required" : ""), inner.description ?? "",
  ]));
}

function operation(method, path, about, all) {
  const card = element("article", { className: "card", id: `${method}${path}` },
    element("h2", {}, element("span", { className: "method" }, method.toUpperCase()), code(path)),
    element("p", {}, ...prose(about.description ?? about.summary ?? "")));
  if (about.parameters?.length) {
    card.append(element("h3", {}, "Parameters"), table(about.parameters.map((parameter) => {
      const schema = parameter.schema ?? parameter.content?.["application/json"]?.schema;
      return [code(parameter.name), `${parameter.in}, ${describe(schema, all)}${withDefault(schema)}`, parameter.description ?? ""];
    })));
  }
  const content = about.requestBody?.content;
  if (content) {
    card.append(element("h3", {}, "Body, one of"), table(Object.entries(content).map(([media, { schema }]) => [
      code(media), schema.type === "object" ? "one or more parts named image" : describe(schema, all),
    ])));
    for (const example of Object.values(content["application/json"]?.examples ?? {})) {
      card.append(element("pre", {}, code(JSON.stringify(example.value, null, 2))));
    }
  }
  card.append(element("h3", {}, "Answers"), table(Object.entries(about.responses).map(([status, { content: answers, description }]) => [
    status,
    Object.entries(answers ?? {}).map(([media, { schema }]) => (status < 400 ? `${media}: ` : "") + describe(schema, all)).join(", "),
    description ?? "",
  ])));
  return card;
}

const described = await (await fetch("/openapi.json")).json();
const all = described.components.schemas;
$("docs").replaceChildren(
  element("h1", {}, described.info.title, ": ", described.info.summary),
  element("p", {}, ...prose(described.info.description)),
  ...Object.entries(described.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, about]) => operation(method, path, about, all))),
  element("h2", {}, "Schemas"),
  ...Object.keys(all).map((name) => element("article", { className: "card", id: name },
    element("h3", {}, name), element("p", {}, all[name].description ?? ""), fields(name, all))),
);
