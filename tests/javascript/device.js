'use strict';
// A device of fedrho in a page: docs/protocol.md tells every step of it under "A device in another language".
//
//     node device.js SETTINGS.json    prints how its visit ended, as JSON; or says why not on standard error, and exits with 1
const crypto = require('node:crypto');
const fs = require('node:fs');
const { Ledger } = require('./ledger');
const { clip, encode, trained, understands } = require('./training');
const { GONE, Wire, frame, signed } = require('./wire');

const settings = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const examples = JSON.parse(fs.readFileSync(settings.examples, 'utf8')); // [{ features: [64 numbers], label: 0 to 9 }]
const MECHANISMS = ['independent-gaussian', 'binary-tree'];
const ledger = new Ledger(settings.history);
const server = new Wire(settings);
const sleep = seconds => new Promise(resume => setTimeout(resume, 1000 * seconds));

async function readSpec() {
  const { spec: bytes, signature, public_key: key, retry } = await server.call('GetPopulation', {});
  const expected = settings.population_key ? Buffer.from(settings.population_key, 'hex') : ledger.pinned ?? key;
  if (!key.equals(expected)) throw new Error(`the server shows another population key: ${key.toString('hex')}`);
  if (!signed(key, frame('fedrho.v1 population spec', bytes), signature)) throw new Error('the spec is not signed by its key');
  const spec = server.parse('PopulationSpec', bytes);
  ledger.trust(key, spec.epoch); // throws where the server has gone back
  return { ...spec, key, retry, etag: crypto.createHash('sha256').update(bytes).digest() };
}

function acceptable({ terms }) { // terms that promise something, and nothing weaker than the owner wants
  const { at_most = {}, at_least = {} } = settings.limits ?? {};
  // terms.labels asks for answers for labels, which this device does not give
  return !terms.labels && MECHANISMS.includes(terms.mechanism) &&
    terms.max_participations >= 1 && terms.min_separation >= 1 && terms.clip_norm > 0 &&
    Object.entries(at_most).every(([name, most]) => terms[name] <= most) &&
    Object.entries(at_least).every(([name, least]) => terms[name] >= least);
}

function proof({ key, etag }, request_id, willing) { // that an issuer vouches for this device, good for this check-in alone
  const { private_key, credential } = JSON.parse(fs.readFileSync(settings.token, 'utf8'));
  const message = frame('fedrho.v1 check-in', key, etag, request_id, ...willing.map(({ run }) => run));
  return { credential: Buffer.from(credential, 'hex'), etag, signature: crypto.sign(null, message, private_key) };
}

async function visit() {
  const spec = await readSpec();
  const tasks = spec.tasks.filter(task => understands(task) && acceptable(task) && !task.ended && !ledger.exhausted(task));
  const joined = tasks.filter(task => ledger.allows(task.run, task.released + 1, task.terms));
  if (!joined.length || !examples.length) return { result: tasks.length ? 'not now' : 'nothing to do', retry: spec.retry };
  const willing = joined.map(({ run, wants_device_tag }) => ({ run, device_tag: wants_device_tag ? ledger.tag(run) : null }));
  const request = { request_id: crypto.randomBytes(16), willing };
  if (spec.wants_proof && settings.token) request.proof = proof(spec, request.request_id, willing);
  const { assignment, try_later } = await server.call('CheckIn', request); // repeated, it has the same request_id
  if (try_later) return { result: 'later', reason: try_later.reason, retry: try_later.retry };
  return { run: assignment.plan.run.toString('hex'), step: assignment.plan.step, retry: spec.retry, ...(await work(assignment, joined)) };
}

async function work({ session, plan, ticket, upload_address }, joined) {
  const shard = server.at(upload_address);
  const abort = () => shard.call('AbortSession', { session, ticket, reason: 'NOT_ALLOWED' });
  const task = joined.find(({ run }) => run.equals(plan.run));
  let payload;
  try {
    check(plan, task);
    const update = trained(plan, await weights(plan), examples);
    payload = encode(clip(update, plan.clip_norm, plan.grid_bits), plan.encoding);
  } catch (error) {
    if (error.code === GONE) return { result: 'later' }; // the step was released meanwhile
    await abort();
    throw error;
  }
  if ((await reserve(shard, session, ticket)) !== 'GO') return { result: 'not counted' }; // nothing left the device
  if (!ledger.record(plan.run, plan.step, task.terms)) { // and from here on it counts, whatever happens
    await abort();
    return { result: 'not now' };
  }
  for (;;) {
    const { status, refusal } = await shard.upload(session, payload, plan.chunk_bytes);
    const open = ['NO_RESERVATION', 'ALREADY_OPEN'].includes(refusal) && ['ASSIGNED', 'RESERVED'].includes(status);
    if (!open) return { result: status === 'COUNTED' ? 'counted' : 'not counted', receipt: { status, refusal } };
    await sleep(0.5);
    const answer = await reserve(shard, session, ticket);
    if (answer !== 'GO') return { result: answer === 'ALREADY_COUNTED' ? 'counted' : 'not counted' };
  }
}

function check(plan, task) {
  const encoding = plan.grid_bits <= 14 ? 'INT16_LE' : 'INT32_LE';
  const good = task && plan.model === task.model && plan.size === task.size && plan.clip_norm === task.terms.clip_norm &&
    plan.grid_bits >= 1 && plan.grid_bits <= 24 && plan.encoding === encoding && plan.chunk_bytes >= 1 &&
    (plan.epochs >= 1 || plan.local_steps >= 1) && plan.batch_size >= 1 && task.released < plan.step && plan.step <= task.steps;
  if (!good) throw new Error('the plan is not what the spec announces');
}

async function weights({ checkpoint_sha256, size }) {
  const bytes = await server.download(checkpoint_sha256, 4 * size);
  const same = bytes.length === 4 * size && crypto.createHash('sha256').update(bytes).digest().equals(checkpoint_sha256);
  if (!same) throw new Error('the downloaded weights are not those of the plan');
  return Float32Array.from({ length: size }, (_, place) => bytes.readFloatLE(4 * place));
}

async function reserve(shard, session, ticket) {
  for (;;) {
    const { answer, seconds } = await shard.call('BeginUpload', { session, ticket });
    if (answer !== 'WAIT') return answer;
    await sleep(Math.max(0.05, seconds));
  }
}

async function main() { // comes back as long as others were first, for as long as its owner has patience
  const until = Date.now() + 1000 * (settings.patience_seconds ?? 0);
  for (;;) {
    const { retry, ...outcome } = await visit();
    const pause = retry.min_seconds + (retry.max_seconds - retry.min_seconds) * Math.random(); // one instant, drawn once
    if (outcome.result !== 'later' || Date.now() + 1000 * pause > until) return outcome;
    await sleep(Math.max(0.05, pause));
  }
}

main().then(outcome => console.log(JSON.stringify(outcome)), error => {
  console.error(`device: ${error.message}`);
  process.exitCode = 1;
}).finally(() => server.close());
