// The page has two views: the list at /, and a document at /d/{id}.
import { startEditor } from './editor.js'
import { startList } from './list.js'

const document = /^\/d\/([^/]+)$/.exec(location.pathname)
if (document === null) {
  startList()
} else {
  startEditor(document[1])
}
