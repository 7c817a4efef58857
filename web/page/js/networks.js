// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { get, path } from './api.js';
import { h, table } from './dom.js';
import { count, span } from './format.js';
import { label } from './sites.js';

const rows = 25;

/** Pager turns the pages of a list. */
export class Pager {
  offset = 0;
  #turn;
  #back = h('button', { onclick: () => this.#go(-rows) }, 'Earlier');
  #on = h('button', { onclick: () => this.#go(rows) }, 'Later');
  #text = h('span', { role: 'status' });
  element = h('div', { class: 'pager' }, this.#text, this.#back, this.#on);

  constructor(turn) { this.#turn = turn; }

  get limit() { return rows; }

  #go(by) {
    this.offset = Math.max(0, this.offset + by);
    this.#turn();
  }

  show(total, shown) {
    this.#text.textContent = total === 0 ? 'none' : `${count(this.offset + 1)}–${count(this.offset + shown)} of ${count(total)}`;
    this.#back.disabled = this.offset === 0;
    this.#on.disabled = this.offset + shown >= total;
  }
}

/** later runs f when it has not been called for a moment. */
export function later(f, ms = 250) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), ms);
  };
}

/** NetworkTable is the networks of a measurement, with search. */
export class NetworkTable {
  #id;
  #origin;
  #ask = 0;
  #site = h('select', { 'aria-label': 'Site', onchange: () => this.#again() }, h('option', { value: '' }, 'every site'));
  #search = h('input', { type: 'search', placeholder: '192.0.2.1, 10.0.0.0/8, 10.', 'aria-label': 'Search networks', oninput: later(() => this.#again()) });
  #only = h('select', { 'aria-label': 'Which networks', onchange: () => this.#again() },
    h('option', { value: '' }, 'all networks'), h('option', { value: 'split' }, 'reaching several sites'), h('option', { value: 'silent' }, 'without an answer'));
  #pager = new Pager(() => this.refresh());
  #body = h('div', { class: 'scroll' });
  #names = '';

  /** origin gives the origin that is looked at. */
  constructor(id, origin = () => '') {
    this.#id = id;
    this.#origin = origin;
    this.element = h('div', null, h('div', { class: 'tools' }, this.#search, this.#site, this.#only), this.#body, this.#pager.element);
  }

  #again() {
    this.#pager.offset = 0;
    this.refresh();
  }

  /** first goes back to the first page. */
  first() { this.#pager.offset = 0; }

  /** sites gives the names to choose from. */
  sites(names) {
    if (names.join('\n') === this.#names) return;
    this.#names = names.join('\n');
    const chosen = this.#site.value;
    this.#site.replaceChildren(h('option', { value: '' }, 'every site'), ...names.map((n) => h('option', { value: n, selected: n === chosen }, n)));
  }

  async refresh() {
    const ask = ++this.#ask;
    const page = await get(path(this.#id, '/networks'), {
      origin: this.#origin(), q: this.#search.value, site: this.#site.value, split: this.#only.value === 'split', silent: this.#only.value === 'silent', offset: this.#pager.offset, limit: this.#pager.limit,
    });
    if (ask !== this.#ask) return; // a later one is on its way
    const total = (n) => Object.values(n.seen).reduce((a, b) => a + b, 0);
    this.#body.replaceChildren(page.networks.length === 0 ? h('p', { class: 'empty' }, 'No such network.') : table([
      { title: 'Network', cell: (n) => h('span', { class: 'mono' }, n.network) },
      { title: 'Site', cell: (n) => label(n.site) },
      { title: 'Also reaches', cell: (n) => Object.entries(n.seen).filter(([name]) => name !== n.site).sort((a, b) => b[1] - a[1]).map(([name, c]) => [label(name), h('span', { class: 'dim small' }, ` ${count(c)}  `)]) },
      { title: 'Answers', num: true, cell: (n) => [count(total(n)), h('span', { class: 'dim' }, ` / ${count(n.probes)}`)] },
      { title: 'Shortest RTT', num: true, cell: (n) => (n.rtt_ns ? span(n.rtt_ns) : '') },
    ], page.networks));
    this.#pager.show(page.total, page.networks.length);
  }
}
