// Ties an <input> or <textarea> to a Y.Text.
import * as Y from 'yjs'
import { spliceOf } from './splice.js'

/** Origin of the edits that the person at this page makes. */
export const LOCAL = 'local'

/** Keeps a field and a shared text equal, with the caret where the person left it. */
export class Binding {
  /**
   * @param {HTMLInputElement | HTMLTextAreaElement} field
   * @param {Y.Text} text
   * @param {RegExp} unwanted what the field cannot show; positions would differ otherwise
   */
  constructor (field, text, unwanted) {
    this.field = field
    this.text = text
    this.unwanted = unwanted
    /** The shared text as the field shows it. */
    this.shown = ''
    /** While an input method composes: the document as it was when it began. */
    this.composing = null
    /** Where the last change that was not typed here ended. */
    this.changedAt = 0
    this.show()
    text.observe((event, transaction) => this.changed(event, transaction))
    field.addEventListener('input', () => this.typed())
    field.addEventListener('compositionstart', () => {
      this.composing = { before: Y.encodeStateAsUpdate(this.text.doc), shown: this.shown }
    })
    field.addEventListener('compositionend', () => this.composed())
  }

  /** Shows the shared text anew. */
  show () {
    this.clean()
    this.shown = this.text.toString()
    this.field.value = this.shown
  }

  /** Removes what the field cannot show. Everybody removes the same, so nothing is lost twice. */
  clean () {
    const found = [...this.text.toString().matchAll(this.unwanted)].reverse()
    if (found.length > 0) {
      this.text.doc.transact(() => {
        for (const match of found) {
          this.text.delete(match.index, match[0].length)
        }
      })
    }
  }

  /** The person typed, pasted, cut or dropped. */
  typed () {
    if (this.composing !== null) {
      return
    }
    const { value, selectionEnd } = this.field
    const splice = spliceOf(this.shown, value, selectionEnd ?? value.length)
    this.shown = value
    this.text.doc.transact(() => apply(this.text, splice), LOCAL)
  }

  /** Somebody changed the text: this field, another page, or undo. */
  changed (event, transaction) {
    if (transaction.origin === LOCAL || this.composing !== null) {
      return
    }
    let index = 0
    for (const { retain, insert, delete: removed } of event.delta) {
      if (retain !== undefined) {
        index += retain
      } else if (removed !== undefined) {
        this.field.setRangeText('', index, index + removed, 'preserve')
        this.changedAt = index
      } else if (typeof insert === 'string') {
        this.field.setRangeText(insert, index, index, 'preserve')
        index += insert.length
        this.changedAt = index
      }
    }
    this.shown = this.text.toString()
    if (this.field.value !== this.shown) {
      // Changes from within a transaction, or characters that the field does not show.
      queueMicrotask(() => this.show())
    }
  }

  /**
   * An input method has finished. The field stood still meanwhile, because changing it would have
   * ended the composition; so what was composed is an edit of an older text, and the CRDT merges it.
   */
  composed () {
    const { before, shown } = this.composing
    this.composing = null
    const fork = new Y.Doc()
    Y.applyUpdate(fork, before)
    const text = fork.getText(this.name())
    const caret = this.field.selectionEnd ?? this.field.value.length
    apply(text, spliceOf(shown, this.field.value, caret))
    const at = Y.createRelativePositionFromTypeIndex(text, caret, -1)
    const edit = Y.encodeStateAsUpdate(fork, Y.encodeStateVectorFromUpdate(before))
    Y.applyUpdate(this.text.doc, edit, LOCAL)
    this.show()
    const found = Y.createAbsolutePositionFromRelativePosition(at, this.text.doc)
    const index = found === null ? this.shown.length : found.index
    this.field.setSelectionRange(index, index)
  }

  /** The name of the shared text in its document. */
  name () {
    return Y.findRootTypeKey(this.text)
  }
}

const apply = (text, { index, removed, inserted }) => {
  if (removed > 0) {
    text.delete(index, removed)
  }
  if (inserted !== '') {
    text.insert(index, inserted)
  }
}
