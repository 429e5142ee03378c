// Models, chat, completions, embeddings, responses, conversations.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { client, collect, embeddingModel, model, person, until, weather } from './support.mjs';

const messages = [{ role: 'user', content: 'Hello there' }];
const forecast = [{ role: 'user', content: 'What is the weather in Paris?' }];
const ends = ['completed', 'failed', 'cancelled', 'incomplete'];

test('models: list and retrieve', async () => {
  const names = (await collect(client.models.list())).map((one) => one.id);
  assert.ok(names.includes(model));
  assert.equal((await client.models.retrieve(model)).id, model);
});

test('models: an unknown one', async () => {
  await assert.rejects(client.models.retrieve('no-such-model'), OpenAI.NotFoundError);
});

test('models: delete an unknown one', async () => {
  await assert.rejects(client.models.delete('no-such-model'), OpenAI.NotFoundError);
});

test('chat: whole', async () => {
  const answer = await client.chat.completions.create({ model, messages });
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test('chat: stream with usage', async () => {
  const asked = { model, messages, stream: true, stream_options: { include_usage: true } };
  const chunks = await collect(await client.chat.completions.create(asked));
  assert.ok(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join(''));
  assert.ok(chunks.at(-1).usage.total_tokens > 0);
});

test('chat: stream helper', async () => {
  const final = await client.chat.completions.stream({ model, messages }).finalChatCompletion();
  assert.ok(final.choices[0].message.content);
});

test('chat: n, logprobs, stop, seed', async () => {
  const asked = { model, messages, n: 2, logprobs: true, top_logprobs: 1, stop: ['zzz'], seed: 7, max_tokens: 8 };
  const answer = await client.chat.completions.create(asked);
  assert.equal(answer.choices.length, 2);
  assert.ok(answer.choices[0].logprobs.content.length > 0);
});

test('chat: tools', async () => {
  const tools = [{ type: 'function', function: weather }];
  const asked = { model, messages: forecast, tools, tool_choice: 'required', max_tokens: 200 };
  const choice = (await client.chat.completions.create(asked)).choices[0];
  assert.equal(choice.finish_reason, 'tool_calls');
  assert.ok('city' in JSON.parse(choice.message.tool_calls[0].function.arguments));
});

test('chat: runs tools by itself', async () => {
  const run = (city) => `18 degrees in ${city.city}`;
  const tools = [{ type: 'function', function: { ...weather, function: run, parse: JSON.parse } }];
  const runner = client.chat.completions.runTools({ model, messages: forecast, tools, max_tokens: 200 });
  assert.ok(await runner.finalContent());
});

test('chat: tools streamed', async () => {
  const tools = [{ type: 'function', function: weather }];
  const asked = { model, messages: forecast, tools, tool_choice: 'required', max_tokens: 200 };
  const final = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.ok('city' in JSON.parse(final.choices[0].message.tool_calls[0].function.arguments));
});

test('chat: json schema', async () => {
  const response_format = { type: 'json_schema', json_schema: { name: 'person', schema: person, strict: true } };
  const asked = [{ role: 'user', content: "My friend 'Anna' is 31." }];
  const answer = await client.chat.completions.create({ model, messages: asked, response_format, max_tokens: 200 });
  assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)).sort(), ['age', 'name']);
});

test('chat: an unknown parameter is refused by name', async () => {
  await assert.rejects(client.chat.completions.create({ model, messages, no_such_parameter: 1 }), /no_such_parameter/);
});

test('chat: an unknown model', async () => {
  await assert.rejects(client.chat.completions.create({ model: 'no-such-model', messages }), { code: 'model_not_found' });
});

test('completions: whole and stream', async () => {
  const asked = { model, prompt: 'Once upon a time', max_tokens: 8 };
  assert.ok((await client.completions.create(asked)).choices[0].text);
  const chunks = await collect(await client.completions.create({ ...asked, stream: true }));
  assert.ok(chunks.map((chunk) => chunk.choices[0]?.text ?? '').join(''));
});

test('embeddings: float and base64 agree', async () => {
  const asked = { model: embeddingModel, input: ['One text', 'Another'] };
  const floats = (await client.embeddings.create({ ...asked, encoding_format: 'float' })).data;
  const decoded = (await client.embeddings.create(asked)).data; // the client asks for base64
  assert.equal(floats.length, 2);
  floats[1].embedding.forEach((x, i) => assert.ok(Math.abs(x - decoded[1].embedding[i]) < 1e-5));
});

