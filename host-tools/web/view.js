// The page, drawn from what is known. Nothing here asks the manager.

import { h, text, keep, time, bytes, age, plural } from './dom.js'

const $ = (id) => document.getElementById(id)
const still = matchMedia('(prefers-reduced-motion: reduce)')
/** Past moves shown at first, and added by each press of the button. */
const PAGE = 20
let shown = PAGE
let last

const STATES = {
  starting: 'starting', running: 'running', migrating: 'moving', suspended: 'suspended',
  failed: 'failed', unknown: 'unknown',
}
const OUTCOMES = {
  moved: 'moved', kept: 'failed, source serves on', broken: 'lost', 'taken-back': 'taken back',
  held: 'held: destination silent',
}

$('more').addEventListener('click', () => {
  shown += PAGE
  render(last)
})

/** Says something to those who do not see it. */
export function announce(words) {
  $('announcer').textContent = words
}

/** Draws everything. */
export function render(state) {
  last = state
  const moves = [...state.moves.values()].reverse()
  const live = moves.filter((move) => !move.result || state.lingers(move))
  const past = moves.filter((move) => move.result)
  counts(state)
  keep($('live'), live, (move) => move.id, makeMove, (item, move) => updateMove(item, move, state))
  hosts(state, live.filter((move) => !move.result))
  services(state)
  keep($('past'), past.slice(0, shown), (move) => move.id, makePast, (item, move) => updatePast(item, move, state))
  $('more').hidden = past.length <= shown
  for (const [id, list] of [['no-live', live], ['no-hosts', state.nodes], ['no-services', state.services], ['no-past', past]]) {
    $(id).hidden = list.length > 0
  }
  $('services').hidden = state.services.length === 0
  text($('version'), state.version && `Manager ${state.version}.`)
}

function counts(state) {
  const open = state.services.reduce((sum, service) => sum + (service.connections ?? 0), 0)
  const up = state.nodes.filter((node) => node.ready).length
  const nodes = up === state.nodes.length ? plural(up, 'host') : `${up} of ${plural(state.nodes.length, 'host')}`
  text($('counts'), document.body.dataset.ready ? `${nodes} · ${plural(state.services.length, 'service')} · ${plural(open, 'connection')}` : '')
}

// A move under way: where from, where to, and a bar with a part for each phase.

function makeMove(move) {
  const bar = h('ol', { class: 'phases' })
  return h('li', { class: 'move card' },
    h('article', { 'aria-labelledby': `live-${move.id}` },
      h('h3', { id: `live-${move.id}` },
        h('span', { class: 'name' }, move.service), ' ',
        h('span', { class: 'route' }, move.source, h('span', { class: 'arrow', 'aria-label': 'to' }, '→'), move.destination)),
      h('span', { class: 'badge' }), h('span', { class: 'elapsed number' }), bar,
      h('p', { class: 'what' })))
}

function updateMove(item, move, state) {
  item.dataset.result = move.result?.outcome ?? 'running'
  item.dataset.phase = move.phase ?? ''
  const done = new Map(move.phases.map((record) => [record.phase, record]))
  const end = move.phases.reduce((latest, record) => Math.max(latest, record.end_us), 0)
  const row = (phase) => ({ ...phase, record: done.get(phase.phase), active: move.phase === phase.phase && !done.has(phase.phase) })
  keep(item.querySelector('.phases'), state.phases.map(row), ({ phase }) => phase,
    ({ phase, does }) => h('li', { class: `p-${phase}`, title: does },
      h('span', { class: 'fill', 'aria-hidden': 'true' }), h('span', { class: 'label' }, phase), h('span', { class: 'took' })),
    (part, { record, active }) => {
      part.dataset.state = record ? 'done' : active ? 'active' : 'todo'
      if (active) part.setAttribute('aria-current', 'step')
      else part.removeAttribute('aria-current')
      const took = record ? time(record.end_us - record.start_us) : active ? '…' : ''
      text(part.querySelector('.took'), took)
    })
  const running = state.now_us() - move.began_us
  text(item.querySelector('.elapsed'), time(move.result ? move.summary.total_us || end : Math.max(running, end)))
  text(item.querySelector('.badge'), move.result ? OUTCOMES[move.result.outcome] ?? move.result.outcome : `${move.id} · under way`)
  const does = state.phases.find(({ phase }) => phase === move.phase)?.does ?? ''
  text(item.querySelector('.what'), move.result ? summary(move) : move.waiting ? `Waiting: ${move.waiting}` : sentence(does))
}

function sentence(words) {
  return words && `${words[0].toUpperCase()}${words.slice(1)}.`
}

