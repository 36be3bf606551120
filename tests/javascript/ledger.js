'use strict';
// What a device must never forget, in a folder of its own for each server. Nothing is believed until it is on the disk.
//
//     contribution-N.json   the N-th, from 0: { run, step, at }; there from its first byte to its last, or not at all
//     known.json            the population key that the server showed first, the highest epoch, and a tag for each run
const crypto = require('node:crypto');
const fs = require('node:fs');

class Ledger {
  constructor(folder) {
    this.folder = folder;
    fs.mkdirSync(folder, { recursive: true });
  }

  contributions() { // in their order; throws where one is damaged or missing, and then the device takes part in nothing
    const count = fs.readdirSync(this.folder).filter(name => name.startsWith('contribution-')).length;
    return Array.from({ length: count }, (_, number) => this.read(`contribution-${number}.json`));
  }

  allows(run, step, terms) {
    const past = this.contributions();
    const steps = past.filter(one => one.run === run.toString('hex')).map(one => one.step);
    return steps.length < terms.max_participations &&
      steps.every(one => step > one && step - one >= terms.min_separation) &&
      past.every(one => terms.min_period_seconds <= 0 || Date.now() / 1000 - one.at >= terms.min_period_seconds);
  }

  exhausted({ run, terms }) {
    return this.contributions().filter(one => one.run === run.toString('hex')).length >= terms.max_participations;
  }

  record(run, step, terms) { // says yes only when it is on the disk; of two processes at once, one is told no
    const number = this.contributions().length;
    if (!this.allows(run, step, terms)) return false;
    const draft = this.write(`draft-${crypto.randomUUID()}`, { run: run.toString('hex'), step, at: Date.now() / 1000 });
    try {
      fs.linkSync(draft, `${this.folder}/contribution-${number}.json`); // fails where there is one
    } catch (error) {
      if (error.code === 'EEXIST') return false;
      throw error;
    } finally {
      fs.unlinkSync(draft);
    }
    this.sync(this.folder);
    return true;
  }

  get known() { // throws where it is gone while contributions are there
    const fresh = !fs.existsSync(`${this.folder}/known.json`) && !this.contributions().length;
    return fresh ? { key: null, epoch: '0', tags: {} } : this.read('known.json');
  }

  get pinned() {
    return this.known.key && Buffer.from(this.known.key, 'hex');
  }

  trust(key, epoch) { // throws where the server has gone back
    const { tags, ...known } = this.known;
    const same = known.key === key.toString('hex');
    if (same && BigInt(epoch) < BigInt(known.epoch)) throw new Error(`the server went back from epoch ${known.epoch} to ${epoch}`);
    if (!same || epoch !== known.epoch) this.know({ key: key.toString('hex'), epoch, tags });
  }

  tag(run) { // 16 random bytes, the same throughout a run
    const known = this.known;
    const tag = (known.tags[run.toString('hex')] ??= crypto.randomBytes(16).toString('hex'));
    this.know(known);
    return Buffer.from(tag, 'hex');
  }

  know(known) {
    fs.renameSync(this.write(`draft-${crypto.randomUUID()}`, known), `${this.folder}/known.json`);
    this.sync(this.folder);
  }

  read(name) {
    return JSON.parse(fs.readFileSync(`${this.folder}/${name}`, 'utf8'));
  }

  write(name, value) {
    fs.writeFileSync(`${this.folder}/${name}`, JSON.stringify(value));
    this.sync(`${this.folder}/${name}`);
    return `${this.folder}/${name}`;
  }

  sync(file) {
    const descriptor = fs.openSync(file, 'r');
    fs.fsyncSync(descriptor);
    fs.closeSync(descriptor);
  }
}

module.exports = { Ledger };
