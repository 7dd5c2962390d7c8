// The person at this page: a name that the browser remembers, and a colour.

const NAME_KEY = 'notes.name'
export const NAME_LENGTH = 32
export const COLOURS = 8

const FIRST = ['Quiet', 'Brave', 'Swift', 'Merry', 'Wise', 'Calm', 'Keen', 'Kind']
const SECOND = ['Heron', 'Otter', 'Lynx', 'Finch', 'Badger', 'Hare', 'Tern', 'Seal']

const pick = (list) => list[Math.floor(Math.random() * list.length)]

/** The remembered name, or a friendly one until the person gives theirs. */
export const loadName = () => {
  try {
    const name = tidyName(localStorage.getItem(NAME_KEY) ?? '')
    if (name !== '') {
      return name
    }
  } catch {
    // Storage is forbidden: the name lasts as long as the page.
  }
  return `${pick(FIRST)} ${pick(SECOND)}`
}

export const saveName = (name) => {
  try {
    localStorage.setItem(NAME_KEY, name)
  } catch {
    // As above.
  }
}

export const tidyName = (name) => name.replace(/\s+/g, ' ').trim().slice(0, NAME_LENGTH)

/** A colour that as few others as possible have. */
export const freeColour = (people) => {
  const taken = new Array(COLOURS).fill(0)
  for (const { colour } of people) {
    taken[colour] += 1
  }
  const least = Math.min(...taken)
  return pick([...taken.keys()].filter((colour) => taken[colour] === least))
}

/**
 * The others at the document, as far as what they say of themselves makes sense.
 *
 * @param {import('y-protocols/awareness').Awareness} presence
 */
export const othersOf = (presence) => {
  const others = []
  for (const [id, state] of presence.getStates()) {
    if (id === presence.clientID || typeof state?.person?.name !== 'string') {
      continue
    }
    const colour = Number.isInteger(state.person.colour) ? Math.abs(state.person.colour) : 0
    others.push({
      id,
      name: tidyName(state.person.name) || 'Somebody',
      colour: colour % COLOURS,
      caret: state.caret ?? null
    })
  }
  return others.sort((a, b) => a.id - b.id)
}
