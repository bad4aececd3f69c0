// mcp.mjs URL: lists the tools of an MCP server and calls one.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const client = new Client({ name: 'alice', version: '1.0.0' });
await client.connect(new StreamableHTTPClientTransport(new URL(process.argv[2])));
const { tools } = await client.listTools();
const { content } = await client.callTool({ name: 'add', arguments: { a: 17, b: 25 } });
console.log(tools.map((t) => t.name).join(), 'says', content[0].text);
await client.close();
