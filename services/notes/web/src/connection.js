// The live connection to the document: one WebSocket, kept for as long as the page is open.
//
// After every edit goes a probe. The server answers it when it has taken in all that lay before,
// so the page knows which edits have arrived, and notices when the server pauses.
import * as decoding from 'lib0/decoding'
import * as encoding from 'lib0/encoding'
import * as awarenessProtocol from 'y-protocols/awareness'
import * as syncProtocol from 'y-protocols/sync'

const SYNC = 0
const PRESENCE = 1
const PROBE = 100

/** A probe unanswered for this long means that the server pauses. */
const PAUSED_AFTER_MS = 700
/** A probe unanswered for this long means that the connection is dead. */
const DEAD_AFTER_MS = 60_000
/** Time between two probes while nobody types. */
const PROBE_EVERY_MS = 20_000
const FIRST_RETRY_MS = 300
const LAST_RETRY_MS = 10_000

/** Close codes after which trying again would not help. */
const FINAL_CODES = [4400, 4404, 4413]

/**
 * `state` is one of
 * - `connecting`: never was up yet
 * - `connected`: the server answers
 * - `paused`: the connection is up, the server has not answered for a moment
 * - `reconnecting`: the connection was lost, edits are kept and merged later
 * - `stopped`: the server refused to go on, `refusal` says why
 */
