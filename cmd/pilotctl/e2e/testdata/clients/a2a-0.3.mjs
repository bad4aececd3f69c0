// a2a-0.3.mjs URL TEXT: what a2a.mjs does, with the SDK for version 0.3 of the
// protocol, over JSON-RPC.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { ClientFactory } from 'a2a-sdk-0.3/client';

const [url, text] = process.argv.slice(2);
const client = await new ClientFactory().createFromUrl(url);
const card = await client.getAgentCard();
const message = () => ({ message: { kind: 'message', messageId: randomUUID(), role: 'user', parts: [{ kind: 'text', text }] } });
const said = (artifacts) => artifacts.flatMap((a) => a.parts).map((p) => p.text).join('').trim();

let task = await client.sendMessage(message());
while (task.status.state === 'submitted' || task.status.state === 'working') {
  await new Promise((next) => setTimeout(next, 50));
  task = await client.getTask({ id: task.id });
}
assert.equal(task.status.state, 'completed');

const streamed = [];
for await (const event of client.sendMessageStream(message())) {
  if (event.kind === 'artifact-update') streamed.push(event.artifact);
  if (event.kind === 'task') streamed.push(...(event.artifacts ?? []));
}
assert.equal(said(streamed), said(task.artifacts));
console.log(card.name, 'says', said(task.artifacts));
