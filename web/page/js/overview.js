// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { get, path } from './api.js';
import { shareBar } from './charts.js';
import { card, h, kpis, table } from './dom.js';
import { ago, count, percent, span } from './format.js';
import { HilbertMap } from './hilbert.js';
import { colour, label } from './sites.js';
import { nameOf } from './measurements.js';

/** Overview is the sites, and the newest catchment. */
export class Overview {
  title = 'Sites';
  #sites = h('div');
  #latest = h('div', { class: 'stack' });
  #figures = h('div');
  #map = null;
  #shown = '';
  #summary = null;
  #state = null;
  element = [h('h1', null, 'Sites and catchments'), this.#figures, card('Sites', '', this.#sites), this.#latest];

  close() { this.#map?.close(); }

  /** state is told whenever sites or measurements change. */
  async state(state) {
    this.#state = state;
    this.#render();
    const m = [...state.measurements.values()].filter((x) => ['catchment', 'latency'].includes(x.definition.program) && x.definition.protocol !== 'chaos' && x.state !== 'waiting' && x.progress.answered > 0)
      .sort((a, b) => (a.id < b.id ? 1 : -1))[0];
    if (!m || this.#shown === `${m.id} ${m.state} ${Math.floor(m.progress.done / Math.max(1, m.progress.total) * 20)}`) return;
    this.#shown = `${m.id} ${m.state} ${Math.floor(m.progress.done / Math.max(1, m.progress.total) * 20)}`;
    this.#summary = await get(path(m.id, '/summary'));
    if (this.#map?.of !== m.id) {
      this.#map?.close();
      this.#map = new HilbertMap(m.id);
      this.#map.of = m.id;
    }
    const head = h('a', { href: `#/m/${encodeURIComponent(m.id)}` }, nameOf(m));
    this.#latest.replaceChildren(
      h('section', { class: 'card' }, h('header', null, h('h2', null, 'Latest catchment'), h('span', { class: 'dim' }, head, `, ${ago(m.start)}`)),
        shareBar(this.#summary.sites.map((x) => ({ name: x.name, value: x.networks })))),
      this.#summary.ipv4 > 0 && card('The map', 'IPv4, coloured by the site that catches each network', this.#map.element) || '');
    this.#render();
    if (this.#summary.ipv4 > 0) await this.#map.refresh();
  }

  #render() {
    const { sites, measurements } = this.#state;
    const running = [...measurements.values()].filter((m) => m.state === 'running').length;
    const shares = new Map((this.#summary?.sites ?? []).map((x) => [x.name, x]));
    this.#figures.replaceChildren(kpis(
      [count(sites.length), sites.length === 1 ? 'site connected' : 'sites connected'], [count(running), running === 1 ? 'measurement running' : 'measurements running'],
      this.#summary && [count(this.#summary.networks), 'networks in the latest catchment'],
      this.#summary && [percent(this.#summary.networks / (this.#summary.networks + this.#summary.silent)), 'of those probed answer']));
    if (sites.length === 0) {
      this.#sites.replaceChildren(h('p', { class: 'empty' }, 'No site is connected.'));
      return;
    }
    this.#sites.replaceChildren(h('div', { class: 'scroll' }, table([
      { title: 'Site', cell: (x) => h('b', null, label(x.name)) },
      { title: 'Share of networks', cell: (x) => {
        const share = shares.get(x.name)?.share;
        return share === undefined ? h('span', { class: 'dim' }, '–') : h('span', { class: 'site' }, h('span', { class: 'bar', style: { width: '90px' } }, h('i', { style: { width: `${100 * share}%`, background: colour(x.name) } })), percent(share));
      } },
      { title: 'Anycast addresses', cell: (x) => h('span', { class: 'mono' }, x.anycast.join(' ') || '–') },
      { title: 'Clock', num: true, cell: (x) => (x.clock_error_ns ? [`${x.clock_offset_ns > 0 ? '+' : ''}${span(x.clock_offset_ns)}`, h('span', { class: 'dim' }, ` ± ${span(x.clock_error_ns)}`)] : h('span', { class: 'dim' }, 'unknown')) },
      { title: 'Rate limit', num: true, cell: (x) => (x.rate ? `${count(x.rate)}/s` : h('span', { class: 'dim' }, 'none')) },
      { title: 'Connected', cell: (x) => (x.since ? ago(x.since) : '') },
      { title: 'Agent', cell: (x) => (x.native ? x.version || 'Fathom' : h('span', { class: 'dim' }, 'Voltadomar, hears only')) },
    ], sites)));
  }
}
