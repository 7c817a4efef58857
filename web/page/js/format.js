// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

const whole = new Intl.NumberFormat('en');

export const count = (n) => whole.format(n ?? 0);

export function percent(share) {
  const p = 100 * share;
  if (!Number.isFinite(p)) return '–';
  return `${p > 0 && p < 10 ? p.toFixed(1) : p.toFixed(0)} %`;
}

/** span writes nanoseconds. */
export function span(ns) {
  const abs = Math.abs(ns);
  if (abs < 1e6) return `${(ns / 1e3).toFixed(0)} µs`;
  if (abs < 1e9) return `${(ns / 1e6).toFixed(abs < 1e8 ? 1 : 0)} ms`;
  if (abs < 60e9) return `${(ns / 1e9).toFixed(1)} s`;
  const m = Math.round(abs / 60e9);
  return m < 120 ? `${m} min` : m < 2880 ? `${Math.round(m / 60)} h` : `${Math.round(m / 1440)} d`;
}

export function ago(time) {
  const ns = (Date.now() - Date.parse(time)) * 1e6;
  return ns < 5e9 ? 'just now' : `${span(ns)} ago`.replace(/\.\d s/, ' s');
}

const two = (n) => String(n).padStart(2, '0');

export function clock(time, millis) {
  const d = new Date(time);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}${millis ? `.${String(d.getMilliseconds()).padStart(3, '0')}` : ''}`;
}

export function when(time) {
  const d = new Date(time);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${clock(time)}`;
}
