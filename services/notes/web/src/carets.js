// Shows where the others are: a copy of the text behind the text area, with their carets and
// selections in it. The copy also gives the text area its height.
import * as Y from 'yjs'

/** The caret of a text area, as something that stays at its place while the text changes. */
export const caretOf = (field, text) => ({
  anchor: Y.createRelativePositionFromTypeIndex(text, field.selectionStart),
  head: Y.createRelativePositionFromTypeIndex(text, field.selectionEnd)
})

const indexOf = (position, doc) => {
  try {
    return Y.createAbsolutePositionFromRelativePosition(
      Y.createRelativePositionFromJSON(position), doc)?.index ?? null
  } catch {
    // Another page may say anything.
    return null
  }
}

const element = (name, className, text = '') => {
  const made = document.createElement(name)
  made.className = className
  made.textContent = text
  return made
}

/**
 * @param {HTMLElement} copy
 * @param {Y.Text} text
 * @param {{name: string, colour: number, caret: object | null}[]} others
 */
export const drawCarets = (copy, text, others) => {
  const content = text.toString()
  const marks = []
  for (const { name, colour, caret } of others) {
    const anchor = caret && indexOf(caret.anchor, text.doc)
    const head = caret && indexOf(caret.head, text.doc)
    if (anchor === null || head === null) {
      continue
    }
    marks.push({ from: Math.min(anchor, head), to: Math.max(anchor, head), head, name, colour })
  }
  const cuts = new Set([0, content.length])
  for (const { from, to } of marks) {
    cuts.add(Math.min(from, content.length)).add(Math.min(to, content.length))
  }
  const places = [...cuts].sort((a, b) => a - b)
  const parts = []
  places.forEach((place, i) => {
    for (const { head, name, colour } of marks.filter((mark) => mark.head === place)) {
      const caret = element('span', `caret person-${colour}`)
      caret.append(element('span', 'flag', name))
      parts.push(caret)
    }
    const piece = content.slice(place, places[i + 1])
    const selected = marks.find(({ from, to }) => from <= place && place < to)
    if (i + 1 < places.length) {
      parts.push(selected ? element('mark', `person-${selected.colour}`, piece) : piece)
    }
  })
  // A last line that is empty has no height without something in it.
  parts.push('\u200b')
  copy.replaceChildren(...parts)
}
