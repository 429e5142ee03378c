// Files, uploads, batches, fine-tuning jobs.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI, { toFile } from 'openai';
import { client, collect, embeddingModel, model, put, until } from './support.mjs';

const ends = ['completed', 'failed', 'expired', 'cancelled', 'succeeded'];

async function begin(endpoint, bodies) {
  const lines = bodies.map((body, n) => JSON.stringify({ custom_id: `line-${n}`, method: 'POST', url: endpoint, body }));
  const file = await put(lines.join('\n'), 'lines.jsonl', 'batch');
  return client.batches.create({ input_file_id: file.id, endpoint, completion_window: '24h' });
}

test('files: create, retrieve, list, content, delete', async () => {
  const made = await put('Hello', 'hello.txt', 'user_data');
  assert.equal(made.bytes, 5);
  assert.deepEqual(await client.files.retrieve(made.id), made);
  assert.equal(await (await client.files.content(made.id)).text(), 'Hello');
  assert.equal((await client.files.list({ purpose: 'user_data', limit: 1, order: 'desc' })).data[0].id, made.id);
  assert.ok((await client.files.delete(made.id)).deleted);
  await assert.rejects(client.files.retrieve(made.id), OpenAI.NotFoundError);
});

test('files: an unknown purpose', async () => {
  await assert.rejects(put('Hello', 'hello.txt', 'no-such-purpose'), { status: 400, param: 'purpose' });
});

test('uploads: parts, complete', async () => {
  const asked = { filename: 'words.txt', purpose: 'user_data', mime_type: 'text/plain', bytes: 12 };
  const upload = await client.uploads.create(asked);
  const part = async (text) => (await client.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(text), 'part') })).id;
  const [second, first] = [await part('second'), await part('first ')];
  const done = await client.uploads.complete(upload.id, { part_ids: [first, second] });
  assert.equal(await (await client.files.content(done.file.id)).text(), 'first second');
});

test('uploads: cancel', async () => {
  const asked = { filename: 'words.txt', purpose: 'user_data', mime_type: 'text/plain', bytes: 12 };
  const upload = await client.uploads.create(asked);
  assert.equal((await client.uploads.cancel(upload.id)).status, 'cancelled');
});

for (const [endpoint, body] of Object.entries({
  '/v1/chat/completions': { model, messages: [{ role: 'user', content: 'Hello' }], max_tokens: 8 },
  '/v1/responses': { model, input: 'Hello', max_output_tokens: 16 },
  '/v1/completions': { model, prompt: 'Hello', max_tokens: 8 },
  '/v1/embeddings': { model: embeddingModel, input: 'Hello' },
})) {
  test(`batches: ${endpoint}`, async () => {
    const batch = await begin(endpoint, [body, { ...body, model: 'no-such-model' }]);
    const done = await until(() => client.batches.retrieve(batch.id), ends);
    assert.equal(done.status, 'completed');
    assert.deepEqual([done.request_counts.completed, done.request_counts.failed], [1, 1]);
    const line = JSON.parse(await (await client.files.content(done.output_file_id)).text());
    assert.equal(line.response.status_code, 200);
    assert.ok((await client.batches.list({ limit: 5 })).data.some((one) => one.id === batch.id));
  });
}

test('batches: cancel', async () => {
  const slow = { model, messages: [{ role: 'user', content: 'Please take 20 seconds for this.' }] };
  const batch = await begin('/v1/chat/completions', [slow]);
  await client.batches.cancel(batch.id);
  assert.equal((await until(() => client.batches.retrieve(batch.id), ends)).status, 'cancelled');
});

/** A job of one epoch; none, and the test skipped, where the service has nothing to train. */
async function learn(context) {
  const base = 'smollm2-135m-instruct';
  const names = (await collect(client.models.list())).map((one) => one.id);
  if (!names.includes(base)) return context.skip('the service lists no base model with weights');
  const line = JSON.stringify({ messages: [{ role: 'user', content: 'a' }, { role: 'assistant', content: 'b' }] });
  const file = await put(`${line}\n`.repeat(12), 'train.jsonl', 'fine-tune');
  const asked = { model: base, training_file: file.id, suffix: 'verify-js', hyperparameters: { n_epochs: 1 }, seed: 7 };
  return client.fineTuning.jobs.create(asked);
}

test('fine-tuning: create, list, events, checkpoints, cancel', async (context) => {
  const job = await learn(context);
  if (!job) return;
  assert.equal((await client.fineTuning.jobs.list({ limit: 1 })).data[0].id, job.id);
  await client.fineTuning.jobs.cancel(job.id);
  assert.equal((await until(() => client.fineTuning.jobs.retrieve(job.id), ends)).status, 'cancelled');
  assert.ok((await collect(client.fineTuning.jobs.listEvents(job.id))).length > 0);
  assert.deepEqual(await collect(client.fineTuning.jobs.checkpoints.list(job.id)), []);
});

test('fine-tuning: pause, resume', async (context) => {
  const job = await learn(context);
  if (!job) return;
  try {
    await client.fineTuning.jobs.pause(job.id);
    const paused = await until(() => client.fineTuning.jobs.retrieve(job.id), ['paused', ...ends]);
    assert.equal(paused.status, 'paused');
    const resumed = await client.fineTuning.jobs.resume(job.id);
    assert.ok(['queued', 'running', 'validating_files'].includes(resumed.status));
  } finally {
    await client.fineTuning.jobs.cancel(job.id);
  }
  assert.equal((await until(() => client.fineTuning.jobs.retrieve(job.id), ends)).status, 'cancelled');
});