function summary(move) {
  if (move.result.outcome !== 'moved') return sentence(move.result.reason ?? '')
  const { freeze_to_resume_us, resumed, connections, pages, bytes: sent, held_frames } = move.summary
  if (!freeze_to_resume_us) return `${move.service} runs on ${move.destination}.`
  return `Frozen for ${time(freeze_to_resume_us)}. ${resumed} of ${plural(connections, 'connection')} went on, ${plural(held_frames, 'frame')} held meanwhile; ${plural(pages, 'page')} moved, ${bytes(sent)}.`
}

// Hosts as boxes, services as tiles in them. A tile is one element for the life of its service, and slides
// from box to box when the service has moved.

const tiles = new Map()

function hosts(state, live) {
  const before = new Map([...tiles].map(([id, tile]) => [id, { box: tile.getBoundingClientRect(), home: tile.parentElement }]))
  const focused = document.activeElement
  const homes = state.nodes.map((node) => ({ name: node.report.name, node }))
  const homeless = state.services.filter((service) => !homes.some(({ name }) => name === service.node))
  if (homeless.length) homes.push({ name: '', node: null })
  keep($('hosts'), homes, ({ name }) => name, makeHost, (box, { name, node }) => {
    if (node) updateHost(box, node, state)
    const here = name ? state.services.filter((service) => service.node === name) : homeless
    const coming = live.filter((move) => move.destination === name && !here.some((service) => service.spec.name === move.service))
    const items = [...here.map((service) => ({ service })), ...coming.map((move) => ({ move }))]
    const list = box.querySelector('.tiles')
    keep(list, items, ({ service, move }) => service?.spec.id ?? move.id,
      ({ service, move }) => (service ? tiles.get(service.spec.id) ?? makeTile(service) : makeGhost(move)),
      (tile, { service }) => service && updateTile(tile, service, live))
    list.hidden = items.length === 0
    box.querySelector('.none').hidden = items.length > 0
  })
  const alive = new Set(state.services.map((service) => service.spec.id))
  for (const id of tiles.keys()) if (!alive.has(id)) tiles.delete(id)
  if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true })
  for (const [id, tile] of tiles) slide(tile, before.get(id))
}

function slide(tile, from) {
  if (!from?.home || from.home === tile.parentElement || still.matches) return
  const to = tile.getBoundingClientRect()
  tile.animate(
    [{ transform: `translate(${from.box.left - to.left}px, ${from.box.top - to.top}px)`, zIndex: 1 }, { transform: 'none', zIndex: 1 }],
    { duration: 600, easing: 'cubic-bezier(.3,.1,.2,1)' })
}

function makeHost({ name, node }) {
  if (!node) {
    return h('li', { class: 'host card' }, h('h3', {}, 'Not on a host'), h('ul', { class: 'tiles plain' }), h('p', { class: 'none' }))
  }
  return h('li', { class: 'host card' },
    h('div', { class: 'row' }, h('h3', {}, name), h('span', { class: 'badge' })),
    h('p', { class: 'facts' }),
    h('meter', { min: 0, 'aria-label': `Memory for guests in use on ${name}` }),
    h('ul', { class: 'tiles plain', 'aria-label': `Services on ${name}` }),
    h('p', { class: 'none' }, 'No services'))
}

function updateHost(box, node, state) {
  const { memory_mib, free_mib, accel } = node.report
  const used = Math.max(0, memory_mib - free_mib)
  const silent = node.seen_ms_ago == null ? 'not seen since the manager began' : `silent for ${age(node.seen_ms_ago * 1000)}`
  box.dataset.state = !node.ready ? 'silent' : node.drained ? 'drained' : 'ready'
  text(box.querySelector('.badge'), !node.ready ? silent : node.drained ? 'drained' : 'ready')
  const mib = 1 << 20
  text(box.querySelector('.facts'), `${bytes(used * mib)} of ${bytes(memory_mib * mib)} in use · ${String(accel).toUpperCase()}`)
  const meter = box.querySelector('meter')
  meter.max = memory_mib || 1
  meter.value = used
}

function makeTile(service) {
  const tile = h('li', { class: 'tile' },
    h('details', {},
      h('summary', {},
        h('span', { class: 'mark', 'aria-hidden': 'true' }), h('span', { class: 'name' }, service.spec.name),
        h('span', { class: 'state' }), h('span', { class: 'connections number' })),
      h('dl', {})))
  tiles.set(service.spec.id, tile)
  return tile
}

function makeGhost(move) {
  return h('li', { class: 'tile ghost' }, h('p', {}, h('span', { class: 'name' }, move.service), ` standby, from ${move.source}`))
}

