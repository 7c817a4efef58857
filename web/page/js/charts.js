// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { h, s } from './dom.js';
import { clock, count, percent, span } from './format.js';
import { colour, label, swatch } from './sites.js';

/** shareBar shows parts {name, value} of a whole. */
export function shareBar(parts) {
  const total = parts.reduce((sum, p) => sum + p.value, 0);
  if (total === 0) return h('p', { class: 'empty' }, 'No answers yet.');
  const text = parts.map((p) => `${p.name}: ${percent(p.value / total)}`).join(', ');
  return h('div', { class: 'share', role: 'img', 'aria-label': text }, parts.filter((p) => p.value > 0).map((p) => h('span', {
    style: { 'flex-grow': String(p.value), 'flex-basis': '0', background: colour(p.name) }, title: `${p.name}: ${count(p.value)} (${percent(p.value / total)})`,
  }, p.value / total > 0.07 && h('em', null, p.name, h('i', null, ` ${percent(p.value / total)}`)))));
}

// A chart is drawn as wide as there is room for it, so that its text has the size of the page's.
const room = () => Math.max(300, Math.min(1120, document.getElementById('main').clientWidth - 80));

const dashes = ['', '7 3', '2 3', '9 3 2 3'];

/** rttCurves shows how large a share of the networks of each site {name, rtt: {curve}} answers within which time. */
export function rttCurves(sites) {
  const [w, height, left, right, top, bottom] = [room(), 280, 44, 14, 10, 28];
  const all = sites.flatMap((x) => x.rtt.curve_ns).filter((v) => v > 0);
  const low = Math.log10(Math.min(...all));
  const high = Math.max(Math.log10(Math.max(...all)), low + 0.3);
  const x = (ns) => left + ((Math.log10(Math.max(ns, 10 ** low)) - low) / (high - low)) * (w - left - right);
  const y = (p) => top + (1 - p) * (height - top - bottom);
  const marks = [];
  for (let e = Math.floor(low); e <= high; e++) for (const m of [1, 2, 5]) marks.push(m * 10 ** e);
  const svg = s('svg', { class: 'chart', width: w, height, viewBox: `0 0 ${w} ${height}`, role: 'img', 'aria-label': 'Distribution of round-trip times, by site; the table has the figures' });
  for (const p of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(s('line', { class: 'grid', x1: left, x2: w - right, y1: y(p), y2: y(p) }), s('text', { x: left - 7, y: y(p) + 4, 'text-anchor': 'end' }, `${100 * p} %`));
  }
  for (const m of marks.filter((v) => Math.log10(v) >= low && Math.log10(v) <= high && (w > 500 || !/^5/.test(String(v))))) {
    svg.append(s('line', { class: 'grid', x1: x(m), x2: x(m), y1: top, y2: height - bottom }), s('text', { x: x(m), y: height - 10, 'text-anchor': 'middle' }, span(m).replace('.0', '')));
  }
  sites.forEach((site, i) => {
    const points = site.rtt.curve_ns.map((v, k) => `${x(v).toFixed(1)} ${y(k / (site.rtt.curve_ns.length - 1)).toFixed(1)}`);
    svg.append(s('path', { d: `M${points.join('L')}`, fill: 'none', 'stroke-width': 2.2, 'stroke-dasharray': dashes[i % dashes.length], 'stroke-linejoin': 'round', style: { stroke: colour(site.name) } },
      s('title', null, site.name)));
  });
  return h('div', null, svg, legendOf(sites.map((x) => x.name)));
}

/** legendOf names colours. */
export const legendOf = (names) => h('div', { class: 'legend' }, names.map((n) => h('span', { class: 'item' }, label(n))));

