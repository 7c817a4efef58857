// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { h, s } from './dom.js';
import { span } from './format.js';
import { colour } from './sites.js';

const [wide, tall, gapX, gapY, gutter] = [174, 48, 12, 26, 24];

/** arrange gives the nodes by hop, in an order that keeps links short (Sugiyama's barycentre method). */
function arrange(graph) {
  const hops = [];
  graph.nodes.forEach((n, i) => {
    if (i === 0 || n.ttl !== graph.nodes[i - 1].ttl) hops.push([]);
    hops.at(-1).push(i);
  });
  const place = [];
  const settle = (hop) => hop.forEach((n, i) => { place[n] = (i + 0.5) / hop.length; });
  hops.forEach(settle);
  const sweep = (hop, near) => {
    const weight = new Map(hop.map((n) => {
      const places = near(n).map((o) => place[o]);
      return [n, places.length ? places.reduce((a, b) => a + b) / places.length : place[n]];
    }));
    hop.sort((a, b) => weight.get(a) - weight.get(b));
    settle(hop);
  };
  const before = (n) => graph.edges.filter((e) => e.to === n).map((e) => e.from);
  const after = (n) => graph.edges.filter((e) => e.from === n).map((e) => e.to);
  for (let i = 0; i < 4; i++) {
    hops.forEach((hop) => sweep(hop, before));
    [...hops].reverse().forEach((hop) => sweep(hop, after));
  }
  return hops;
}

/** hopGraph draws a path from top to bottom, each hop in the colours of the sites that heard its answers. Sender is where the probes left. */
export function hopGraph(graph, sender) {
  const hops = arrange(graph);
  const columns = Math.max(...hops.map((hop) => hop.length));
  const width = gutter + columns * (wide + gapX);
  const height = hops.length * (tall + gapY) - gapY + 8;
  const at = [];
  hops.forEach((hop, row) => hop.forEach((n, i) => {
    at[n] = { x: gutter + (width - gutter - hop.length * (wide + gapX) + gapX) / 2 + i * (wide + gapX), y: 4 + row * (tall + gapY) };
  }));
  const svg = s('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': 'The path, hop by hop; the table has the same' });
  for (const e of graph.edges) {
    const [a, b] = [at[e.from], at[e.to]];
    const [x1, y1, x2, y2] = [a.x + wide / 2, a.y + tall, b.x + wide / 2, b.y];
    const weak = e.uncertain || graph.nodes[e.from].kind === 'silent' || graph.nodes[e.to].kind === 'silent';
    svg.append(s('path', {
      class: weak ? 'edge weak' : 'edge', d: `M${x1} ${y1}C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`,
      'stroke-width': 1.4 + Math.min(2.6, 0.5 * Math.log2(Math.max(1, e.flows))),
    }, e.flows > 0 && s('title', null, `${e.flows} ${e.flows === 1 ? 'flow' : 'flows'}`)));
  }
  hops.forEach((hop) => {
    const first = graph.nodes[hop[0]];
    if (first.kind !== 'source') svg.append(s('text', { class: 'n', x: 0, y: at[hop[0]].y + tall / 2 + 4 }, first.ttl));
    for (const i of hop) svg.append(node(graph.nodes[i], at[i], sender));
  });
  const box = h('div', { class: 'hops', tabindex: 0, role: 'region', 'aria-label': 'Path graph' }, svg);
  // A graph that is too wide starts in the middle, where paths begin and end.
  requestAnimationFrame(() => { box.scrollLeft = (box.scrollWidth - box.clientWidth) / 2; });
  return box;
}

function node(n, { x, y }, sender) {
  // Where no receiver is told, answers came home at the sender.
  const heard = n.kind === 'source' ? [sender] : n.receivers.length ? n.receivers : n.answers ? [sender] : [];
  const g = s('g', null, s('rect', { class: `box ${n.kind}`, x, y, width: wide, height: tall, rx: 8, style: heard.length && n.kind !== 'source' ? { fill: `color-mix(in srgb, ${colour(heard[0])} 14%, var(--card))` } : {} }));
  heard.forEach((name, i) => g.append(s('rect', { x: x + 5, y: y + 6 + (i * (tall - 12)) / heard.length, width: 6, height: (tall - 12) / heard.length, rx: 2, style: { fill: colour(name) } })));
  const more = [n.timed ? span(n.avg_ns) : '', heard.length && n.kind !== 'source' ? `heard at ${heard.join(', ')}` : '', n.mpls ? 'MPLS' : '', n.per_packet ? 'per packet' : ''].filter(Boolean).join(' · ');
  const [title, sub] = n.kind === 'source' ? [sender, 'sends'] : n.kind === 'silent' ? ['*', 'no answer'] : [n.addr ?? '?', more];
  const cut = (t, most) => (t.length > most ? `${t.slice(0, most - 1)}…` : t);
  g.append(s('text', { class: 'a', x: x + 19, y: y + 20 }, cut(title, 20)), s('text', { class: 's', x: x + 19, y: y + 37 }, cut(sub, 27)),
    s('title', null, [title, sub, n.mpls && `MPLS ${n.mpls}`].filter(Boolean).join('\n')));
  return g;
}