function updateTile(tile, service, live) {
  const { spec, instance } = service
  const move = live.find((move) => move.service === spec.name)
  tile.dataset.state = move ? 'migrating' : service.state
  tile.dataset.service = spec.name
  text(tile.querySelector('.state'), move ? `moving to ${move.destination}` : service.sleep ? `asleep, ${service.sleep.node} answers` : STATES[service.state] ?? service.state)
  text(tile.querySelector('.connections'), service.connections == null ? '' : plural(service.connections, 'connection'))
  const facts = [
    ['Address', `${spec.ip}/${spec.prefix}, ${spec.mac}`],
    ['Image', `${spec.image.name}, ${spec.image.digest.slice(0, 12)}`],
    ['Guest', `${spec.memory_mib} MiB, ${spec.machine}`],
    ['Epoch', String(service.epoch)],
  ]
  if (spec.args.length) facts.push(['Arguments', spec.args.join(' ')])
  if (service.reason) facts.push(['Reason', service.reason])
  if (instance) facts.push(['QEMU', `process ${instance.pid}, ${instance.refused_frames} frames refused`])
  keep(tile.querySelector('dl'), facts, ([name]) => name,
    ([name]) => h('div', {}, h('dt', {}, name), h('dd', {})),
    (row, [, value]) => text(row.lastElementChild, value))
}

// Services as a table.

function services(state) {
  keep($('services').tBodies[0], state.services, (service) => service.spec.id,
    (service) => h('tr', {}, h('th', { scope: 'row' }, service.spec.name), h('td', {}, h('span', { class: 'badge' })),
      ...['', 'number', '', 'number', '', 'number'].map((kind) => h('td', { class: kind || false }))),
    (row, service) => {
      row.dataset.service = service.spec.name
      row.dataset.state = service.state
      const badge = row.querySelector('.badge')
      text(badge, STATES[service.state] ?? service.state)
      badge.title = service.reason ?? ''
      const cells = [service.node ?? '–', service.connections?.toLocaleString('en') ?? '–', service.spec.ip, String(service.epoch), service.spec.image.name, age(state.now_us() - service.created_us)]
      cells.forEach((value, index) => text(row.cells[index + 2], value))
    })
}

// Past moves: a line each; opened, the timeline and the same as a table.

function makePast(move) {
  const item = h('li', { class: 'past card' },
    h('details', {},
      h('summary', {},
        h('span', { class: 'name' }, move.service),
        h('span', { class: 'route' }, move.source, h('span', { class: 'arrow', 'aria-label': 'to' }, '→'), move.destination),
        h('span', { class: 'badge' }), h('span', { class: 'frozen number' }), h('span', { class: 'total number' }),
        h('span', { class: 'when' })),
      h('div', { class: 'body' })))
  item.dataset.result = move.result.outcome
  text(item.querySelector('.badge'), OUTCOMES[move.result.outcome] ?? move.result.outcome)
  const { freeze_to_resume_us, total_us } = move.summary ?? {}
  if (freeze_to_resume_us) text(item.querySelector('.frozen'), `frozen ${time(freeze_to_resume_us)}`)
  if (total_us) text(item.querySelector('.total'), `took ${time(total_us)}`)
  item.querySelector('details').addEventListener('toggle', ({ target }) => {
    const body = item.querySelector('.body')
    if (target.open && !body.hasChildNodes()) body.append(...pastBody(move))
  })
  return item
}

function updatePast(item, move, state) {
  text(item.querySelector('.when'), `${age(state.now_us() - move.began_us)} ago`)
}

function pastBody(move) {
  const rows = move.phases.map((record) => h('tr', {},
    h('th', { scope: 'row' }, h('span', { class: `key p-${record.phase}`, 'aria-hidden': 'true' }), record.phase),
    h('td', { class: 'number' }, time(record.end_us - record.start_us)),
    h('td', { class: 'number' }, record.pages ? record.pages.toLocaleString('en') : ''),
    h('td', { class: 'number' }, record.bytes ? bytes(record.bytes) : ''),
    h('td', {}, [record.note, ...(record.steps ?? []).map(([name, us]) => `${name} ${time(us)}`)].filter(Boolean).join(' · '))))
  const heads = ['Phase', 'Time', 'Pages', 'Bytes', 'Details']
  return [
    h('p', {}, summary(move)),
    h('img', { class: 'timeline', loading: 'lazy', src: `v1/migrations/${move.id}/timeline.svg`, alt: `Timeline of move ${move.id}; the table below says the same` }),
    h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `Phases of move ${move.id}` },
      h('table', {}, h('caption', { class: 'quiet' }, `Phases of move ${move.id}`),
        h('thead', {}, h('tr', {}, ...heads.map((head, index) => h('th', { scope: 'col', class: index > 0 && index < 4 && 'number' }, head)))),
        h('tbody', {}, ...rows))),
  ]
}
