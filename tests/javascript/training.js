'use strict';
// What turns weights and examples into the bytes of an upload. Logistic regression on 64 inputs, and nothing else.
const INPUTS = 64;
const CLASSES = 10;
const SIZE = INPUTS * CLASSES + CLASSES; // the kernel, row by row: weight[input * 10 + class]; then the bias

const understands = ({ model, size }) => model === 'digits-logistic' && Number(size) === SIZE;

// What plain SGD changes in the weights. Where that is no number it is zeros, and not a reason to stay away: data must not decide
// who is counted. A plan that asks for another optimizer is refused, before any example is touched.
function trained(plan, weights, examples) {
  if (!['', 'sgd'].includes(plan.optimizer ?? '') || plan.momentum) throw new Error('there is only plain SGD here');
  try {
    const moved = Float32Array.from(weights);
    for (const batch of batches(plan, examples)) step(moved, batch, plan.learning_rate);
    const update = moved.map((weight, place) => weight - weights[place]);
    if (update.every(Number.isFinite)) return update;
  } catch { /* whatever it was, it may have been the data */ }
  return new Float32Array(weights.length);
}

function* batches({ epochs, local_steps, batch_size, max_examples }, examples) { // of so many epochs, or so many of them
  for (let epoch = 0, left = local_steps; local_steps ? left > 0 : epoch < epochs; epoch++) {
    const chosen = shuffled(examples).slice(0, max_examples || examples.length);
    for (let at = 0; at < chosen.length; at += batch_size) {
      yield chosen.slice(at, at + batch_size);
      if (--left === 0) return;
    }
  }
}

function step(weights, batch, learningRate) { // on the mean cross-entropy of a batch
  const gradient = new Float64Array(SIZE);
  for (const { features, label } of batch) {
    const logits = Array.from(weights.subarray(INPUTS * CLASSES));
    features.forEach((x, i) => logits.forEach((_, c) => { logits[c] += x * weights[i * CLASSES + c]; }));
    const largest = Math.max(...logits);
    const shares = logits.map(logit => Math.exp(logit - largest));
    const total = shares.reduce((sum, share) => sum + share);
    shares.forEach((share, c) => {
      const error = (share / total - (c === label ? 1 : 0)) / batch.length;
      features.forEach((x, i) => { gradient[i * CLASSES + c] += error * x; });
      gradient[INPUTS * CLASSES + c] += error;
    });
  }
  gradient.forEach((slope, place) => { weights[place] -= learningRate * slope; });
}

function shuffled(examples) {
  const order = [...examples];
  for (let last = order.length - 1; last > 0; last--) {
    const other = Math.floor((last + 1) * Math.random());
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

// Integers in grid units, of norm at most 2^gridBits, exactly: their squares stay below 2^53.
function clip(update, clipNorm, gridBits) {
  const norm = Math.sqrt(update.reduce((sum, value) => sum + value * value, 0));
  let factor = norm > 0 ? (Math.min(1, clipNorm / norm) * 2 ** gridBits) / clipNorm : 0;
  for (;;) {
    const vector = Array.from(update, value => Math.trunc(value * factor));
    if (vector.reduce((sum, value) => sum + value * value, 0) <= 4 ** gridBits) return vector;
    factor *= 1 - 2 ** -30;
  }
}

function encode(vector, encoding) {
  const width = { INT16_LE: 2, INT32_LE: 4 }[encoding];
  const payload = Buffer.alloc(width * vector.length);
  vector.forEach((value, place) => payload.writeIntLE(value, width * place, width));
  return payload;
}

function crc32(bytes) { // IEEE 802.3, reflected
  let rest = ~0;
  for (const byte of bytes) {
    rest ^= byte;
    for (let bit = 0; bit < 8; bit++) rest = (rest >>> 1) ^ (rest & 1 ? 0xedb88320 : 0);
  }
  return ~rest >>> 0;
}

module.exports = { clip, crc32, encode, trained, understands };
