// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

// A map of the IPv4 Internet along a Hilbert curve: addresses that are near each other as numbers are near each other
// on the map, and every prefix of an even length is a square.

import { get, path } from './api.js';
import { h } from './dom.js';
import { count, percent } from './format.js';
import { colour, label, number } from './sites.js';

/** place gives the column and row of a cell, on a curve through side x side cells. */
export function place(side, index) {
  let [x, y] = [0, 0];
  for (let n = 1; n < side; n *= 2) {
    const rx = 1 & (index >> 1);
    const ry = 1 & (index ^ rx);
    if (ry === 0) {
      if (rx === 1) [x, y] = [n - 1 - x, n - 1 - y];
      [x, y] = [y, x];
    }
    x += n * rx;
    y += n * ry;
    index >>= 2;
  }
  return [x, y];
}

const dotted = (n) => [24, 16, 8, 0].map((shift) => (n / 2 ** shift) & 255).join('.');
const special = (first) => first === 0 || first === 10 || first === 127 || first >= 224;

/** HilbertMap is a canvas with what belongs to it. */
export class HilbertMap {
  #id;
  #origin;
  #trail = [{ base: 0, bits: 0 }];
  #data = null;
  #blocks = []; // 16 x 16 squares, each {index, x, y, networks, sites: {name: networks}}
  #at = -1; // the block pointed at
  #only = ''; // the site that is shown alone
  #canvas = h('canvas', { class: 'map', width: 1024, height: 1024, tabindex: 0, role: 'application' });
  #crumbs = h('nav', { class: 'crumbs', 'aria-label': 'Part of the map' });
  #about = h('div', { class: 'about', role: 'status' });
  #legend = h('div', { class: 'legend' });