export class Connection {
  /**
   * @param {string} url
   * @param {import('yjs').Doc} doc
   * @param {import('y-protocols/awareness').Awareness} presence
   * @param {() => void} changed called when something about the connection has changed
   */
  constructor (url, doc, presence, changed) {
    this.url = url
    this.doc = doc
    this.presence = presence
    this.changed = changed
    this.state = 'connecting'
    this.refusal = null
    /** Whether the document has been received once. */
    this.synced = false
    /** How often a connection came up. */
    this.opened = 0
    /** When the present connection came up (`performance.now()`). */
    this.openedAt = null
    /** Edits made here, and how many of them the server has. */
    this.edits = 0
    this.arrived = 0
    /** Time from a probe to its answer: the last one, and the longest so far. */
    this.lastAnswerMs = null
    this.longestAnswerMs = 0

    this.socket = null
    this.greeted = false
    this.probes = new Map()
    this.nextProbe = 1
    this.retries = 0
    this.timers = {}

    doc.on('update', (update, origin) => {
      if (origin !== this) {
        this.edited(update)
      }
    })
    presence.on('update', ({ added, updated, removed }, origin) => {
      if (origin !== this) {
        this.tell(added.concat(updated, removed))
      }
    })
    addEventListener('online', () => this.retryNow())
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') {
        this.retryNow()
      }
    })
    this.open()
  }

  /** Edits that the server has not confirmed. */
  get pending () {
    return this.edits - this.arrived
  }

  /** How often the connection was lost and opened again. */
  get reopened () {
    return Math.max(0, this.opened - 1)
  }

  /** How long the present connection has been up, or null. */
  get ageMs () {
    return this.openedAt === null ? null : performance.now() - this.openedAt
  }

  open () {
    clearTimeout(this.timers.retry)
    this.timers.retry = undefined
    const socket = new WebSocket(this.url)
    socket.binaryType = 'arraybuffer'
    this.socket = socket
    socket.onopen = () => this.up()
    socket.onmessage = ({ data }) => this.receive(new Uint8Array(data))
    socket.onclose = ({ code, reason }) => {
      if (this.socket === socket) {
        this.down(code, reason)
      }
    }
  }

  up () {
    this.opened += 1
    this.openedAt = performance.now()
    this.retries = 0
    this.state = 'connected'
    const hello = encoding.createEncoder()
    encoding.writeVarUint(hello, SYNC)
    syncProtocol.writeSyncStep1(hello, this.doc)
    this.send(hello)
    // A higher clock than that of the state which ended with the old connection.
    this.presence.setLocalState(this.presence.getLocalState())
    this.changed()
  }

  down (code, reason) {
    this.socket = null
    this.greeted = false
    this.openedAt = null
    this.probes.clear()
    clearTimeout(this.timers.paused)
    clearTimeout(this.timers.dead)
    clearTimeout(this.timers.idle)
    const others = [...this.presence.states.keys()].filter((id) => id !== this.presence.clientID)
    awarenessProtocol.removeAwarenessStates(this.presence, others, this)
    if (FINAL_CODES.includes(code)) {
      this.state = 'stopped'
      this.refusal = { code, reason }
    } else {
      this.state = this.opened === 0 ? 'connecting' : 'reconnecting'
      const longest = Math.min(FIRST_RETRY_MS * 2 ** this.retries, LAST_RETRY_MS)
      this.retries += 1
      // Spread out, so that not everybody comes back in the same instant.
      this.timers.retry = setTimeout(() => this.open(), longest * (0.5 + Math.random() / 2))
    }
    this.changed()
  }

  retryNow () {
    if (this.timers.retry !== undefined) {
      this.open()
    }
  }

  receive (bytes) {
    const decoder = decoding.createDecoder(bytes)
    while (decoding.hasContent(decoder)) {
      const kind = decoding.readVarUint(decoder)
      if (kind === SYNC) {
        this.receiveSync(decoder)
      } else if (kind === PRESENCE) {
        const states = decoding.readVarUint8Array(decoder)
        awarenessProtocol.applyAwarenessUpdate(this.presence, states, this)
      } else if (kind === PROBE) {
        this.answered(decoding.readVarUint(decoding.createDecoder(decoding.readVarUint8Array(decoder))))
      } else {
        throw new Error(`the server sent a message of unknown kind ${kind}`)
      }
    }
  }

  receiveSync (decoder) {
    const answer = encoding.createEncoder()
    encoding.writeVarUint(answer, SYNC)
    const type = syncProtocol.readSyncMessage(decoder, answer, this.doc, this)
    if (type === syncProtocol.messageYjsSyncStep1) {
      // The answer holds all edits that the server misses, those made offline too.
      this.greeted = true
      this.send(answer, true)
    } else if (type === syncProtocol.messageYjsSyncStep2 && !this.synced) {
      this.synced = true
      this.changed()
    }
  }

  edited (update) {
    this.edits += 1
    if (this.greeted) {
      const encoder = encoding.createEncoder()
      encoding.writeVarUint(encoder, SYNC)
      syncProtocol.writeUpdate(encoder, update)
      this.send(encoder, true)
    }
    this.changed()
  }

  tell (clients) {
    if (this.socket?.readyState === WebSocket.OPEN) {
      const encoder = encoding.createEncoder()
      encoding.writeVarUint(encoder, PRESENCE)
      const states = awarenessProtocol.encodeAwarenessUpdate(this.presence, clients)
      encoding.writeVarUint8Array(encoder, states)
      this.send(encoder)
    }
  }

  /** Sends what `encoder` holds, with a probe behind it if wanted. */
  send (encoder, probe = false) {
    if (probe) {
      const token = encoding.createEncoder()
      encoding.writeVarUint(token, this.nextProbe)
      encoding.writeVarUint(encoder, PROBE)
      encoding.writeVarUint8Array(encoder, encoding.toUint8Array(token))
      this.probes.set(this.nextProbe, { edits: this.edits, sentAt: performance.now() })
      this.nextProbe += 1
      this.awaitAnswer()
    }
    this.socket.send(encoding.toUint8Array(encoder))
  }

  awaitAnswer () {
    clearTimeout(this.timers.idle)
    this.timers.idle = setTimeout(() => this.send(encoding.createEncoder(), true), PROBE_EVERY_MS)
    if (this.probes.size === 1) {
      this.timers.paused = setTimeout(() => {
        this.state = 'paused'
        this.changed()
      }, PAUSED_AFTER_MS)
      this.timers.dead = setTimeout(() => this.abandon(), DEAD_AFTER_MS)
    }
  }

  answered (number) {
    const probe = this.probes.get(number)
    if (probe === undefined) {
      return
    }
    this.lastAnswerMs = performance.now() - probe.sentAt
    this.longestAnswerMs = Math.max(this.longestAnswerMs, this.lastAnswerMs)
    this.arrived = Math.max(this.arrived, probe.edits)
    for (const earlier of [...this.probes.keys()].filter((key) => key <= number)) {
      this.probes.delete(earlier)
    }
    clearTimeout(this.timers.paused)
    clearTimeout(this.timers.dead)
    this.state = 'connected'
    if (this.probes.size > 0) {
      this.timers.paused = setTimeout(() => {
        this.state = 'paused'
        this.changed()
      }, PAUSED_AFTER_MS)
      this.timers.dead = setTimeout(() => this.abandon(), DEAD_AFTER_MS)
    }
    this.changed()
  }

  /** Gives a dead connection up without waiting for TCP to notice. */
  abandon () {
    const socket = this.socket
    this.down(1006, '')
    socket.close()
  }
}
