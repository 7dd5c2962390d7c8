// Says how the connection is, in words, for eyes and for screen readers.

const duration = (ms) => {
  const s = Math.floor(ms / 1000)
  if (s < 60) {
    return `${s} s`
  }
  const minutes = Math.floor(s / 60)
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

const LABELS = {
  connecting: 'Connecting…',
  connected: 'Connected',
  paused: 'Paused',
  reconnecting: 'Reconnecting…',
  stopped: 'Disconnected'
}

/** What the person should know about a state beyond its label; null if all is well. */
const NOTICES = {
  connecting: null,
  connected: null,
  paused: 'The server is taking a moment. Keep typing, it will catch up.',
  reconnecting: 'The connection was lost. Keep typing: what you write is kept on this page and ' +
    'merged when the server is back.'
}

/**
 * Shows the connection's state in the page and, for tests and scripts, in the attributes of <html>.
 *
 * @param {import('./connection.js').Connection} connection
 */
export const showStatus = (connection) => {
  const { state, pending, reopened, refusal } = connection
  const root = document.documentElement.dataset
  root.connection = state
  root.pending = pending
  root.reopened = reopened
  root.synced = connection.synced

  document.getElementById('state').textContent = LABELS[state]
  const { ageMs, lastAnswerMs, longestAnswerMs } = connection
  const facts = {
    'fact-age': ageMs === null ? 'not now' : `for ${duration(ageMs)}`,
    'fact-reopened': reopened === 0 ? 'never' : reopened === 1 ? 'once' : `${reopened} times`,
    'fact-last': lastAnswerMs === null ? 'none yet' : `${Math.ceil(lastAnswerMs)} ms`,
    'fact-longest': lastAnswerMs === null ? 'none yet' : `${Math.ceil(longestAnswerMs)} ms`
  }
  for (const [id, fact] of Object.entries(facts)) {
    setText(document.getElementById(id), fact)
  }
  setText(document.getElementById('saved'),
    pending === 0 ? 'All changes saved' : state === 'connected' ? 'Saving…' : 'Not saved yet')

  const notice = state === 'stopped'
    ? `The server ended the connection: ${refusal.reason || `code ${refusal.code}`}. ` +
      'Your text is still on this page.'
    : NOTICES[state]
  const banner = document.getElementById('notice')
  banner.hidden = notice === null
  setText(banner.querySelector('p'), notice ?? '')
  banner.querySelector('button').hidden = state !== 'stopped'
}

/** Screen readers read what changes: nothing is written that stands there already. */
const setText = (where, text) => {
  if (where.textContent !== text) {
    where.textContent = text
  }
}
