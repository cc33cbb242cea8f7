// Actions on many things, which the broker does in portions.
import { count } from "./format.js";

// Repeat `step(expected)`, which gives {done, left}, until all that was announced is done. `progress(text)` shows how far it is.
// An error after the first portion says how many are done.
export async function inPortions(expected, step, progress) {
  let done = 0;
  for (;;) {
    let portion;
    try {
      portion = await step(expected - done);
    } catch (error) {
      if (done > 0) error.message = `${count(done)} of ${count(expected)} are done. ${error.message}`;
      throw error;
    }
    done += portion.done;
    if (portion.left === 0 || portion.done === 0 || done >= expected) return done;
    progress(`${count(done)} of ${count(expected)}`);
  }
}

// `items` in slices of at most `size`.
export function slices(items, size) {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, index) => items.slice(index * size, (index + 1) * size));
}
