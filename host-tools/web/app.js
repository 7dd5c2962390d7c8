// What is known, kept up to date by the manager's stream of events.

import { render, announce } from './view.js'

/** Silence after which what is shown may be old: the manager says something every few seconds. */
const PATIENCE_MS = 16000
/** Pause before a stream that the browser has given up is asked for again. */
const RETRY_MS = 2000
/** How long a move that has ended stays among those under way. */
const LINGER_MS = 12000

const state = {
  phases: [],
  version: '',
  nodes: [],
  services: [],
  moves: new Map(),
  /** When the end of a move was seen here, by id. */
  ended: new Map(),
  /** What is to be added to this clock to get the manager's, in microseconds. */
  offset_us: 0,
  now_us: () => Date.now() * 1000 + state.offset_us,
  lingers: (move) => performance.now() - (state.ended.get(move.id) ?? -Infinity) < LINGER_MS,
}

const link = document.getElementById('link')
let heard = performance.now()

function tellLink(kind, words) {
  if (link.dataset.state === kind) return
  link.dataset.state = kind
  document.getElementById('link-text').textContent = words
}

function outcome(move) {
  const frozen = move.summary?.freeze_to_resume_us
  if (move.result.outcome === 'moved') return `${move.service} runs on ${move.destination}, frozen for ${Math.round(frozen / 1000)} milliseconds`
  return `the move of ${move.service} failed: ${move.result.reason}`
}

/** Takes in a move and says aloud what matters of it. */
function take(move, live) {
  const before = state.moves.get(move.id)
  state.moves.set(move.id, move)
  if (!live) return
  if (!before) announce(`${move.service} moves from ${move.source} to ${move.destination}`)
  if (move.result && !before?.result) {
    state.ended.set(move.id, performance.now())
    setTimeout(draw, LINGER_MS + 50)
    announce(outcome(move))
  }
}

const handlers = {
  hello: ({ version, phases }) => Object.assign(state, { version, phases }),
  overview: ({ now_us, nodes, services }) => {
    Object.assign(state, { nodes, services, offset_us: now_us - Date.now() * 1000 })
    document.body.dataset.ready = 'true'
  },
  moves: ({ moves }) => {
    // What ended while nobody was listening is news only if its beginning was seen.
    const news = moves.filter((move) => move.result && state.moves.get(move.id)?.result === null)
    state.moves.clear()
    for (const move of moves) take(move, false)
    for (const move of news) {
      state.ended.set(move.id, performance.now())
      announce(outcome(move))
    }
  },
  move: (move) => take(move, true),
}

let drawing = false
function draw() {
  if (drawing) return
  drawing = true
  requestAnimationFrame(() => {
    drawing = false
    render(state)
  })
}

function listen() {
  // Relative: the page may be served below a path of its own.
  const stream = new EventSource('v1/watch/sse')
  for (const [name, handle] of Object.entries(handlers)) {
    stream.addEventListener(name, (event) => {
      heard = performance.now()
      tellLink('live', 'Live')
      handle(JSON.parse(event.data))
      draw()
    })
  }
  stream.addEventListener('error', () => {
    tellLink('lost', 'Reconnecting…')
    // A refusal ends the stream for good; a break is mended by the browser.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS)
  })
}

setInterval(() => {
  if (performance.now() - heard > PATIENCE_MS) tellLink('lost', 'No news from the manager')
  // Ages and elapsed times.
  draw()
}, 1000)
listen()
