// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// Elements are made by hand, so that what comes from outside can only ever be text.

const svgSpace = 'http://www.w3.org/2000/svg';

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'style') for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

/** h makes an HTML element. Strings among the children become text. */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** s makes an SVG element. */
export const s = (tag, props, ...children) => fill(document.createElementNS(svgSpace, tag), props, children);

/** table makes a table of columns {title, num, cell(row)}. */
export function table(columns, rows, props) {
  return h('table', props,
    h('thead', null, h('tr', null, columns.map((c) => h('th', { class: c.num && 'num', scope: 'col' }, c.title)))),
    h('tbody', null, rows.map((row) => h('tr', null, columns.map((c) => h('td', { class: c.num && 'num' }, c.cell(row)))))));
}

/** card makes a titled box. */
export function card(title, about, ...children) {
  return h('section', { class: 'card' }, h('header', null, h('h2', null, title), about && h('span', { class: 'dim' }, about)), children);
}

/** kpis makes a row of figures, from pairs of value and name. */
export const kpis = (...pairs) => h('div', { class: 'kpis' }, pairs.filter(Boolean).map(([value, name]) => h('div', { class: 'kpi' }, h('b', null, value), h('span', null, name))));
