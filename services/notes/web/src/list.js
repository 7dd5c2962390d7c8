// The list of documents.

const REFRESH_EVERY_MS = 5000

const ago = (seconds) => {
  const units = [['day', 86_400], ['hour', 3600], ['minute', 60]]
  for (const [unit, length] of units) {
    if (seconds >= length) {
      return new Intl.RelativeTimeFormat('en').format(-Math.floor(seconds / length), unit)
    }
  }
  return 'just now'
}

const count = (number, word) => `${number.toLocaleString('en')} ${word}${number === 1 ? '' : 's'}`

/** Calls the service; an error has the service's own words. */
export const call = async (method, path, body) => {
  const response = await fetch(path, {
    method,
    headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
    body: body === undefined ? undefined : JSON.stringify(body)
  })
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({}))
    throw new Error(error ?? `the server answered ${response.status}`)
  }
  return response.status === 204 ? null : response.json()
}

/** Makes a document and goes there. */
export const createDocument = async (title = '', text = '') => {
  const { id } = await call('POST', '/api/docs', { title, text })
  location.assign(`/d/${id}`)
}

export const startList = () => {
  const view = document.getElementById('list')
  const items = view.querySelector('#documents')
  const problem = view.querySelector('#list-problem')
  const template = document.getElementById('document-item')
  view.hidden = false

  const attempt = async (action) => {
    try {
      await action()
      problem.textContent = ''
    } catch (error) {
      problem.textContent = `That did not work: ${error.message}.`
    }
  }

  const show = ({ documents }) => {
    const focused = document.activeElement?.closest?.('[data-id]')?.dataset.id
    items.replaceChildren(...documents.map(({ id, title, characters, people, edited_s_ago: age }) => {
      const item = template.content.cloneNode(true).firstElementChild
      const name = title || 'Untitled'
      item.dataset.id = id
      const link = item.querySelector('a')
      link.href = `/d/${id}`
      link.textContent = name
      item.querySelector('.facts').textContent =
        [count(characters, 'character'), `edited ${ago(age)}`].join(' · ')
      const here = item.querySelector('.here')
      here.textContent = people === 0 ? '' : `${people} here now`
      const remove = item.querySelector('button')
      remove.setAttribute('aria-label', `Delete “${name}”`)
      remove.disabled = people > 0
      remove.title = people > 0 ? 'Somebody has it open' : 'Delete'
      remove.addEventListener('click', () => {
        if (confirm(`Delete “${name}” for everybody? There is no way back.`)) {
          attempt(() => call('DELETE', `/api/docs/${id}`)).then(refresh)
        }
      })
      return item
    }))
    view.querySelector('#empty').hidden = documents.length > 0
    if (focused !== undefined) {
      items.querySelector(`[data-id="${CSS.escape(focused)}"] a`)?.focus()
    }
  }

  const refresh = () => attempt(async () => show(await call('GET', '/api/docs')))

  view.querySelector('#new').addEventListener('click', () => attempt(() => createDocument()))
  setInterval(() => {
    if (document.visibilityState === 'visible' && !items.contains(document.activeElement)) {
      refresh()
    }
  }, REFRESH_EVERY_MS)
  addEventListener('pageshow', refresh)
  refresh()
}
