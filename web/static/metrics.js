// A page of /metrics: text format 0.0.4.

const LINE = /^([a-z0-9_:]+)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-z_]+)="((?:[^"\\]|\\.)*)"/g;

export class Metrics {
  constructor(text, at) {
    this.at = at; // milliseconds
    this.families = new Map(); // name: [{labels, value}]
    for (const line of text.split("\n")) {
      const found = LINE.exec(line);
      if (found === null) continue;
      const [, name, labels, value] = found;
      if (!this.families.has(name)) this.families.set(name, []);
      this.families.get(name).push({
        labels: Object.fromEntries([...(labels ?? "").matchAll(LABEL)].map(m => [m[1], m[2]])),
        value: value === "+Inf" ? Infinity : Number(value),
      });
    }
  }

  all(name) {
    return this.families.get("pikv_" + name) ?? [];
  }

  // The sum over samples with these labels; 0 without any.
  get(name, wanted = {}) {
    return this.all(name)
      .filter(({ labels }) => Object.entries(wanted).every(([k, v]) => labels[k] === v))
      .reduce((sum, { value }) => sum + value, 0);
  }
}

// Growth of a counter per second; NaN before there are two scrapes. A restart counts from 0.
export function rate(now, before, name, wanted = {}) {
  if (!before || now.at <= before.at) return NaN;
  const grown = now.get(name, wanted) - before.get(name, wanted);
  return (grown >= 0 ? grown : now.get(name, wanted)) / ((now.at - before.at) / 1000);
}

// The mean and a quantile of what a histogram counted between two scrapes; NaN if that is nothing. Within a bucket
// values are taken to lie evenly, as Prometheus does.
export function spread(now, before, name, quantile) {
  const old = new Map((before?.all(name + "_bucket") ?? []).map(s => [s.labels.le, s.value]));
  const buckets = now.all(name + "_bucket").map(s => [
    s.labels.le === "+Inf" ? Infinity : Number(s.labels.le), s.value - (old.get(s.labels.le) ?? 0)]);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return { mean: NaN, quantile: NaN };
  const mean = (now.get(name + "_sum") - (before?.get(name + "_sum") ?? 0)) / total;
  let [edge, below] = [0, 0];
  for (const [le, n] of buckets) {
    if (n >= quantile * total) {
      const within = n > below ? (quantile * total - below) / (n - below) : 1;
      return { mean, quantile: le === Infinity ? edge : edge + (le - edge) * within };
    }
    [edge, below] = [le, n];
  }
  return { mean, quantile: edge };
}
