// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { h } from './dom.js';

// A site keeps its colour for as long as this browser remembers it: first come, first coloured.
const colours = 12;
const memory = 'fathom-sites';
let numbers = {};
try {
  numbers = JSON.parse(localStorage.getItem(memory)) ?? {};
} catch { /* no memory: colours last as long as the page */ }
if (typeof numbers !== 'object' || Array.isArray(numbers)) numbers = {};

/** learn gives colours to sites, in the order of their names. */
export function learn(names) {
  let news = false;
  for (const name of [...names].sort()) {
    if (name === '' || Object.hasOwn(numbers, name)) continue;
    numbers[name] = Object.keys(numbers).length;
    news = true;
  }
  if (!news) return;
  try {
    localStorage.setItem(memory, JSON.stringify(numbers));
  } catch { /* as above */ }
}

/** number is a site's place among the colours, -1 for none. */
export function number(name) {
  if (!name) return -1;
  if (!Object.hasOwn(numbers, name)) learn([name]);
  return Number(numbers[name]) % colours || 0;
}

/** colour is a site's colour for style sheets; no site is grey. */
export const colour = (name) => (name ? `var(--s${number(name)})` : 'var(--none)');

/** swatch is a small square in a site's colour. */
export const swatch = (name) => h('span', { class: 'swatch', style: { background: colour(name) } });

/** label shows a site: its colour and its name. */
export const label = (name) => (name
  ? h('span', { class: 'site' }, swatch(name), name)
  : h('span', { class: 'site' }, swatch(''), h('span', { class: 'noanswer' }, 'no answer')));
