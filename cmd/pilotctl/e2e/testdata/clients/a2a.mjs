// a2a.mjs URL BINDING TEXT: reads the agent card at URL, sends TEXT over that
// binding, as a message and as a stream, and gets the task.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Role, TaskState } from '@a2a-js/sdk';
import { ClientFactory, JsonRpcTransportFactory, RestTransportFactory } from '@a2a-js/sdk/client';

const [url, binding, text] = process.argv.slice(2);
const transports = { 'JSONRPC': new JsonRpcTransportFactory(), 'HTTP+JSON': new RestTransportFactory() };
const client = await new ClientFactory({ transports: [transports[binding]] }).createFromUrl(url);
const card = await client.getAgentCard();
const message = () => ({
  tenant: '', configuration: undefined, metadata: {},
  message: {
    messageId: randomUUID(), contextId: '', taskId: '', role: Role.ROLE_USER, metadata: {}, extensions: [], referenceTaskIds: [],
    parts: [{ content: { $case: 'text', value: text }, metadata: {}, filename: '', mediaType: 'text/plain' }],
  },
});
const said = (artifacts) => artifacts.flatMap((a) => a.parts).map((p) => p.content.value).join('').trim();

let task = await client.sendMessage(message());
while (task.status.state === TaskState.TASK_STATE_SUBMITTED || task.status.state === TaskState.TASK_STATE_WORKING) {
  await new Promise((next) => setTimeout(next, 50));
  task = await client.getTask({ tenant: '', id: task.id, historyLength: undefined });
}
assert.equal(task.status.state, TaskState.TASK_STATE_COMPLETED);

const kinds = [];
const streamed = [];
for await (const event of client.sendMessageStream(message())) {
  kinds.push(event.payload.$case);
  if (event.payload.$case === 'artifactUpdate') streamed.push(event.payload.value.artifact);
  if (event.payload.$case === 'task') streamed.push(...event.payload.value.artifacts);
}
assert.ok(kinds.length >= 2, kinds.join());
assert.equal(said(streamed), said(task.artifacts));
console.log(card.name, 'says', said(task.artifacts));