test('embeddings: dimensions', async () => {
  const answer = await client.embeddings.create({ model: embeddingModel, input: 'Text', dimensions: 64 });
  assert.equal(answer.data[0].embedding.length, 64);
});

test('responses: whole, retrieve, input items, delete', async () => {
  const answer = await client.responses.create({ model, input: 'Hello there' });
  assert.ok(answer.output_text);
  assert.equal((await client.responses.retrieve(answer.id)).output_text, answer.output_text);
  assert.equal((await collect(client.responses.inputItems.list(answer.id))).length, 1);
  await client.responses.delete(answer.id);
  await assert.rejects(client.responses.retrieve(answer.id), OpenAI.NotFoundError);
});

test('responses: stream', async () => {
  const asked = { model, input: 'Hello there', temperature: 0, stream: true }; // 0, so that it finds an end
  const events = await collect(await client.responses.create(asked));
  assert.equal(events[0].type, 'response.created');
  assert.equal(events.at(-1).type, 'response.completed');
  events.forEach((event, i) => assert.equal(event.sequence_number, i));
});

test('responses: stream helper', async () => {
  const final = await client.responses.stream({ model, input: 'Hello there', temperature: 0 }).finalResponse();
  assert.ok(final.output_text);
});

test('responses: function call and its result', async () => {
  const asked = { model, tools: [{ type: 'function', ...weather, strict: true }], max_output_tokens: 200 };
  const input = 'What is the weather in Paris?';
  const first = await client.responses.create({ ...asked, input, tool_choice: 'required' });
  const call = first.output.find((item) => item.type === 'function_call');
  const result = [{ type: 'function_call_output', call_id: call.call_id, output: '18 degrees' }];
  const second = await client.responses.create({ ...asked, input: result, previous_response_id: first.id });
  assert.ok(second.output_text);
});

test('responses: structured output', async () => {
  const text = { format: { type: 'json_schema', name: 'person', schema: person, strict: true } };
  const answer = await client.responses.create({ model, input: "My friend 'Anna' is 31.", text, max_output_tokens: 200 });
  assert.deepEqual(Object.keys(JSON.parse(answer.output_text)).sort(), ['age', 'name']);
});

test('responses: background, and its stream again from the middle', async () => {
  const asked = { model, input: 'Hello there', temperature: 0, background: true };
  const begun = await client.responses.create(asked);
  const done = await until(() => client.responses.retrieve(begun.id), ends);
  assert.equal(done.status, 'completed');
  const events = await collect(await client.responses.retrieve(begun.id, { stream: true, starting_after: 2 }));
  assert.equal(events[0].sequence_number, 3);
  assert.equal(events.at(-1).type, 'response.completed');
});

test('responses: cancel', async () => {
  const input = 'Please take 20 seconds for this.';
  const begun = await client.responses.create({ model, input, background: true });
  await client.responses.cancel(begun.id);
  assert.equal((await until(() => client.responses.retrieve(begun.id), ends)).status, 'cancelled');
});

test('conversations: items and responses within', async () => {
  const made = await client.conversations.create({ metadata: { topic: 'cats' }, items: [{ role: 'user', content: 'First' }] });
  await client.conversations.items.create(made.id, { items: [{ role: 'user', content: 'Second' }] });
  await client.responses.create({ model, input: 'Third', conversation: made.id });
  assert.equal((await collect(client.conversations.items.list(made.id))).length, 4);
  const updated = await client.conversations.update(made.id, { metadata: { topic: 'dogs' } });
  assert.deepEqual(updated.metadata, { topic: 'dogs' });
  await client.conversations.delete(made.id);
  await assert.rejects(client.conversations.retrieve(made.id), OpenAI.NotFoundError);
});

test('conversations: retrieve; one item retrieved and deleted', async () => {
  const items = ['First', 'Second'].map((content) => ({ role: 'user', content }));
  const made = await client.conversations.create({ metadata: { topic: 'cats' }, items });
  assert.deepEqual(await client.conversations.retrieve(made.id), made);
  const [first, second] = await collect(client.conversations.items.list(made.id, { order: 'asc' }));
  const within = { conversation_id: made.id };
  assert.equal((await client.conversations.items.retrieve(first.id, within)).content[0].text, 'First');
  assert.equal((await client.conversations.items.delete(first.id, within)).id, made.id);
  await assert.rejects(client.conversations.items.retrieve(first.id, within), OpenAI.NotFoundError);
  assert.deepEqual(await collect(client.conversations.items.list(made.id)), [second]);
});
