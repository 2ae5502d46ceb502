// What a JSON Schema says, in words; and an example of it.

import { chips, colored, h, span } from "./dom.js"

let schemas = {}
export const useSchemas = all => { schemas = all }

const nameOf = schema => schema.$ref?.split("/").at(-1)
const follow = schema => schema?.$ref ? follow({ ...schemas[nameOf(schema)], ...schema, $ref: undefined }) : schema ?? {}
const TYPES = { string: "str", integer: "int", number: "float", boolean: "bool", null: "None", array: "list", object: "dict" }
const FORMATS = { "date-time": "datetime", date: "date", time: "time", uuid: "UUID", duration: "timedelta" }
const EXAMPLES = { "date-time": "2026-01-31T12:00:00Z", date: "2026-01-31", time: "12:00:00", uuid: "00000000-0000-4000-8000-000000000000", duration: "PT1M" }

// The messages of a type: one for each member of a union. A name, such as "text", is a message itself.
export function messagesOf(type) {
  if (type == null) return []
  if (typeof type === "string") return [{ name: type }]
  const members = schema => {
    const inner = follow(schema), choice = inner.anyOf ?? inner.oneOf
    return choice ? choice.flatMap(members) : [{ name: tagOf(inner) ?? nameOf(schema) ?? inner.title ?? typeText(schema), schema }]
  }
  return members(type.schema)
}

const tagOf = schema => {
  const tag = schema.properties?.type
  return tag?.const ?? (tag?.enum?.length === 1 ? tag.enum[0] : undefined)
}

export function typeText(schema) {
  const name = nameOf(schema)
  if (name) return name
  if (schema.const !== undefined) return JSON.stringify(schema.const)
  if (schema.enum) return schema.enum.map(each => JSON.stringify(each)).join(" | ")
  const choice = schema.anyOf ?? schema.oneOf
  if (choice) return [...new Set(choice.map(typeText))].join(" | ")
  if (Array.isArray(schema.type)) return schema.type.map(type => typeText({ ...schema, type })).join(" | ")
  if (schema.type === "array") return schema.prefixItems ? `tuple[${schema.prefixItems.map(typeText).join(", ")}]` : schema.items ? `list[${typeText(schema.items)}]` : "list"
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return `dict[str, ${typeText(schema.additionalProperties)}]`
  return FORMATS[schema.format] ?? (schema.contentEncoding ? "bytes" : TYPES[schema.type]) ?? "Any"
}

// Description, limits and default.
function notes(schema, isRequired) {
  const { minLength, maxLength, minItems, maxItems, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, pattern } = schema
  const range = (low, high, unit) => low == null && high == null ? null : `${low == null ? "at most " : low}${low != null && high == null ? " or more" : high == null ? "" : low == null ? high : ` to ${high}`}${unit}`
  return [
    follow(schema).description,
    range(minLength, maxLength, " characters"), range(minItems, maxItems, " items"), range(minimum, maximum, ""),
    exclusiveMinimum != null && `more than ${exclusiveMinimum}`, exclusiveMaximum != null && `less than ${exclusiveMaximum}`,
    multipleOf != null && `a multiple of ${multipleOf}`, pattern && `matches ${pattern}`,
    schema.default !== undefined ? `default ${JSON.stringify(schema.default)}` : !isRequired && "optional",
  ].filter(Boolean).join("; ")
}

export function fieldsOf(schema) {
  const { properties = {}, required = [] } = follow(schema)
  return Object.entries(properties).map(([name, each]) => ({ name, schema: each, required: required.includes(name), note: notes(each, required.includes(name)) }))
}

export function exampleOf(schema, name = "text", depth = 0) {
  const inner = follow(schema)
  for (const value of [inner.examples?.[0], inner.const, inner.default, inner.enum?.[0]]) if (value !== undefined) return value
  const choice = inner.anyOf ?? inner.oneOf
  if (choice) return exampleOf(choice[0], name, depth)
  const type = Array.isArray(inner.type) ? inner.type[0] : inner.type
  if (type === "object" || inner.properties) {
    if (depth > 4) return {}
    return Object.fromEntries(Object.entries(inner.properties ?? {}).map(([key, each]) => [key, exampleOf(each, key, depth + 1)]))
  }
  if (type === "array") return depth > 4 ? [] : (inner.prefixItems ?? Array(Math.max(inner.minItems ?? 0, inner.items ? 1 : 0)).fill(inner.items ?? {})).map(each => exampleOf(each, name, depth + 1))
  if (type === "string") return EXAMPLES[inner.format] ?? (inner.contentEncoding ? "AA==" : name.padEnd(inner.minLength ?? 0, "-").slice(0, inner.maxLength))
  if (type === "integer" || type === "number") return inner.minimum ?? (inner.exclusiveMinimum != null ? inner.exclusiveMinimum + 1 : inner.maximum ?? (inner.exclusiveMaximum != null ? inner.exclusiveMaximum - 1 : inner.multipleOf ?? 1))
  return type === "boolean" ? true : type === "null" ? null : "text"
}

export function exampleText(message) {
  if (message.schema) return JSON.stringify(exampleOf(message.schema), null, 2)
  return message.name === "json" || message.name === "msgpack" ? '{\n  "text": "hello"\n}' : "hello"
}

const WORDS = {
  text: "Text frames.", bytes: "Binary frames.", json: "Any JSON, in text frames.",
  auto: "Text frames and binary frames.", msgpack: "Any MessagePack, in binary frames.",
}

// The messages of some types as chips, with their fields as a table, and an example.
export function documentation(types) {
  const messages = [...new Map(types.flatMap(messagesOf).map(each => [JSON.stringify(each), each])).values()], box = h("div")
  const show = index => {
    const { name, schema } = messages[index]
    if (!schema) return box.replaceChildren(h("p", {}, WORDS[name] ?? `Messages of the codec ${name}.`))
    const rows = fieldsOf(schema).filter(each => tagOf({ properties: { type: each.name === "type" ? each.schema : {} } }) === undefined).map(each => h("tr", {},
      h("td", { class: "mono" }, each.name), h("td", { class: "mono type" }, typeText(each.schema)), h("td", { class: "soft" }, each.note)))
    box.replaceChildren(
      ...[follow(schema).description].filter(Boolean).map(text => h("p", {}, text)),
      ...(rows.length ? [h("div", { class: "scroll" }, h("table", {}, rows))] : []),
      h("pre", { class: "json" }, colored(exampleText({ schema }))))
  }
  if (messages.length > 1) return [chips(messages.map(each => each.name), show), box]
  if (!messages.length) return null
  show(0)
  return [messages[0].schema && span("chip", messages[0].name), box]
}
