// The JavaScript SDK behind a pipe: one JSON request a line, one JSON answer a line.
// Agents are built from the same descriptions as in agents_by_description.py; no network is used.

import { createInterface } from 'node:readline';
import OpenAI from 'openai';
import { Agent, MCPServerStdio, OpenAIChatCompletionsModel, OpenAIResponsesModel, RunState, Runner, Usage, addTraceProcessor, handoff, setTraceProcessors, tool } from '@openai/agents';

const traces = [];
setTraceProcessors([]);
addTraceProcessor({
  async onTraceStart(trace) { traces.push({ started: trace.traceId }); },
  async onTraceEnd() {},
  async onSpanStart(span) { traces.push({ span: span.spanData.type, trace: span.traceId, parent: span.parentId }); },
  async onSpanEnd() {},
  async shutdown() {},
  async forceFlush() {},
});

/** Answers with the first planned turn that has a call without a result in the input. */
class PlannedModel {
  constructor(name, plan, log) { Object.assign(this, { name, plan, log }); }

  async getResponse(request) {
    const items = typeof request.input === 'string' ? [{ role: 'user', content: request.input }] : request.input;
    this.log.models.push({ agent: this.name, input: items, conversation: request.conversationId, previous: request.previousResponseId });
    const done = new Set(items.filter((item) => item.type === 'function_call_result').map((item) => item.callId));
    const turn = this.plan.find((turn) => typeof turn === 'string' || turn.some((item) => item.call && !done.has(item.call)));
    const usage = new Usage({ requests: 1, inputTokens: 10, outputTokens: 5, totalTokens: 15, inputTokensDetails: [{ cached_tokens: 4 }], outputTokensDetails: [{ reasoning_tokens: 2 }] });
    return { usage, output: answer(turn, this.name), responseId: `resp_${this.log.models.length}` };
  }

  getStreamedResponse() { throw new Error('not planned'); }
}

/** OpenAI's own model over a connection that ends here: it answers with these bodies, and what it sent is kept. */
function wireModel(log, { api, bodies }) {
  const fetch = async (url, options) => {
    const body = bodies[log.requests.push(JSON.parse(options.body)) - 1];
    return new Response(JSON.stringify(body), { headers: { 'content-type': 'application/json' } });
  };
  const client = new OpenAI({ apiKey: 'none', fetch });
  return api === 'chat' ? new OpenAIChatCompletionsModel(client, 'm') : new OpenAIResponsesModel(client, 'm');
}

function answer(turn, agent) {
  if (typeof turn === 'string') {
    return [{ type: 'message', id: `msg_${agent}`, role: 'assistant', status: 'completed', content: [{ type: 'output_text', text: turn }] }];
  }
  return turn.map((item) => item.call
    ? { type: 'function_call', id: `fc_${item.call}`, callId: item.call, name: item.name, status: 'completed', arguments: item.arguments }
    : item.javascript);
}

function build(description, log) {
  const agents = {};
  const make = (name) => {
    if (agents[name]) return agents[name];
    const { plan, tools = [], handoffs = [], delegates = [], guardrails = [] } = description[name];
    const agent = agents[name] = new Agent({ name, instructions: `You are ${name}.`, model: plan.api ? wireModel(log, plan) : new PlannedModel(name, plan, log) });
    agent.tools = tools.map((spec) => tool({
      name: spec.name,
      description: spec.name,
      parameters: { type: 'object', properties: {}, required: [], additionalProperties: true },
      strict: false,
      needsApproval: spec.approval ?? false,
      execute: async (input, context) => {
        const line = `${spec.name} ${JSON.stringify(input)} ${JSON.stringify(context.context)}`;
        log.ran.push(line);
        return line;
      },
    })).concat(delegates.map((other) => make(other).asTool({ toolName: `ask_${other}`, toolDescription: other })));
    agent.handoffs = handoffs.map((other) => handoff(make(other), { toolNameOverride: `transfer_to_${other}` }));
    agent.inputGuardrails = guardrails.map((name) => ({ name, execute: async () => {
      log.guardrails.push(name);
      return { tripwireTriggered: false, outputInfo: { looked_at: name } };
    } }));
    return agent;
  };
  return make(Object.keys(description)[0]);
}

function decide(state, decisions) {
  for (const { call, approve, always, message } of decisions) {
    const item = state.getInterruptions().find((item) => item.rawItem.callId === call);
    if (!item) throw new Error(`no pending call ${call}`);
    if (approve) state.approve(item, { alwaysApprove: always ?? false });
    else state.reject(item, { alwaysReject: always ?? false, ...(message ? { message } : {}) });
  }
}

const pending = (state) => state.getInterruptions().map((item) => ({
  agent: item.agent.name, name: item.name, call: item.rawItem.callId, arguments: item.arguments,
  decided: state._context.isToolApproved({ toolName: item.functionToolStateKey ?? item.name, callId: item.rawItem.callId, agent: item.agent }) ?? null,
}));

/** start: from the beginning; resume: from a state's text. Then decide, and run on unless `run` is false. */
async function serve({ mcp, ...request }) {
  if (!mcp) return answerTo(request, []);
  const server = new MCPServerStdio({ name: 'ruler', ...mcp });
  await server.connect();
  try {
    return await answerTo(request, [server]);
  } finally {
    await server.close();
  }
}

async function answerTo({ agents, input, context, state: text, decisions = [], run = true, conversation }, mcpServers) {
  const log = { models: [], requests: [], ran: [], guardrails: [] };
  traces.length = 0;
  const agent = build(agents, log);
  agent.mcpServers = mcpServers;
  const runner = new Runner({ workflowName: 'desk work', groupId: 'group-1', traceMetadata: { tenant_id: 't1' } });
  let state = text === undefined ? undefined : await RunState.fromString(agent, text);
  if (state) decide(state, decisions);
  let output = null;
  if (run) {
    const result = await runner.run(agent, state ?? input, { context, conversationId: conversation });
    state = result.state;
    output = result.finalOutput ?? null;
    if (!text) decide(state, decisions);
  }
  const { requests, inputTokens, outputTokens } = state.usage;
  return { output, state: JSON.parse(state.toString()), pending: pending(state), usage: { requests, inputTokens, outputTokens }, traces: [...traces], context: state._context.context, ...log };
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = await serve(JSON.parse(line));
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}`, stack: error.stack };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
