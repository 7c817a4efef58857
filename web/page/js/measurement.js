// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { follow, get, path } from './api.js';
import { legendOf, matrix, rttCurves, shareBar, timeline } from './charts.js';
import { card, h, kpis, table } from './dom.js';
import { clock, count, percent, span, when } from './format.js';
import { HilbertMap } from './hilbert.js';
import { hopGraph } from './hopgraph.js';
import { nameOf, pill, progress } from './measurements.js';
import { NetworkTable } from './networks.js';
import { colour, label, learn } from './sites.js';

// formats are what the results of a program can be had in.
function formats(program) {
  if (program === 'volta') return [['jsonl', 'JSON Lines']];
  const all = [['jsonl', 'JSON Lines'], ['csv', 'CSV'], ['parquet', 'Parquet']];
  return program === 'trace' ? [...all, ['atlas', 'RIPE Atlas'], ['scamper-json', 'scamper JSON'], ['warts', 'warts']] : all;
}

// How often the sums of a running measurement are asked for.
const freshEvery = 1500;

/** MeasurementView shows one measurement, live while it runs. */
export class MeasurementView {
  #id;
  #fail;
  #head = h('div', { class: 'stack' });
  #body = h('div', { class: 'stack' }, h('p', { class: 'empty' }, 'Summing up…'));
  #compare = h('select', { 'aria-label': 'Compare with' });
  #others = '';
  #networks = null;
  #map = null;
  #stop = null;
  #timer = 0;
  #asked = 0;
  #asking = false;
  #again = false;
  #measurement = null;
  #trace = null;
  #shownTrace = 0;
  #origin = ''; // the one looked at, of several
  title = '';
  element = [this.#head, this.#body];

  constructor(id, fail) {
    this.#id = id;
    this.#fail = fail;
    this.#compare.addEventListener('change', () => {
      const [before, after] = [this.#compare.value, id].sort(); // ids sort by start
      if (before) location.hash = `#/compare/${encodeURIComponent(before)}/${encodeURIComponent(after)}`;
    });
  }

