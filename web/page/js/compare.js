// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { get } from './api.js';
import { matrix } from './charts.js';
import { card, h, kpis, table } from './dom.js';
import { count, percent, when } from './format.js';
import { nameOf } from './measurements.js';
import { later, Pager } from './networks.js';
import { label, learn } from './sites.js';

/** Comparison shows who moved from one measurement to another. */
export class Comparison {
  #a;
  #b;
  #fail;
  #flow = null; // {from, to} to show alone
  #head = h('section', { class: 'card' }, h('h1', null, 'Who moved'));
  #figures = h('div');
  #matrix = h('div');
  #body = h('div', { class: 'scroll' });
  #search = h('input', { type: 'search', placeholder: '192.0.2.1, 10.0.0.0/8, 10.', 'aria-label': 'Search networks', oninput: later(() => this.#again()) });
  #about = h('span', { class: 'dim' });
  #pager = new Pager(() => this.#refresh().catch(this.#fail));
  title = 'Who moved';

  constructor(a, b, fail) {
    [this.#a, this.#b, this.#fail] = [a, b, fail];
    this.element = [this.#head, this.#figures, card('From where to where', 'networks by the site before (rows) and after (columns); choose a cell to list them', this.#matrix),
      h('section', { class: 'card' }, h('header', null, h('h2', null, 'Movers'), this.#about), h('div', { class: 'tools' }, this.#search), this.#body, this.#pager.element)];
  }

  close() {}
  state() {}

  async open() {
    const c = await this.#refresh();
    learn(c.matrix.flatMap((f) => [f.from, f.to]).filter(Boolean));
    const both = c.same + c.moved;
    const one = (m, word) => h('div', null, h('dt', null, word), h('dd', null, h('a', { href: `#/m/${encodeURIComponent(m.id)}` }, nameOf(m)), `, ${when(m.start)}`));
    this.#head.replaceChildren(h('a', { class: 'back small', href: '#/' }, '← all measurements'), h('h1', null, 'Who moved'), h('dl', { class: 'meta' }, one(c.a, 'before'), one(c.b, 'after')),
      h('div', { class: 'actions' }, h('a', { href: `#/compare/${encodeURIComponent(this.#b)}/${encodeURIComponent(this.#a)}` }, 'the other way round')));
    this.#figures.replaceChildren(kpis([count(c.moved), 'networks moved'], [percent(c.moved / Math.max(1, both)), 'of those that answer in both'], [count(c.same), 'stayed'], [count(c.appeared), 'answer only after'], [count(c.vanished), 'answer only before']));
    this.#matrix.replaceChildren(matrix(c.matrix, (flow) => {
      this.#flow = flow;
      this.#again();
    }));
  }

  #again() {
    this.#pager.offset = 0;
    this.#refresh().catch(this.#fail);
  }

  async #refresh() {
    const params = new URLSearchParams({ a: this.#a, b: this.#b, offset: this.#pager.offset, limit: this.#pager.limit, q: this.#search.value });
    if (this.#flow) { // an empty name is no answer, and not the same as none asked for
      params.set('from', this.#flow.from);
      params.set('to', this.#flow.to);
    }
    const c = await get(`api/compare?${params}`);
    this.#about.textContent = this.#flow ? `from ${this.#flow.from || 'no answer'} to ${this.#flow.to || 'no answer'}` : 'all that did not stay';
    this.#body.replaceChildren(c.movers.length === 0 ? h('p', { class: 'empty' }, 'No network moved.') : table([
      { title: 'Network', cell: (m) => h('span', { class: 'mono' }, m.network) }, { title: 'Before', cell: (m) => label(m.from) }, { title: 'After', cell: (m) => label(m.to) },
    ], c.movers));
    this.#pager.show(c.total, c.movers.length);
    return c;
  }
}
