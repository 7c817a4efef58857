// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { h } from './dom.js';
import { ago, count, percent, span } from './format.js';

/** nameOf is what to call a measurement. */
export const nameOf = (m) => m.definition.name || m.definition.command || m.id;

/** pill shows a state. */
export const pill = (state) => h('span', { class: `pill ${state}` }, state);

/** share is how far a measurement is, from 0 to 1. */
export const share = (m) => (m.progress.total ? m.progress.done / m.progress.total : 0);

/** progress shows it, with the time left. */
export const progress = (m) => h('div', null, h('progress', { max: 1, value: share(m), 'aria-label': 'Progress' }),
  h('div', { class: 'small dim' }, `${m.progress.total ? `${percent(share(m))}, ${count(m.progress.done)} of ${count(m.progress.total)}` : count(m.progress.done)} targets, ${count(m.progress.sent)} probes sent, ${count(m.progress.answered)} answered`, m.progress.left_ns ? `, ${span(m.progress.left_ns)} left` : ''));

/** MeasurementList is the list at the side. */
export class MeasurementList {
  #list = h('ul', { class: 'list' });
  #kind = h('select', { 'aria-label': 'Program', onchange: () => this.#render() });
  #kinds = '';
  #state = null;
  #current = '';
  element = [h('div', { class: 'side-head' }, h('h3', null, 'Measurements'), h('span', { class: 'grow' }), this.#kind), this.#list];

  state(state) {
    this.#state = state;
    this.#render();
  }

  /** current marks what is shown. */
  current(id) {
    this.#current = id;
    if (this.#state) this.#render();
  }

  #render() {
    const all = [...this.#state.measurements.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
    const kinds = ['', ...new Set(all.map((m) => m.definition.program))];
    if (kinds.join() !== this.#kinds) {
      this.#kinds = kinds.join();
      const chosen = this.#kind.value;
      this.#kind.replaceChildren(...kinds.map((k) => h('option', { value: k, selected: k === chosen }, k || 'all')));
    }
    const shown = all.filter((m) => !this.#kind.value || m.definition.program === this.#kind.value);
    const focused = document.activeElement?.getAttribute?.('data-id');
    this.#list.replaceChildren(...(shown.length === 0 ? [h('li', { class: 'empty' }, 'Nothing measured yet.')] : shown.map((m) => h('li', null,
      h('a', { href: `#/m/${encodeURIComponent(m.id)}`, 'data-id': m.id, 'aria-current': m.id === this.#current && 'page' },
        h('div', { class: 'row' }, h('span', { class: 'name' }, nameOf(m)), h('span', { class: 'kind' }, m.definition.program)),
        m.state === 'running' && h('progress', { max: 1, value: share(m), 'aria-label': 'Progress' }),
        h('div', { class: 'sub' }, m.state === 'running' ? `${m.progress.total ? percent(share(m)) : `${count(m.progress.done)} targets`}${m.progress.left_ns ? `, ${span(m.progress.left_ns)} left` : ''}` : m.state, ' · ', ago(m.start)))))));
    if (focused) [...this.#list.querySelectorAll('a')].find((a) => a.dataset.id === focused)?.focus();
  }
}
