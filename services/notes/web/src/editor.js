// One document: title, text, who is here, and the connection.
import * as Y from 'yjs'
import { Awareness } from 'y-protocols/awareness'
import { Binding, LOCAL } from './binding.js'
import { caretOf, drawCarets } from './carets.js'
import { Connection } from './connection.js'
import { createDocument } from './list.js'
import { freeColour, loadName, othersOf, saveName, tidyName } from './person.js'
import { showStatus } from './status.js'

const byId = (id) => document.getElementById(id)

export const startEditor = (id) => {
  byId('editor').hidden = false
  const doc = new Y.Doc()
  const title = doc.getText('title')
  const text = doc.getText('text')
  const presence = new Awareness(doc)
  // The server says who has left; a page in the background must not vanish for being slow.
  clearInterval(presence._checkInterval)

  const titleField = byId('title')
  const textField = byId('text')
  const titleBinding = new Binding(titleField, title, /[\r\n]+/g)
  const textBinding = new Binding(textField, text, /\r/g)
  const undo = new Y.UndoManager([text, title], { trackedOrigins: new Set([LOCAL]) })

  const me = { name: loadName(), colour: freeColour([]) }
  presence.setLocalState({ person: me, caret: null })

  const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:'
  const url = `${scheme}//${location.host}/api/docs/${id}/live`
  const connection = new Connection(url, doc, presence, () => connectionChanged())

  let wasSynced = false
  const connectionChanged = () => {
    const { synced, state } = connection
    titleField.readOnly = textField.readOnly = !synced || state === 'stopped'
    byId('sheet').setAttribute('aria-busy', String(!synced))
    if (synced && !wasSynced) {
      wasSynced = true
      titleBinding.show()
      textBinding.show()
      textField.setSelectionRange(0, 0)
      me.colour = freeColour(othersOf(presence))
      presence.setLocalStateField('person', { ...me })
      undo.clear()
      ;(title.length === 0 && text.length === 0 ? titleField : textField).focus()
    }
    showStatus(connection)
    redraw()
  }

  // Drawing is put together per frame: many edits may come at once.
  let drawing = false
  const redraw = () => {
    if (!drawing) {
      drawing = true
      requestAnimationFrame(() => {
        drawing = false
        const others = othersOf(presence)
        drawCarets(byId('copy'), text, others)
        drawPeople(me, others)
        drawCounts(text)
        const name = title.toString().trim() || 'Untitled'
        document.title = `${name} – Notes`
        byId('undo').disabled = undo.undoStack.length === 0
        byId('redo').disabled = undo.redoStack.length === 0
      })
    }
  }
  doc.on('update', redraw)
  presence.on('change', redraw)
  presence.on('change', ({ added, removed }, origin) => announce(presence, added, removed, origin))
  undo.on('stack-item-added', redraw)
  undo.on('stack-item-popped', redraw)

  // My caret, told at most once per frame.
  let telling = false
  const tellCaret = () => {
    if (!telling) {
      telling = true
      requestAnimationFrame(() => {
        telling = false
        const caret = document.activeElement === textField ? caretOf(textField, text) : null
        const known = presence.getLocalState()?.caret ?? null
        if (JSON.stringify(caret) !== JSON.stringify(known)) {
          presence.setLocalStateField('caret', caret && JSON.parse(JSON.stringify(caret)))
        }
      })
    }
  }
  document.addEventListener('selectionchange', tellCaret)
  textField.addEventListener('input', tellCaret)
  textField.addEventListener('blur', tellCaret)
  textField.addEventListener('focus', tellCaret)

  startUndo(undo, [titleBinding, textBinding])
  startTools(doc, title, text)
  startName(me, () => presence.setLocalStateField('person', { ...me }))
  titleField.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.isComposing) {
      event.preventDefault()
      textField.focus()
    }
  })
  addEventListener('beforeunload', (event) => {
    if (connection.pending > 0) {
      event.preventDefault()
    }
  })
  // The age of the connection grows by itself.
  setInterval(() => showStatus(connection), 1000)
  connectionChanged()

  /** For tests and the curious. */
  window.notes = { connection, doc, title, text, presence, others: () => othersOf(presence) }
}

const initialsOf = (name) =>
  name.split(' ').map((word) => [...word][0] ?? '').slice(0, 2).join('').toUpperCase()

const avatar = (name, colour, label) => {
  const item = document.createElement('li')
  item.className = `avatar person-${colour}`
  item.title = label
  const initials = document.createElement('span')
  initials.setAttribute('aria-hidden', 'true')
  initials.textContent = initialsOf(name)
  const words = document.createElement('span')
  words.className = 'unseen'
  words.textContent = label
  item.append(initials, words)
  return item
}