/** timeline shows a watch {times, sites: {name: [answers]}, lost, moved}: answers by site on each other, and moves below. */
export function timeline(watch) {
  const names = Object.keys(watch.sites).sort();
  const n = watch.times.length;
  const [w, left, right, top, tall, gap, low] = [room(), 46, 6, 8, 250, 16, 46];
  const height = top + tall + gap + low + 24;
  const layers = [...names.map((name) => ({ name, values: watch.sites[name] })), { name: '', values: watch.lost }];
  const totals = watch.times.map((_, i) => layers.reduce((sum, l) => sum + l.values[i], 0));
  const most = Math.max(1, ...totals);
  const mostMoved = Math.max(1, ...watch.moved);
  const x = (i) => left + (n > 1 ? (i / (n - 1)) * (w - left - right) : 0);
  const y = (v) => top + (1 - v / most) * tall;
  const floor = top + tall + gap + low;
  const svg = s('svg', { class: 'chart', width: w, height, viewBox: `0 0 ${w} ${height}`, tabindex: 0, role: 'img', 'aria-label': `Answers over time by site: ${names.join(', ')}. Arrow keys read the values.` });
  const base = new Array(n).fill(0);
  for (const layer of layers) {
    const under = base.map((v, i) => `${x(i).toFixed(1)} ${y(v).toFixed(1)}`);
    layer.values.forEach((v, i) => { base[i] += v; });
    const over = base.map((v, i) => `${x(i).toFixed(1)} ${y(v).toFixed(1)}`);
    svg.append(s('path', { d: `M${over.join('L')}L${under.reverse().join('L')}Z`, class: layer.name === '' && 'lost', style: layer.name === '' ? {} : { fill: colour(layer.name) } }, s('title', null, layer.name || 'no answer')));
  }
  for (const p of [0, 0.5, 1]) {
    const v = Math.round(most * p);
    svg.append(s('line', { class: 'grid', x1: left, x2: w - right, y1: y(v), y2: y(v) }), s('text', { x: left - 7, y: y(v) + 4, 'text-anchor': 'end' }, count(v)));
  }
  const width = Math.max(1.5, (w - left - right) / n - 0.5);
  watch.moved.forEach((v, i) => {
    if (v > 0) svg.append(s('rect', { class: 'moves', x: x(i) - width / 2, width, y: floor - (v / mostMoved) * low, height: (v / mostMoved) * low }));
  });
  svg.append(s('line', { class: 'axis', x1: left, x2: w - right, y1: floor, y2: floor }), s('text', { x: left - 7, y: floor - low / 2 + 4, 'text-anchor': 'end' }, 'moves'));
  for (const p of w > 500 ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.5, 1]) {
    const i = Math.round(p * (n - 1));
    svg.append(s('text', { x: x(i), y: height - 6, 'text-anchor': p === 0 ? 'start' : p === 1 ? 'end' : 'middle' }, clock(watch.times[i])));
  }
  const cross = s('line', { class: 'cross', y1: top, y2: floor, visibility: 'hidden' });
  svg.append(cross);
  const readout = h('div', { class: 'readout', role: 'status' });
  let at = n - 1;
  const show = (i, mark) => {
    at = Math.min(n - 1, Math.max(0, i));
    cross.setAttribute('x1', x(at));
    cross.setAttribute('x2', x(at));
    cross.setAttribute('visibility', mark ? 'visible' : 'hidden');
    readout.replaceChildren(h('b', null, clock(watch.times[at], true)), ...layers.map((l) => h('span', { class: 'site' }, swatch(l.name), l.name || 'no answer', ' ', h('b', null, count(l.values[at])))),
      h('span', null, 'moved ', h('b', null, count(watch.moved[at]))));
  };
  svg.addEventListener('pointermove', (e) => {
    const r = svg.getBoundingClientRect();
    show(Math.round((((e.clientX - r.left) / r.width) * w - left) / (w - left - right) * (n - 1)), true);
  });
  svg.addEventListener('pointerleave', () => show(n - 1, false));
  svg.addEventListener('keydown', (e) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[e.key];
    if (!step) return;
    e.preventDefault();
    show(at + step, true);
  });
  show(n - 1, false);
  return h('div', null, svg, readout);
}

/** matrix shows flows {from, to, count}. Choose, if given, is called with a flow that is clicked, or null. */
export function matrix(flows, choose) {
  const names = [...new Set(flows.flatMap((f) => [f.from, f.to]))].sort((a, b) => (a === '') - (b === '') || (a < b ? -1 : 1));
  const find = (from, to) => flows.find((f) => f.from === from && f.to === to);
  const most = Math.max(1, ...flows.filter((f) => f.from !== f.to).map((f) => f.count));
  const buttons = [];
  let chosen = null;
  const cell = (from, to) => {
    const f = find(from, to);
    if (!f) return h('td', { class: 'same' }, h('span', null, from === '' && to === '' ? '' : '·'));
    if (from === to) return h('td', { class: 'same' }, h('span', { title: 'stayed' }, count(f.count)));
    const strength = Math.round(10 + 55 * Math.sqrt(f.count / most));
    const style = { background: `color-mix(in srgb, ${colour(to)} ${strength}%, transparent)` };
    if (!choose) return h('td', { style }, h('span', null, count(f.count)));
    const button = h('button', {
      'aria-pressed': 'false', title: `${from || 'no answer'} to ${to || 'no answer'}`,
      onclick: () => {
        chosen = chosen === f ? null : f;
        for (const b of buttons) b.setAttribute('aria-pressed', String(b === button && chosen !== null));
        choose(chosen);
      },
    }, count(f.count));
    buttons.push(button);
    return h('td', { style }, button);
  };
  return h('div', { class: 'scroll' }, h('table', { class: 'matrix' },
    h('thead', null, h('tr', null, h('th', null, 'from ↓ to →'), names.map((n) => h('th', { scope: 'col' }, label(n))))),
    h('tbody', null, names.map((from) => h('tr', null, h('th', { scope: 'row' }, label(from)), names.map((to) => cell(from, to)))))));
}
