// langchain.mjs URL: gives the tools of an MCP server to LangChain and calls one.
import { MultiServerMCPClient } from '@langchain/mcp-adapters';

const client = new MultiServerMCPClient({
  mcpServers: { bob: { transport: 'http', url: process.argv[2], automaticSSEFallback: false } },
});
const tools = await client.getTools();
const add = tools.find((t) => t.name === 'add');
console.log(tools.length, 'tool says', await add.invoke({ a: 17, b: 25 }));
await client.close();
