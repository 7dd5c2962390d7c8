// What a person's typing did to a text, as one splice.

const isHigh = (unit) => unit >= 0xd800 && unit < 0xdc00
const isLow = (unit) => unit >= 0xdc00 && unit < 0xe000

/**
 * The splice that turns `before` into `after`: at `index`, `removed` units go and `inserted` comes.
 *
 * Where several splices would do ("aa" typed before or after an "a"?), it is the one that ends at
 * the caret, which is where typing happens. A surrogate pair is never split.
 *
 * @param {string} before
 * @param {string} after
 * @param {number} caret position in `after`, behind what was typed
 */
export const spliceOf = (before, after, caret = after.length) => {
  const shorter = Math.min(before.length, after.length)
  let tail = 0
  const tailMost = Math.min(shorter, after.length - caret)
  while (tail < tailMost && before[before.length - 1 - tail] === after[after.length - 1 - tail]) {
    tail += 1
  }
  let index = 0
  while (index < shorter - tail && before[index] === after[index]) {
    index += 1
  }
  // What differs may begin before the caret's tail: take the rest of the common end as well.
  while (
    tail < shorter - index &&
    before[before.length - 1 - tail] === after[after.length - 1 - tail]
  ) {
    tail += 1
  }
  if (index > 0 && isHigh(before.charCodeAt(index - 1))) {
    index -= 1
  }
  if (tail > 0 && isLow(before.charCodeAt(before.length - tail))) {
    tail -= 1
  }
  return {
    index,
    removed: before.length - tail - index,
    inserted: after.slice(index, after.length - tail)
  }
}