  /** origin gives the origin that is looked at. */
  constructor(id, origin = () => '') {
    this.#id = id;
    this.#origin = origin;
    this.element = h('div', { class: 'mapgrid' }, this.#canvas, h('div', { class: 'stack' },
      this.#crumbs, this.#about, h('div', null, h('h3', null, 'Show only'), this.#legend),
      h('p', { class: 'small dim' }, 'Each square is a range of addresses, in order along a Hilbert curve; its colour is the site that catches most of the networks in it. Click a square to see it larger. With the keyboard: arrows, Enter, Escape.')));
    this.#canvas.addEventListener('pointermove', (e) => this.#point(this.#under(e)));
    this.#canvas.addEventListener('pointerleave', () => this.#point(-1));
    this.#canvas.addEventListener('click', (e) => this.#enter(this.#under(e)));
    this.#canvas.addEventListener('keydown', (e) => this.#key(e));
    this.scheme = matchMedia('(prefers-color-scheme: dark)');
    this.repaint = () => this.#draw();
    this.scheme.addEventListener('change', this.repaint);
  }

  close() { this.scheme.removeEventListener('change', this.repaint); }

  get #view() { return this.#trail.at(-1); }

  /** refresh asks for the part that is shown. */
  async refresh() {
    const { base, bits } = this.#view;
    const origin = this.#origin();
    const data = await get(path(this.#id, '/map'), { origin, prefix: `${dotted(base)}/${bits}` });
    if (this.#view.base !== base || this.#view.bits !== bits || this.#origin() !== origin) return;
    this.#data = data;
    this.#blocks = Array.from({ length: 256 }, (_, index) => {
      const [x, y] = place(16, index);
      return { index, x, y, networks: 0, sites: {} };
    });
    for (const block of data.blocks) Object.assign(this.#blocks[block.index], block);
    this.#trim();
  }

  #trim() {
    const { bits } = this.#view;
    this.#crumbs.replaceChildren(...this.#trail.map((v, i) => h('button', {
      'aria-current': i === this.#trail.length - 1 && 'true', onclick: () => this.#leave(i + 1),
    }, v.bits === 0 ? 'IPv4' : `${dotted(v.base)}/${v.bits}`)));
    this.#canvas.setAttribute('aria-label', `Map of ${bits === 0 ? 'the IPv4 Internet' : `${dotted(this.#view.base)}/${bits}`} in 256 squares; arrow keys move, Enter opens a square, Escape goes back`);
    const names = [...new Set(this.#data.site.map((n) => this.#data.sites[n]))].sort();
    this.#legend.replaceChildren(...names.map((name) => h('button', {
      'aria-pressed': String(this.#only === (name || ' ')),
      onclick: () => {
        this.#only = this.#only === (name || ' ') ? '' : name || ' ';
        this.#trim();
      },
    }, label(name))));
    this.#tell();
    this.#draw();
  }

  #under(e) {
    const r = this.#canvas.getBoundingClientRect();
    const [x, y] = [e.clientX - r.left, e.clientY - r.top].map((v) => Math.floor((16 * v) / r.width));
    return this.#blocks.findIndex((b) => b.x === x && b.y === y);
  }

  #point(at) {
    if (at === this.#at) return;
    this.#at = at;
    this.#tell();
    this.#draw();
  }

  #prefix(block) {
    const { base, bits } = this.#view;
    const length = bits + 8;
    return { base: base + block.index * 2 ** (32 - length), bits: length };
  }

  #enter(at) {
    const block = this.#blocks[at];
    if (!block || this.#view.bits >= 16 || block.networks === 0) return;
    this.#trail.push(this.#prefix(block));
    this.#turn();
  }

  #leave(depth) {
    if (depth >= this.#trail.length) return;
    this.#trail.length = Math.max(1, depth);
    this.#turn();
  }

  /** turn goes to another part: what is pointed at counts again when that is there. */
  #turn() {
    this.#at = -1;
    this.#blocks = [];
    this.refresh().catch((err) => this.#about.replaceChildren(`That did not work: ${err.message}`));
  }

  #key(e) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (step) {
      const now = this.#blocks[this.#at] ?? { x: 0, y: 0 };
      const [x, y] = [now.x + step[0], now.y + step[1]].map((v) => Math.min(15, Math.max(0, v)));
      this.#point(this.#blocks.findIndex((b) => b.x === x && b.y === y));
    } else if (e.key === 'Enter') this.#enter(this.#at);
    else if (e.key === 'Escape' || e.key === 'Backspace') this.#leave(this.#trail.length - 1);
    else return;
    e.preventDefault();
  }

  #tell() {
    const block = this.#blocks[this.#at];
    let name = this.#view.bits === 0 ? 'All of IPv4' : `${dotted(this.#view.base)}/${this.#view.bits}`;
    let [networks, sites] = [0, {}];
    if (block) {
      const p = this.#prefix(block);
      name = `${dotted(p.base)}/${p.bits}`;
      ({ networks, sites } = block);
    } else {
      for (const b of this.#blocks) {
        networks += b.networks;
        for (const [k, v] of Object.entries(b.sites)) sites[k] = (sites[k] ?? 0) + v;
      }
    }
    const rows = Object.entries(sites).sort((a, b) => b[1] - a[1]).slice(0, 8);
    this.#about.replaceChildren(h('div', null, h('b', null, name), ` ${networks === 0 ? 'nothing probed' : `${count(networks)} networks probed`}`),
      h('div', { class: 'lines' }, rows.map(([site, n]) => [
        label(site), h('span', { class: 'bar' }, h('i', { style: { width: `${(100 * n) / networks}%`, background: colour(site) } })), h('span', { class: 'num' }, percent(n / networks)),
      ])));
  }

  #draw() {
    if (!this.#data) return;
    const g = this.#canvas.getContext('2d');
    const size = this.#canvas.width;
    const css = getComputedStyle(this.#canvas);
    const read = (name) => css.getPropertyValue(name).trim();
    const data = this.#data;
    const side = 2 ** ((data.cell_bits - this.#view.bits) / 2);
    const cell = size / side;
    g.clearRect(0, 0, size, size);
    const block = size / 16;
    if (this.#view.bits === 0) { // what is no one's is not merely unprobed
      g.fillStyle = read('--line-soft');
      for (const b of this.#blocks) if (special(b.index)) g.fillRect(b.x * block, b.y * block, block, block);
    }
    const paint = data.sites.map((name) => (number(name) < 0 ? read('--none') : read(`--s${number(name)}`)));
    const only = this.#only && (this.#only === ' ' ? '' : this.#only);
    // A gap between large cells; none between small ones.
    const gap = cell >= 16 ? 2 : 0;
    data.index.forEach((index, i) => {
      const name = data.sites[data.site[i]];
      g.globalAlpha = (this.#only && name !== only ? 0.1 : 1) * (name ? 1 : 0.55);
      g.fillStyle = paint[data.site[i]];
      const [x, y] = place(side, index);
      g.fillRect(x * cell + gap / 2, y * cell + gap / 2, cell - gap, cell - gap);
    });
    g.globalAlpha = 1;
    g.strokeStyle = read('--line');
    g.lineWidth = 1;
    g.beginPath();
    for (let i = 1; i < 16; i++) {
      g.moveTo(i * block, 0);
      g.lineTo(i * block, size);
      g.moveTo(0, i * block);
      g.lineTo(size, i * block);
    }
    g.stroke();
    g.font = '600 17px system-ui, sans-serif';
    g.textBaseline = 'top';
    g.lineWidth = 5;
    g.lineJoin = 'round';
    for (const b of this.#blocks) {
      g.strokeStyle = read('--card');
      g.fillStyle = b.networks ? read('--text') : read('--faint');
      g.globalAlpha = b.networks ? 0.8 : 0.55;
      if (b.networks) g.strokeText(b.index, b.x * block + 6, b.y * block + 6);
      g.fillText(b.index, b.x * block + 6, b.y * block + 6);
    }
    g.globalAlpha = 1;
    const b = this.#blocks[this.#at];
    if (b) {
      g.strokeStyle = read('--text');
      g.lineWidth = 4;
      g.strokeRect(b.x * block + 2, b.y * block + 2, block - 4, block - 4);
    }
  }
}