const AVATARS_SHOWN = 6
let drawnPeople = ''

const drawPeople = (me, others) => {
  const people = JSON.stringify([me, others.map(({ name, colour }) => [name, colour])])
  if (people === drawnPeople) {
    return
  }
  drawnPeople = people
  const items = others.slice(0, AVATARS_SHOWN).map(({ name, colour }) => avatar(name, colour, name))
  if (others.length > AVATARS_SHOWN) {
    const more = others.slice(AVATARS_SHOWN).map(({ name }) => name).join(', ')
    const item = avatar('', 0, more)
    item.className = 'avatar more'
    item.firstElementChild.textContent = `+${others.length - AVATARS_SHOWN}`
    items.push(item)
  }
  byId('others').replaceChildren(...items)
  byId('alone').hidden = others.length > 0
  byId('my-name').textContent = me.name
  byId('my-initials').textContent = initialsOf(me.name)
  byId('my-initials').className = `avatar person-${me.colour}`
}

const drawCounts = (text) => {
  const content = text.toString()
  const words = content.match(/\S+/g)?.length ?? 0
  const plural = (number, word) => `${number.toLocaleString('en')} ${word}${number === 1 ? '' : 's'}`
  byId('counts').textContent = `${plural(words, 'word')} · ${plural(content.length, 'character')}`
}

const names = new Map()

/** Tells screen readers who comes and goes. */
const announce = (presence, added, removed, origin) => {
  if (origin === 'local') {
    return
  }
  for (const { id, name } of othersOf(presence)) {
    names.set(id, name)
  }
  const say = (ids, verb) => ids.filter((id) => names.has(id)).map((id) => `${names.get(id)} ${verb}.`)
  const words = [...say(added, 'is here'), ...say(removed, 'has left')]
  if (words.length > 0) {
    byId('news').textContent = words.join(' ')
  }
}

const startUndo = (undo, bindings) => {
  const step = (back) => {
    if (back ? undo.undo() : undo.redo()) {
      const binding = bindings.find(({ field }) => field === document.activeElement)
      binding?.field.setSelectionRange(binding.changedAt, binding.changedAt)
    }
  }
  for (const { field } of bindings) {
    // The browser's own history knows nothing of what the others did.
    field.addEventListener('beforeinput', (event) => {
      if (event.inputType === 'historyUndo' || event.inputType === 'historyRedo') {
        event.preventDefault()
        step(event.inputType === 'historyUndo')
      }
    })
    field.addEventListener('keydown', (event) => {
      const key = event.key.toLowerCase()
      if ((event.ctrlKey || event.metaKey) && !event.altKey && (key === 'z' || key === 'y')) {
        event.preventDefault()
        step(key === 'z' && !event.shiftKey)
      }
    })
  }
  for (const [id, back] of [['undo', true], ['redo', false]]) {
    const button = byId(id)
    // The caret stays in the text.
    button.addEventListener('pointerdown', (event) => event.preventDefault())
    button.addEventListener('click', () => step(back))
  }
}

const startTools = (doc, title, text) => {
  byId('download').addEventListener('click', () => {
    const link = document.createElement('a')
    link.href = URL.createObjectURL(new Blob([text.toString()], { type: 'text/plain' }))
    link.download = `${title.toString().replace(/[^\p{L}\p{N} _-]+/gu, '').trim() || 'note'}.txt`
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
  })
  byId('share').addEventListener('click', async () => {
    let said = 'Link copied'
    try {
      await navigator.clipboard.writeText(location.href)
    } catch {
      // Pages without TLS may not reach the clipboard.
      said = location.href
    }
    byId('news').textContent = said
    byId('share').dataset.said = said
    setTimeout(() => delete byId('share').dataset.said, 2500)
  })
  byId('rescue').addEventListener('click', async () => {
    try {
      await createDocument(title.toString(), text.toString())
    } catch (error) {
      byId('news').textContent = `That did not work: ${error.message}.`
      byId('notice').querySelector('p').textContent = byId('news').textContent
    }
  })
}

const startName = (me, changed) => {
  const dialog = byId('name-dialog')
  const field = byId('name')
  byId('me').addEventListener('click', () => {
    field.value = me.name
    dialog.showModal()
    field.select()
  })
  dialog.addEventListener('close', () => {
    const name = tidyName(field.value)
    if (dialog.returnValue === 'ok' && name !== '') {
      me.name = name
      saveName(name)
      changed()
    }
  })
}
