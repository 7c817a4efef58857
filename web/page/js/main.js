// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

import { follow } from './api.js';
import { Comparison } from './compare.js';
import { h } from './dom.js';
import { MeasurementView } from './measurement.js';
import { MeasurementList } from './measurements.js';
import { Overview } from './overview.js';
import { learn } from './sites.js';

const main = document.getElementById('main');
const live = document.getElementById('live');
const list = new MeasurementList();
document.getElementById('side').append(...list.element);

const state = { sites: [], measurements: new Map() };
let view = null;

function fail(err) {
  console.error(err);
  main.querySelector('.error')?.remove();
  main.prepend(h('section', { class: 'card error', role: 'alert' }, `That did not work: ${err.message}`));
}

/** route shows what the address asks for. */
async function route() {
  const [, where, ...ids] = location.hash.split('/').map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  view?.close();
  if (where === 'm' && ids[0]) view = new MeasurementView(ids[0], fail);
  else if (where === 'compare' && ids[1]) view = new Comparison(ids[0], ids[1], fail);
  else view = new Overview();
  const shown = view;
  document.body.dataset.view = view instanceof Overview ? 'overview' : 'detail';
  list.current(where === 'm' ? ids[0] : '');
  main.replaceChildren(...view.element);
  document.title = `${view.title ? `${view.title} · ` : ''}Fathom anycast`;
  scrollTo(0, 0);
  try {
    await view.state(state);
    await view.open?.();
  } catch (err) {
    if (shown === view) fail(err);
  }
}

// Events come in bursts: what depends on them is shown once for each burst.
let pending = 0;
function changed() {
  pending ||= setTimeout(() => {
    pending = 0;
    list.state(state);
    Promise.resolve(view.state(state)).catch(fail);
  }, 50);
}

follow('api/events', {
  sites: (e) => {
    state.sites = e.sites;
    learn(e.sites.map((x) => x.name));
    changed();
  },
  measurement: (m) => {
    state.measurements.set(m.id, m);
    changed();
  },
  gone: (e) => {
    state.measurements.delete(e.id);
    changed();
  },
  failure: (e) => fail(new Error(e.error)),
}, (on) => {
  live.textContent = on ? 'live' : 'no connection';
  live.className = `live ${on ? 'on' : 'off'}`;
});

addEventListener('hashchange', route);
setInterval(() => list.state(state), 30_000); // "3 min ago" grows older
route();
