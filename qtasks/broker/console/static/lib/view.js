// The few names of the vendored libraries that the pages use, from one place.
import { Component, createElement, Fragment, render } from "../vendor/preact.js";
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../vendor/hooks.js";
import { batch, computed, effect, signal } from "../vendor/signals.js";
import htm from "../vendor/htm.js";

export const html = htm.bind(createElement);
export { Component, Fragment, batch, computed, effect, render, signal, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };
