// ws.mjs URL: texts and bytes there and back over one WebSocket.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import WebSocket from 'ws';

const socket = new WebSocket(process.argv[2], { handshakeTimeout: 5000 });
await once(socket, 'open');
for (const message of ['hello', 'x'.repeat(20000), randomBytes(1 << 20)]) {
  const [answer, isBinary] = await (socket.send(message), once(socket, 'message'));
  assert.equal(isBinary, typeof message !== 'string');
  assert.deepEqual(answer, Buffer.from(message));
}
socket.close(1000);
const [code] = await once(socket, 'close');
console.log('echoed and closed with', code);
