'use strict';
// The calls of the device service, with deadlines and repetitions, and what is signed.
const crypto = require('node:crypto');
const fs = require('node:fs');
const { Readable } = require('node:stream');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const { crc32 } = require('./training');

const { status } = grpc;
const LOST = [status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED, status.UNKNOWN, status.RESOURCE_EXHAUSTED];
const GONE = status.NOT_FOUND;
const within = seconds => ({ deadline: Date.now() + 1000 * seconds });

class Wire {
  // `tls` is a folder with ca.crt, and with device.crt and device.key where the server asks for them
  constructor({ address, proto, tls }) {
    const read = name => (fs.existsSync(`${tls}/${name}`) ? fs.readFileSync(`${tls}/${name}`) : null);
    const { createSsl, createInsecure } = grpc.credentials;
    this.credentials = tls ? createSsl(read('ca.crt'), read('device.key'), read('device.crt')) : createInsecure();
    this.definition = loader.loadSync(proto, { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true });
    this.Service = grpc.loadPackageDefinition(this.definition).fedrho.v1.DeviceService;
    this.address = address;
    this.stub = new this.Service(address, this.credentials);
    this.elsewhere = [];
  }

  at(address) { // where an assignment's uploads go: here, or on another port of this host, or on another host
    if (!address) return this;
    const there = Object.assign(Object.create(Wire.prototype), this);
    there.address = address.startsWith(':') ? this.address.replace(/:\d+$/, address) : address;
    there.stub = new this.Service(there.address, this.credentials);
    this.elsewhere.push(there.stub);
    return there;
  }

  close() {
    for (const stub of [this.stub, ...this.elsewhere]) stub.close();
  }

  parse(type, bytes) {
    return this.definition[`fedrho.v1.${type}`].deserialize(bytes);
  }

  call(method, request) {
    return repeated(() => new Promise((resolve, reject) => {
      this.stub[method](request, within(20), (error, answer) => (error ? reject(error) : resolve(answer)));
    }));
  }

  async download(sha256, size) { // goes on where a broken stream stopped, and never holds more than it was promised
    const held = [];
    let offset = 0;
    await repeated(async () => {
      for await (const { data } of this.stub.GetArtifact({ sha256, offset }, within(600))) {
        held.push(data);
        offset += data.length;
        if (offset > size) throw new Error('the server sends more than the plan announces');
      }
    });
    return Buffer.concat(held);
  }

  async upload(session, payload, chunkBytes) { // not repeated: after a broken connection the session's status says what to do
    function* parts() {
      yield { header: { session, total_bytes: payload.length } };
      for (let at = 0; at < payload.length; at += chunkBytes) yield { chunk: payload.subarray(at, at + chunkBytes) };
      yield { trailer: { crc32: crc32(payload) } };
    }
    try {
      return await new Promise((resolve, reject) => {
        const stream = this.stub.UploadUpdate(within(600), (error, answer) => (error ? reject(error) : resolve(answer)));
        Readable.from(parts()).pipe(stream);
      });
    } catch (error) {
      if (![...LOST, status.INTERNAL].includes(error.code)) throw error;
      return { ...(await this.call('GetUploadStatus', { session })), refusal: 'NO_RESERVATION' };
    }
  }
}

async function repeated(attempt) { // three times in all, with jitter
  for (let tries = 1; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      if (tries === 3 || !LOST.includes(error.code)) throw error;
      await new Promise(resume => setTimeout(resume, 100 * 2 ** tries * Math.random()));
    }
  }
}

function frame(purpose, ...parts) { // what every signature is over
  return Buffer.concat([Buffer.from(purpose), ...parts].flatMap(part => {
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(part.length));
    return [length, part];
  }));
}

const P = 2n ** 255n - 19n;
const ORDER_8 = 0x7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7n;
const WEAK = [0n, 1n, P - 1n, P, P + 1n, ORDER_8, P - ORDER_8]; // anybody can sign under these keys, and OpenSSL lets them

function signed(key, message, signature) {
  if (WEAK.includes(BigInt(`0x${Buffer.from(key).reverse().toString('hex')}`) % 2n ** 255n)) return false;
  const jwk = { kty: 'OKP', crv: 'Ed25519', x: key.toString('base64url') };
  return crypto.verify(null, message, crypto.createPublicKey({ key: jwk, format: 'jwk' }), signature);
}

module.exports = { GONE, Wire, frame, signed };
