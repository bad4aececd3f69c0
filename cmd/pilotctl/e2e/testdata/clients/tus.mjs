// tus.mjs URL NAME: begins an upload, drops it in the middle, and resumes it.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import * as tus from 'tus-js-client';

const [endpoint, filename] = process.argv.slice(2);
const data = randomBytes(24 << 20);
const options = {
  endpoint, chunkSize: 4 << 20, retryDelays: [],
  metadata: { filename, filetype: 'application/octet-stream', sha256: createHash('sha256').update(data).digest('hex') },
};
const part = await new Promise((done, fail) => {
  const upload = new tus.Upload(data, {
    ...options, onError: fail, onSuccess: () => fail(new Error('it was not dropped')),
    onChunkComplete: (_, sent) => { if (sent >= 8 << 20) upload.abort().then(() => done(upload), fail); },
  });
  upload.start();
});
let from = -1;
await new Promise((done, fail) => {
  const upload = new tus.Upload(data, {
    ...options, uploadUrl: part.url, onError: fail, onSuccess: done,
    onProgress: (sent) => { if (from < 0) from = sent; },
  });
  upload.start();
});
assert.ok(from >= 8 << 20, `went on at ${from}`);
console.log('resumed and complete:', data.length, 'bytes');
