/** What is known of a message beside its data. `id` is its position, if the topic has history. */
export interface Meta {
  id?: string
}

/** An answer or close code of docs/live-protocol.md, and why. */
export interface LiveError extends Error {
  code: number
  reason: string
}

export type State = "connecting" | "open" | "waiting" | "closed"

/** Why a connection has ended, and in how many milliseconds the next one is tried. */
export interface StateDetails {
  code?: number
  reason?: string
  delay?: number
}

export interface TopicOptions {
  /** The position behind which messages begin, as `app.position` has it, or `"start"`. Default: now. */
  since?: string | null
  /** Loads the state again after a gap. Messages wait until it is done. */
  load?: () => unknown
}

export interface Topic<Message = any, Member = any> extends AsyncIterable<{ data: Message; id?: string }> {
  readonly name: string
  /** The position of the newest message. */
  readonly since?: string | null
  /** Who subscribes, by id. */
  readonly members: ReadonlyMap<string, Member>
  /** Call a function for each event, until the function that this returns is called. */
  on(event: "message", listener: (data: Message, meta: Meta) => void): () => void
  /** Messages were missed; `load` is called. */
  on(event: "gap", listener: () => void): () => void
  on(event: "subscribed", listener: (details: { recovered: boolean }) => void): () => void
  on(event: "members", listener: (members: ReadonlyMap<string, Member>) => void): () => void
  /** How many subscribe, if they are too many for `members`. */
  on(event: "count", listener: (count: number) => void): () => void
  /** `load` has failed; it is called again. */
  on(event: "error", listener: (error: unknown) => void): () => void
  /** The last event: refused, ended by the server, or `code` 1000. */
  on(event: "end", listener: (error: LiveError) => void): () => void
  /** Resolves when the message is in the log. */
  publish(data: unknown, options?: PublishOptions): Promise<Meta>
  unsubscribe(): void
}

export interface PublishOptions {
  /** What the server recognizes the message by if it comes twice. Default: a random one. */
  key?: string
}

export interface Live<Topics extends object = Record<string, any>> {
  readonly state: State
  on(event: "state", listener: (state: State, details: StateDetails) => void): () => void
  /** What the view of the route sends, and messages of topics to which the route subscribes. */
  on(event: "message", listener: (data: any, meta: Meta & { topic?: string }) => void): () => void
  on(event: "gap", listener: (details: { topic: string }) => void): () => void
  /** Subscribe, or return the subscription that there is. */
  subscribe<Name extends keyof Topics & string>(topic: Name, options?: TopicOptions): Topic<Topics[Name]>
  /** Resolves when the message is in the log. Repeated after a cut, never twice if the topic has history. */
  publish<Name extends keyof Topics & string>(topic: Name, data: unknown, options?: PublishOptions): Promise<Meta>
  /** Send to the view of the route. `false`: there is no WebSocket now, and nothing is sent. */
  send(data: unknown): boolean
  close(): void
}

export interface ConnectOptions {
  /** A bearer token, or what returns one for each connection. */
  token?: string | (() => string | Promise<string>)
}

/** Connect to a route of `app.live`, or another WebSocket route. `Topics` has the type of the messages of each topic. */
export function connect<Topics extends object = Record<string, any>>(
  url: string | URL,
  options?: ConnectOptions,
): Live<Topics>
