// Elements without a framework: make one, keep a list in step, write units as people read them.

/** An element: `h('p', { class: 'x' }, 'text', child)`. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue
    element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.filter((child) => child != null))
  return element
}

/** Sets text only where it differs, so that selections and screen readers are left alone. */
export function text(element, content) {
  if (element.textContent !== content) element.textContent = content
}

/**
 * Keeps the children of `parent` in step with `items`. Elements live as long as their key, so focus, open
 * details and animations survive. `make` builds an element, `update` fills it in.
 */
export function keep(parent, items, key, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]))
  let next = parent.firstElementChild
  for (const item of items) {
    const name = String(key(item))
    let child = known.get(name)
    known.delete(name)
    if (!child) {
      child = make(item)
      child.dataset.key = name
    }
    if (child === next) next = next.nextElementSibling
    else parent.insertBefore(child, next)
    update(child, item)
  }
  for (const child of known.values()) child.remove()
}

/** Microseconds. */
export function time(us) {
  if (us < 1e3) return `${us} µs`
  if (us < 1e6) return `${(us / 1e3).toFixed(1)} ms`
  return `${(us / 1e6).toFixed(2)} s`
}

/** Bytes. */
export function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const unit = count > 0 ? Math.min(Math.floor(Math.log2(count) / 10), 4) : 0
  return unit === 0 ? `${count} B` : `${(count / 1024 ** unit).toFixed(1)} ${units[unit]}`
}

/** How long ago, roughly. */
export function age(us) {
  const seconds = Math.max(0, Math.floor(us / 1e6))
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`
  return `${Math.floor(seconds / 86400)} d`
}

/** A number of things, with the right form of the noun. */
export function plural(count, noun) {
  return `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`
}
