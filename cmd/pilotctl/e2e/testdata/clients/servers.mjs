// What bob runs: an MCP server, an A2A agent and a WebSocket echo, each as its
// library's documentation shows it, on 127.0.0.1 and with no thought of Pilot.
import { createServer } from 'node:http';
import express from 'express';
import { WebSocketServer } from 'ws';
import * as z from 'zod';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js';
import { TaskState } from '@a2a-js/sdk';
import { AgentEvent, DefaultRequestHandler, InMemoryTaskStore } from '@a2a-js/sdk/server';
import { UserBuilder, agentCardHandler, jsonRpcHandler, restHandler } from '@a2a-js/sdk/server/express';
import * as old from 'a2a-sdk-0.3/server';
import * as oldExpress from 'a2a-sdk-0.3/server/express';

const listen = (server, port) => new Promise((done) => server.listen(port, '127.0.0.1', done));

// The MCP server refuses every Host but localhost, which is its default.
const mcp = createMcpExpressApp();
mcp.post('/mcp', async (req, res) => {
  const server = new McpServer({ name: 'sums', version: '1.0.0' });
  server.registerTool(
    'add',
    { description: 'adds two numbers', inputSchema: { a: z.number(), b: z.number() } },
    async ({ a, b }) => ({ content: [{ type: 'text', text: `${a} + ${b} = ${a + b}` }] }),
  );
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
  res.on('close', () => server.close());
  await server.connect(transport);
  await transport.handleRequest(req, res, req.body);
});

// The agent's card leads to localhost, as that of most samples does.
const card = {
  name: 'shouter',
  description: 'says it louder',
  version: '1.0.0',
  supportedInterfaces: [
    { url: 'http://localhost:9999/', protocolBinding: 'JSONRPC', protocolVersion: '1.0', tenant: '' },
    { url: 'http://localhost:9999/rest', protocolBinding: 'HTTP+JSON', protocolVersion: '1.0', tenant: '' },
  ],
  capabilities: { streaming: true, pushNotifications: false, extensions: [] },
  securitySchemes: {},
  securityRequirements: [],
  defaultInputModes: ['text/plain'],
  defaultOutputModes: ['text/plain'],
  skills: [{ id: 'shout', name: 'shout', description: 'upper case', tags: [], examples: [], inputModes: [], outputModes: [], securityRequirements: [] }],
  signatures: [],
};

const shouter = {
  async execute(request, bus) {
    const { taskId, contextId, userMessage } = request;
    const text = userMessage.parts.map((p) => p.content.value).join(' ').toUpperCase();
    const status = (state) => ({ state, message: undefined, timestamp: new Date().toISOString() });
    bus.publish(AgentEvent.task({
      id: taskId, contextId, status: status(TaskState.TASK_STATE_WORKING), artifacts: [], history: [userMessage], metadata: {},
    }));
    bus.publish(AgentEvent.artifactUpdate({
      taskId, contextId, append: false, lastChunk: true, metadata: {},
      artifact: {
        artifactId: 'said', name: 'said', description: '', metadata: {}, extensions: [],
        parts: [{ content: { $case: 'text', value: text }, metadata: {}, filename: '', mediaType: 'text/plain' }],
      },
    }));
    bus.publish(AgentEvent.statusUpdate({ taskId, contextId, status: status(TaskState.TASK_STATE_COMPLETED), metadata: {} }));
    bus.finished();
  },
  async cancelTask() {},
};
const requestHandler = new DefaultRequestHandler(card, new InMemoryTaskStore(), shouter);
const a2a = express();
a2a.use('/.well-known/agent-card.json', agentCardHandler({ agentCardProvider: requestHandler }));
a2a.use('/rest', restHandler({ requestHandler, userBuilder: UserBuilder.noAuthentication }));
a2a.use('/', jsonRpcHandler({ requestHandler, userBuilder: UserBuilder.noAuthentication }));

// The same agent as it was written for version 0.3 of the protocol.
const oldHandler = new old.DefaultRequestHandler({
  name: 'old shouter', description: 'says it louder', version: '1.0.0', protocolVersion: '0.3.0', url: 'http://0.0.0.0:9998/rpc',
  additionalInterfaces: [{ url: 'http://0.0.0.0:9998/rpc', transport: 'JSONRPC' }], preferredTransport: 'JSONRPC',
  capabilities: { streaming: true }, defaultInputModes: ['text/plain'], defaultOutputModes: ['text/plain'], skills: [],
}, new old.InMemoryTaskStore(), {
  async execute({ taskId, contextId, userMessage }, bus) {
    const status = (state) => ({ state, timestamp: new Date().toISOString() });
    const text = userMessage.parts.map((p) => p.text).join(' ').toUpperCase();
    bus.publish({ kind: 'task', id: taskId, contextId, status: status('working'), history: [userMessage] });
    bus.publish({ kind: 'artifact-update', taskId, contextId, artifact: { artifactId: 'said', parts: [{ kind: 'text', text }] } });
    bus.publish({ kind: 'status-update', taskId, contextId, status: status('completed'), final: true });
    bus.finished();
  },
  async cancelTask() {},
});
const oldA2A = express();
oldA2A.use('/.well-known/agent-card.json', oldExpress.agentCardHandler({ agentCardProvider: oldHandler }));
oldA2A.use('/rpc', oldExpress.jsonRpcHandler({ requestHandler: oldHandler, userBuilder: oldExpress.UserBuilder.noAuthentication }));

const web = createServer();
new WebSocketServer({ server: web }).on('connection', (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
});

await Promise.all([listen(mcp, 3001), listen(web, 3002), listen(a2a, 9999), listen(oldA2A, 9998)]);
console.log('ready');