  close() {
    this.#stop?.();
    this.#map?.close();
    clearTimeout(this.#timer);
  }

  async open() {
    await this.#refresh();
    if (!['running', 'waiting'].includes(this.#measurement.state)) return;
    this.#stop = follow(path(this.#id, '/events'), {
      update: (u) => {
        this.#measurement = u.measurement;
        this.#showHead();
        this.#soon();
      },
      end: () => {
        this.#stop();
        this.#refresh().catch(this.#fail);
      },
    });
  }

  /** state is told whenever the list of measurements changes. */
  state({ measurements }) {
    const others = [...measurements.values()].filter((m) => m.id !== this.#id && ['catchment', 'latency'].includes(m.definition.program) && m.state !== 'waiting').sort((a, b) => (a.id < b.id ? 1 : -1));
    const text = others.map((m) => m.id).join();
    if (text === this.#others) return;
    this.#others = text;
    this.#compare.replaceChildren(h('option', { value: '' }, 'compare with…'), ...others.map((m) => h('option', { value: m.id }, `${nameOf(m)}, ${when(m.start)}`)));
  }

  #soon() {
    if (this.#timer) return;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#refresh().catch(this.#fail);
    }, Math.max(0, this.#asked + freshEvery - Date.now()));
  }

  async #refresh() {
    if (this.#asking) { // one at a time; the last word counts
      this.#again = true;
      return;
    }
    this.#asking = true;
    this.#asked = Date.now();
    try {
      const sum = await get(path(this.#id, '/summary'), { origin: this.#origin });
      this.#measurement = sum.measurement;
      learn(sum.sites.map((x) => x.name));
      this.#showHead();
      await this.#showBody(sum);
    } finally {
      this.#asking = false;
    }
    if (this.#again) {
      this.#again = false;
      await this.#refresh();
    }
  }

  #showHead() {
    const m = this.#measurement;
    const d = m.definition;
    this.title = nameOf(m);
    document.title = `${this.title} · Fathom anycast`;
    const meta = [
      ['program', d.program], d.protocol && ['protocol', d.protocol], ['from', (d.sites ?? []).length ? d.sites.map((n) => [label(n), ' ']) : 'all sites'], ['targets', count(m.targets)],
      d.source && ['source', h('span', { class: 'mono' }, d.source)], ['started', when(m.start)], m.end && ['took', span((Date.parse(m.end) - Date.parse(m.start)) * 1e6)],
      m.owner && ['by', m.owner], d.schedule && ['every', span(d.schedule.every_ns)], m.parent && ['run of', h('a', { href: `#/m/${encodeURIComponent(m.parent)}` }, m.parent)], nameOf(m) !== m.id && ['id', h('span', { class: 'mono' }, m.id)],
    ].filter(Boolean);
    const comparable = ['catchment', 'latency'].includes(d.program);
    const focus = document.activeElement === this.#compare;
    this.#head.replaceChildren(
      h('section', { class: 'card' },
        h('a', { class: 'back small', href: '#/' }, '← all measurements'),
        h('div', { class: 'title' }, h('h1', null, nameOf(m)), pill(m.state)),
        h('dl', { class: 'meta' }, meta.map(([k, v]) => h('div', null, h('dt', null, k), h('dd', null, v)))),
        m.state === 'running' && h('div', { class: 'actions' }, h('div', { class: 'grow' }, progress(m))),
        m.error && h('p', { class: 'note' }, m.error),
        h('div', { class: 'actions' }, comparable && this.#compare, h('span', { class: 'dim' }, 'Download: '), formats(d.program).map(([format, name]) => h('a', { href: path(this.#id, `/results?format=${format}`), download: true }, name)))));
    if (focus) this.#compare.focus();
  }

  async #showBody(sum) {
    const parts = [];
    const program = this.#measurement.definition.program;
    if (sum.origins?.length) parts.push(this.#originPart(sum));
    if (sum.watch) parts.push(...watchParts(sum.watch, sum.summary));
    if (sum.flips || program === 'flipping') parts.push(...flipParts(sum.flips, sum.summary));
    if (sum.latency) parts.push(...latencyParts(sum));
    if (sum.networks + sum.silent > 0) parts.push(...this.#catchmentParts(sum));
    if (sum.traces?.length) parts.push(...await this.#traceParts(sum));
    for (const a of sum.answers ?? []) parts.push(card('Answer', `code ${a.code}`, h('pre', null, a.text)));
    if (sum.texts?.length) parts.push(textPart(sum.texts));
    parts.push(...noteParts(sum));
    if (parts.length === 0) parts.push(card('Results', '', h('p', { class: 'empty' }, 'Nothing found yet.')));
    this.#body.replaceChildren(...parts);
    await Promise.all([sum.networks + sum.silent > 0 && this.#networks.refresh(), sum.ipv4 > 0 && this.#map.refresh()]);
  }

  #catchmentParts(sum) {
    this.#networks ??= new NetworkTable(this.#id, () => this.#origin);
    this.#networks.sites(sum.sites.map((x) => x.name));
    this.#map ??= new HilbertMap(this.#id, () => this.#origin);
    const probed = sum.networks + sum.silent;
    const inside = sum.sites.filter((x) => x.answers > 0);
    const weight = sum.origin ? sum.summary?.origins?.find((o) => o.name === sum.origin)?.weight : sum.summary?.weight;
    const parts = [];
    if (!sum.latency) {
      parts.push(kpis([count(sum.networks), 'networks answer'], [percent(sum.networks / probed), 'of those probed'], [count(inside.length), inside.length === 1 ? 'site catches them' : 'sites catch them'],
        [count(sum.split), 'reach several sites'], sum.summary && [count(sum.summary.sent), 'probes sent']));
    }
    parts.push(card('Share of each site', weight ? 'by networks, and by your query counts' : 'by networks (/24 and /48)', shareBar(inside.map((x) => ({ name: x.name, value: x.networks }))),
      weight && h('div', { class: 'stack' }, h('h3', null, 'By queries'), shareBar(Object.entries(weight).sort().map(([name, value]) => ({ name, value })))),
      h('div', { class: 'scroll' }, table([
        { title: 'Site', cell: (x) => label(x.name) }, { title: 'Networks', num: true, cell: (x) => count(x.networks) }, { title: 'Share', num: true, cell: (x) => percent(x.share) },
        { title: 'Answers', num: true, cell: (x) => count(x.answers) }, { title: 'Median RTT', num: true, cell: (x) => (x.rtt ? span(x.rtt.p50_ns) : '') },
      ], inside))));
    if (sum.ipv4 > 0) parts.push(card('Map', 'IPv4 along a Hilbert curve', this.#map.element));
    if (!sum.latency && inside.some((x) => x.rtt)) parts.push(curvesPart(inside));
    parts.push(card('Networks', `${count(probed)} probed`, this.#networks.element));
    return parts;
  }

  #originPart(sum) {
    this.#origin = sum.origin;
    const first = sum.origins[0].name;
    return card('Origins', 'what is sent from, side by side; what follows is about the one that is chosen', h('div', { class: 'scroll' }, table([
      { title: 'Origin', cell: (o) => h('button', { 'aria-pressed': String(o.name === sum.origin), onclick: () => this.#chooseOrigin(o.name) }, o.name) },
      { title: 'Source', cell: (o) => h('span', { class: 'mono' }, o.source ?? 'each site’s first') },
      { title: 'Sent from', cell: (o) => (o.sites ?? []).map((n) => [label(n), ' ']) },
      { title: 'Networks', num: true, cell: (o) => count(o.networks) },
      { title: 'Caught by', cell: (o) => Object.entries(o.caught).sort((a, b) => b[1] - a[1]).map(([n, c]) => [label(n), h('span', { class: 'dim small' }, ` ${percent(c / o.networks)}  `)]) },
      { title: 'Split', num: true, cell: (o) => count(o.split) },
      { title: `Elsewhere than from ${first}`, num: true, cell: (o) => (o.name === first || !o.compared ? '' : `${count(o.elsewhere)} of ${count(o.compared)}`) },
    ], sum.origins)));
  }

  #chooseOrigin(name) {
    this.#origin = name;
    this.#networks?.first();
    this.#refresh().catch(this.#fail);
  }

  async #traceParts(sum) {
    const list = sum.traces;
    if (!this.#shownTrace) this.#shownTrace = list[0].n;
    if (this.#trace?.n !== this.#shownTrace) this.#trace = { n: this.#shownTrace, ...await get(path(this.#id, `/traces/${this.#shownTrace}`)) };
    const parts = [];
    if (list.length > 1) {
      parts.push(card('Traces', sum.traced > list.length ? `the first ${count(list.length)} of ${count(sum.traced)}` : `${count(list.length)}`, h('div', { class: 'scroll tall' }, table([
        { title: 'Target', cell: (t) => h('button', { class: 'mono', 'aria-pressed': String(t.n === this.#shownTrace), onclick: () => this.#choose(t.n) }, t.name ? `${t.name} (${t.target})` : t.target) },
        { title: 'From', cell: (t) => label(t.site) }, { title: 'Heard at', cell: (t) => t.receivers.map((r) => [label(r), ' ']) }, { title: 'Hops', num: true, cell: (t) => t.hops }, { title: 'End', cell: (t) => t.stop },
      ], list))));
    }
    const { trace, graph } = this.#trace;
    const names = [...new Set([trace.site, ...trace.replies.map((r) => r.receiver).filter(Boolean)])].sort();
    const about = [`${trace.method}, ${trace.protocol}, ${count(trace.probes)} probes, ${trace.stop}`, graph.confidence ? `, confidence ${percent(graph.confidence)}` : ''].join('');
    parts.push(h('div', { class: 'cols path' },
      card(`Path to ${trace.name || trace.target}`, about, hopGraph(graph, trace.site), legendOf(names),
        h('div', { class: 'actions' }, h('a', { href: path(this.#id, `/traces/${this.#trace.n}/graph.svg`), target: '_blank', rel: 'noopener' }, 'Picture'))),
      card('Hops', 'who answered, and which site heard it', hopTable(trace))));
    return parts;
  }

  #choose(n) {
    this.#shownTrace = n;
    this.#refresh().catch(this.#fail);
  }
}

function hopTable(trace) {
  const rows = [];
  for (const r of trace.replies) {
    const key = `${r.ttl} ${r.responder ?? '*'} ${r.receiver ?? ''}`;
    let row = rows.find((x) => x.key === key);
    if (!row) rows.push(row = { key, reply: r, times: [], n: 0, error: 0 });
    row.n++;
    if (r.rtt_ns) row.times.push(r.rtt_ns);
    row.error = Math.max(row.error, r.clock_error_ns ?? 0);
  }
  const rtt = (x) => (x.times.length ? [span(x.times.reduce((a, b) => a + b) / x.times.length), x.error ? h('span', { class: 'dim', title: 'sender and receiver have different clocks' }, ` ± ${span(x.error)}`) : ''] : '');
  return h('div', { class: 'scroll' }, table([
    { title: 'Hop', num: true, cell: (x) => x.reply.ttl },
    { title: 'Router', cell: (x) => (x.reply.responder ? h('span', { class: 'mono' }, x.reply.responder) : h('span', { class: 'noanswer' }, '*')) },
    { title: 'Heard at', cell: (x) => (x.reply.responder ? label(x.reply.receiver || trace.site) : '') },
    { title: 'RTT', num: true, cell: rtt },
    { title: 'Probes', num: true, cell: (x) => x.n },
    rows.some((x) => x.reply.mpls?.length) && { title: 'MPLS', cell: (x) => h('span', { class: 'mono small' }, (x.reply.mpls ?? []).map((l) => l.label ?? l.Label).join(' ')) },
  ].filter(Boolean), rows));
}

const curvesPart = (sites) => card('Round-trip times', 'share of the answers within that time, by the site that caught them', rttCurves(sites.filter((x) => x.rtt)));

function latencyParts(sum) {
  const l = sum.latency;
  const sites = sum.sites.filter((x) => x.rtt);
  return [
    kpis([count(l.targets), 'targets are caught'], [percent(l.inflated / l.targets), 'another site is nearer to'], [l.worst.length ? span(l.worst[0].inflation_ns) : '–', 'worst detour']),
    sites.length ? curvesPart(sites) : '',
    sites.length ? card('By site', '', h('div', { class: 'scroll' }, table([
      { title: 'Site', cell: (x) => label(x.name) }, { title: 'Targets', num: true, cell: (x) => count(x.rtt.count) }, { title: '5 %', num: true, cell: (x) => span(x.rtt.p5_ns) },
      { title: 'Median', num: true, cell: (x) => span(x.rtt.p50_ns) }, { title: '95 %', num: true, cell: (x) => span(x.rtt.p95_ns) },
    ], sites))) : '',
    card('Worst detours', 'targets that lose most by reaching the site that catches them', l.worst.length === 0 ? h('p', { class: 'empty' }, 'Every target reaches its nearest site.') : h('div', { class: 'scroll tall' }, table([
      { title: 'Target', cell: (x) => h('span', { class: 'mono' }, x.target) }, { title: 'Caught by', cell: (x) => label(x.catcher) }, { title: 'RTT', num: true, cell: (x) => span(x.rtt_ns) },
      { title: 'Nearest', cell: (x) => label(x.best) }, { title: 'Detour', num: true, cell: (x) => h('b', null, `+${span(x.inflation_ns)}`) },
      { title: '', cell: (x) => h('span', { class: 'bar', style: { width: '80px' } }, h('i', { style: { width: `${(100 * x.inflation_ns) / l.worst[0].inflation_ns}%`, background: colour(x.catcher) } })) },
    ], l.worst))),
  ].filter(Boolean);
}

function watchParts(w, summary) {
  const answers = Object.values(w.sites).flat().reduce((a, b) => a + b, 0);
  const lost = w.lost.reduce((a, b) => a + b, 0);
  return [
    kpis([count(w.total), 'moves'], [percent(lost / Math.max(1, lost + answers)), 'probes without an answer'], [summary?.converged_ns ? span(summary.converged_ns) : '–', 'until it settled'], [count(Object.keys(w.sites).length), 'sites seen']),
    w.times.length ? card('Catchments over time', 'answers by site in each interval; below, the targets that changed site', timeline(w)) : '',
    w.total > 0 ? h('div', { class: 'cols' }, card('Who moved where', 'from the rows to the columns', matrix(w.matrix)),
      card('Moves', w.total > w.moves.length ? `the newest ${count(w.moves.length)} of ${count(w.total)}` : 'newest first', h('div', { class: 'scroll tall' }, table([
        { title: 'Time', cell: (m) => clock(m.time, true) }, { title: 'Target', cell: (m) => h('span', { class: 'mono' }, m.target) }, { title: 'From', cell: (m) => label(m.from) }, { title: 'To', cell: (m) => label(m.to) },
        { title: 'Silent for', num: true, cell: (m) => (m.gap_ns ? span(m.gap_ns) : '') },
      ], w.moves.slice(0, 200))))) : '',
  ].filter(Boolean);
}

function flipParts(f, summary) {
  if (!f) return [card('Flipping targets', '', h('p', { class: 'empty' }, 'No target reached several sites.'))];
  return [
    kpis([count(f.targets), 'targets reach several sites'], summary && [percent(f.targets / Math.max(1, summary.targets)), 'of those probed'], [count(f.by_flow), 'by flow'], [count(f.by_protocol), 'by protocol'], [count(f.by_time), 'over time']),
    card('Flipping targets', f.targets > f.list.length ? `the first ${count(f.list.length)} of ${count(f.targets)}` : '', h('div', { class: 'scroll tall' }, table([
      { title: 'Target', cell: (x) => h('span', { class: 'mono' }, x.target) },
      { title: 'Sites', cell: (x) => Object.entries(x.seen).sort((a, b) => b[1] - a[1]).map(([name, n]) => [label(name), h('span', { class: 'dim small' }, ` ${count(n)}  `)]) },
      { title: 'Changes with', cell: (x) => [x.by_flow && 'flow', x.by_protocol && 'protocol', x.by_time && 'time'].filter(Boolean).join(', ') },
      { title: 'RTT apart', num: true, cell: (x) => (x.spread_ns ? span(x.spread_ns) : '') },
      { title: 'Paths part', cell: (x) => (x.parting ? [`after hop ${x.parting.ttl} `, h('span', { class: 'mono' }, x.parting.common ?? '')] : '') },
    ], f.list))),
  ];
}

const textPart = (texts) => card('Names of the servers', 'what answers to CHAOS queries say', h('div', { class: 'scroll tall' }, table([
  { title: 'Site', cell: (t) => label(t.site) }, { title: 'Name', cell: (t) => h('span', { class: 'mono' }, t.text) }, { title: 'Answers', num: true, cell: (t) => count(t.count) },
], texts)));

function noteParts(sum) {
  const parts = [];
  const notes = sum.summary?.notes ?? [];
  const skipped = Object.entries(sum.summary?.skipped ?? {});
  if (sum.beyond) notes.push(`There was no room for the networks of ${count(sum.beyond)} probes; they are in the results, not in these sums.`);
  if (notes.length || skipped.length) {
    parts.push(card('Notes', '', notes.map((n) => h('p', { class: 'note' }, n)), skipped.length > 0 && h('p', { class: 'dim small' }, 'Targets left out: ', skipped.map(([why, n]) => `${count(n)} ${why}`).join(', '))));
  }
  if (sum.alarms?.length) {
    parts.push(card('Alarms', '', h('div', { class: 'scroll' }, table([
      { title: 'Time', cell: (a) => when(a.time) }, { title: 'Moved', num: true, cell: (a) => percent(a.share) }, { title: 'Limit', num: true, cell: (a) => percent(a.limit) },
      { title: '', cell: (a) => h('a', { href: `#/compare/${encodeURIComponent(a.before)}/${encodeURIComponent(a.after)}` }, 'who moved') },
    ], sum.alarms))));
  }
  return parts;
}
