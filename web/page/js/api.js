// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

/** path is where a measurement is in the API. */
export const path = (id, rest = '') => `api/measurements/${encodeURIComponent(id)}${rest}`;

/** get asks the API. Parameters that are undefined or empty are left out. */
export async function get(where, params = {}, signal) {
  const query = new URLSearchParams(Object.entries(params).filter(([, v]) => v !== undefined && v !== '' && v !== false));
  const response = await fetch(query.size ? `${where}?${query}` : where, { signal });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `the server answered ${response.status}`);
  return body;
}

/**
 * follow listens to events for as long as the page is visible: browsers open few connections to one server, and
 * a hidden page needs none. It gives a function that ends it.
 */
export function follow(where, handlers, state = () => {}) {
  let source = null;
  let ended = false;
  const open = () => {
    if (source || ended || document.hidden) return;
    source = new EventSource(where);
    source.onopen = () => state(true);
    source.onerror = () => {
      state(false);
      if (source?.readyState !== EventSource.CLOSED) return; // it tries again by itself
      close();
      if (!ended) setTimeout(open, 5000);
    };
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (e) => handle(JSON.parse(e.data)));
    }
  };
  const close = () => {
    source?.close();
    source = null;
  };
  const turn = () => (document.hidden ? close() : open());
  document.addEventListener('visibilitychange', turn);
  open();
  return () => {
    ended = true;
    document.removeEventListener('visibilitychange', turn);
    close();
  };
}
