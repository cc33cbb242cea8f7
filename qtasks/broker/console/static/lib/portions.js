// Actions on many things, which the broker does in portions.
import { count } from "./format.js";

// Repeats `step(expected)`, which gives {done, left}, until all that was announced is done: `run(progress, stop)` gives how many.
// `progress(text)` shows how far it is. An error after the first portion says how many are done, and so does the one after a stop,
// which `isStop` tells; the next `run` goes on from there.
export function inPortions(expected, step) {
  let done = 0;
  const soFar = () => `${count(done)} of ${count(expected)}`;
  return async (progress, stop) => {
    for (;;) {
      let portion;
      try {
        portion = await step(expected - done);
      } catch (error) {
        if (done > 0) error.message = `${soFar()} are done. ${error.message}`;
        throw error;
      }
      done += portion.done;
      if (portion.left === 0 || portion.done === 0 || done >= expected) return done;
      if (stop.requested) throw Object.assign(new Error(`Stopped: ${soFar()} are done.`), { isStop: true });
      progress(soFar());
    }
  };
}

// `items` in slices of at most `size`.
export function slices(items, size) {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, index) => items.slice(index * size, (index + 1) * size));
}
